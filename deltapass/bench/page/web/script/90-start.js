// Each record's section, from its data.
function startSection(section) {
  const data = DATA[Number(section.dataset.index)];
  section.addEventListener("pick", (event) => {
    section.dataset.picked = section.dataset.picked === event.detail ? "" : event.detail;
    all(".point", section).forEach((point) => markPoint(point, section.dataset.picked));
    section.dispatchEvent(new Event("picked"));
  });
  startTable(section, data);
  startAdvice(section, data);
  const place = one(".pairs", section);
  if (place) new Viewer(section, place, data);
  const timed = one(".times .plot", section);
  if (timed) drawnToWidth(timed, (width) => times(data, width));
  const shown = one(".strips", section);
  if (shown) strips(shown, data);
  for (const figure of all("[data-figure]", section)) {
    const content = data.figures[Number(figure.dataset.figure)];
    drawnToWidth(one(".plot", figure), (width) => figureOf(content, width));
    const numbers = one(".numbers", figure);
    numbers.addEventListener("toggle", () => { if (numbers.open) one(".scroll", numbers).replaceChildren(numbersOf(content)); });
  }
}

// The measure and the kind of time are chosen once, for the advice and the chart.
function startAdvice(section, data) {
  const controls = one(".use .controls", section);
  if (!controls) return;
  controls.hidden = false;
  const [measure, cost] = [one("select.measure", controls), one("select.cost", controls)];
  const chosen = () => ({ measure: measure.value, cost: cost.value });
  const redraw = drawnToWidth(one(".pareto .plot", section), (width) => pareto(section, data, chosen(), width));
  controls.addEventListener("change", () => {
    const { measure: name, cost: kind } = chosen();
    all(".panel", section).forEach((panel) => { panel.hidden = !(panel.dataset.measure === name && panel.dataset.cost === kind); });
    redraw();
  });
}

// The first sections at once, the others while the page can be used already.
const AT_ONCE = 4;

async function startAll() {
  for (const [k, section] of all(".record").entries()) {
    if (k >= AT_ONCE) await new Promise((next) => { setTimeout(next); });
    startSection(section);
  }
  // What was drawn above it moved the place that was asked for.
  const asked = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (asked && scrollY > 0) asked.scrollIntoView({ behavior: "instant" });
  document.documentElement.dataset.ready = "yes";
}

startTheme();
startContents();
startCopying();
startPrinting();
startAll();

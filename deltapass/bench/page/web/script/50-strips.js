// A schedule step by step, and under it the error of every step.
function strips(place, data) {
  const rows = data.rows.filter((row) => row.strip);
  const most = Math.max(...rows.flatMap((row) => (row.errors || []).map((each) => each || 0)), 1e-12);
  for (const row of rows) {
    const plot = element("div", { class: "plot" });
    place.append(element("figure", { class: "strip chart" }, element("h4", {}, row.label), element("p", {}, inWords(row)), plot));
    drawnToWidth(plot, (width) => strip(row, data.blocks, most, width));
  }
}

function inWords(row) {
  const steps = row.schedule || row.errors;
  if (!row.schedule) return `${steps.length} steps; it has no table of steps`;
  const skipping = row.schedule.filter(Boolean);
  const spans = new Map();
  for (const [first, end] of skipping) spans.set(`${first} to ${end - 1}`, (spans.get(`${first} to ${end - 1}`) || 0) + 1);
  const words = [...spans].slice(0, 3).map(([span, count]) => `${count} skip blocks ${span}`);
  return [`${steps.length} steps: ${steps.length - skipping.length} in full`, ...words, ...(spans.size > 3 ? [`${spans.size - 3} more spans`] : [])].join(", ");
}

function strip(row, blocks, most, width) {
  const count = (row.schedule || row.errors).length;
  const deep = blocks || Math.max(1, ...(row.schedule || []).filter(Boolean).map(([, end]) => end));
  const [left, high, low] = [30, row.schedule ? clamp(deep * 3.2, 56, 130) : 0, row.errors ? 54 : 0];
  const [start, height] = [6, 6 + high + (low ? low + 8 : 0) + 20];
  const column = (width - left - 4) / count;
  const gap = column > 6 ? 1.5 : column > 3 ? 0.5 : 0;
  const y = scale(0, deep, start + high, start);
  const picture = svg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "slider", "aria-label": `Steps of ${row.label}`,
    "aria-valuemin": 0, "aria-valuemax": count - 1, "aria-valuenow": 0, "aria-valuetext": stepInWords(row, 0),
  });
  for (let k = 0; k < count; k += 1) {
    const x = left + k * column;
    const span = row.schedule && row.schedule[k];
    if (row.schedule) picture.append(svg("rect", { class: "ran", x, y: start, width: column - gap, height: high }));
    if (span) {
      picture.append(svg("rect", { class: "skipped", x, y: y(span[1]), width: column - gap, height: y(span[0]) - y(span[1]) }));
      picture.append(svg("path", { class: "hatch", d: hatch(x, y(span[1]), column - gap, y(span[0]) - y(span[1])) }));
    }
    if (row.errors && row.errors[k] !== null) {
      const tall = (row.errors[k] / most) * (low - 4);
      picture.append(svg("rect", { class: "error", x, y: start + high + 8 + low - tall, width: Math.max(0.6, column - gap), height: tall }));
    }
  }
  if (row.schedule) picture.append(text(left - 6, start + high, "0", { "text-anchor": "end" }), text(left - 6, start + 10, String(deep - 1), { "text-anchor": "end" }));
  if (low) picture.append(
    svg("line", { class: "axis-line", x1: left, x2: width - 4, y1: start + high + 8 + low, y2: start + high + 8 + low }),
    text(left - 6, start + high + 20, inPercent(most), { "text-anchor": "end" }),
  );
  const end = height - 3;
  picture.append(text(left, end, "step 0, noise"), text(width - 4, end, `step ${count - 1}, image`, { "text-anchor": "end" }));
  watchSteps(picture, row, { left, column, count, height, start, gap });
  return picture;
}

function hatch(x, y, wide, tall) {
  const lines = [];
  for (let down = y + 4; down < y + tall; down += 7) {
    const rise = Math.min(wide * 0.6, down - y);
    lines.push(`M${x} ${down}L${x + wide} ${down - rise}`);
  }
  return lines.join("");
}

const inPercent = (value) => `${written(Number((value * 100).toPrecision(2)))}%`;

function stepInWords(row, k) {
  const span = row.schedule && row.schedule[k];
  const ran = !row.schedule ? "" : span ? `blocks ${span[0]} to ${span[1] - 1} skipped` : "all blocks run";
  const error = row.errors && row.errors[k] !== null ? `error ${written(Number((row.errors[k] * 100).toPrecision(3)))} %` : "";
  return [`step ${k}`, ran, error].filter(Boolean).join(", ");
}

function watchSteps(picture, row, { left, column, count, height, start, gap }) {
  const mark = svg("rect", { class: "column", y: start - 2, width: Math.max(2, column - gap), height: height - 20 - start, visibility: "hidden" });
  picture.append(mark);
  const go = (k) => {
    mark.setAttribute("x", left + k * column);
    mark.setAttribute("visibility", "visible");
    picture.setAttribute("aria-valuenow", k);
    picture.setAttribute("aria-valuetext", stepInWords(row, k));
  };
  const leave = () => { mark.setAttribute("visibility", "hidden"); hideTip(); };
  picture.addEventListener("pointermove", (event) => {
    const k = Math.floor((event.clientX - picture.getBoundingClientRect().left - left) / column);
    if (k < 0 || k >= count) return leave();
    go(k);
    return showTip(stepInWords(row, k), event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    const now = Number(picture.getAttribute("aria-valuenow"));
    const next = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0, End: count - 1, PageUp: now + 10, PageDown: now - 10 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const k = clamp(next, 0, count - 1);
    go(k);
    showTipAt(mark, stepInWords(row, k));
  });
}

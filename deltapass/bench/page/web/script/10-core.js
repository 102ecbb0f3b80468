// Elements, scales and the tip. Texts are set as text alone: nothing of a record becomes markup.
const DATA = JSON.parse(document.getElementById("data").textContent);

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  return dressed(made, attributes, children);
}

function svg(kind, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  return dressed(made, attributes, children);
}

function dressed(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const text = (x, y, words, attributes = {}) => svg("text", { x, y, ...attributes }, words);

function scale(from, to, start, end) {
  const span = to - from || 1;
  return (value) => start + ((value - from) / span) * (end - start);
}

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

// Round numbers between two ends, about so many.
function ticks(from, to, about) {
  const raw = (to - from) / Math.max(1, about);
  if (!(raw > 0) || !Number.isFinite(raw)) return [from];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to + step * 1e-9; k += 1) found.push(k * step);
  return found;
}

function written(value, digits = null) {
  if (value === null || value === undefined) return "–";
  const shown = digits === null ? String(Number(value.toPrecision(4))) : value.toFixed(digits);
  return shown.replace("-", "−");
}

// The least and the greatest of numbers, with room on both sides.
function extent(values, room = 0.06) {
  const known = values.filter((value) => value !== null && Number.isFinite(value));
  if (!known.length) return [0, 1];
  const low = Math.min(...known);
  const high = Math.max(...known);
  const wide = high - low || Math.abs(high) * 0.1 || 1;
  return [low - wide * room, high + wide * room];
}

const tip = document.getElementById("tip");

let anchor = null; // what the tip belongs to, where keys brought it: it follows when that scrolls

function showTip(words, x, y) {
  anchor = null;
  tip.textContent = words;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = clamp(x + 14, 10, innerWidth - box.width - 10);
  const above = y - box.height - 12;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 60 ? y + 18 : above}px`;
}

function showTipAt(target, words) {
  const box = target.getBoundingClientRect();
  showTip(words, box.left + box.width / 2, box.top);
  anchor = target;
}

function hideTip() {
  anchor = null;
  tip.hidden = true;
}

addEventListener("scroll", () => (anchor ? showTipAt(anchor, tip.textContent) : hideTip()), { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

// Draws when the width changes: texts keep their size at every width.
function drawnToWidth(place, draw) {
  let width = 0;
  const again = (force) => {
    const now = Math.floor(place.clientWidth);
    if (now > 0 && (force || now !== width)) {
      width = now;
      place.replaceChildren(draw(now));
    }
  };
  new ResizeObserver(() => again(false)).observe(place);
  again(true);
  return () => again(true);
}

// One method is marked on the whole section: chart, table, images.
function pick(section, row) {
  section.dispatchEvent(new CustomEvent("pick", { detail: row }));
}

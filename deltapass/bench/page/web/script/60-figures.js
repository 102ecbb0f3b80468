// Further figures: curves, or a map of numbers.
const STOPS = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
const DASHES = [null, "7 4", "2 3", "9 3 2 3"];

function shade(share) {
  const place = clamp(share, 0, 1) * (STOPS.length - 1);
  const k = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[k].map((value, c) => Math.round(value + (STOPS[k + 1][c] - value) * (place - k)));
}

function figureOf(figure, width) {
  return figure.grid.length ? gridOf(figure, width) : curvesOf(figure, width);
}

function frameOf(figure, width, height, room, [left, right, low, high], at) {
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${figure.title}: ${figure.yTitle} over ${figure.xTitle}; the numbers are below` });
  for (const value of ticks(low, high, 5)) {
    picture.append(
      svg("line", { class: "grid-line", x1: room.left, x2: width - room.right, y1: at.y(value), y2: at.y(value) }),
      text(room.left - 7, at.y(value) + 4, written(value), { "text-anchor": "end" }),
    );
  }
  for (const value of ticks(left, right, width < 420 ? 4 : 7)) {
    picture.append(text(at.x(value), height - room.bottom + 17, written(value), { "text-anchor": "middle" }));
  }
  picture.append(
    text(0, 12, figure.yTitle, { class: "title" }),
    text((room.left + width - room.right) / 2, height - 6, figure.xTitle, { "text-anchor": "middle", class: "title" }),
  );
  return picture;
}

function curvesOf(figure, width) {
  const height = clamp(width * 0.6, 240, 380);
  const room = { left: 46, right: 12, top: 24, bottom: 40 };
  const known = figure.series.flatMap((each) => [...each.y, ...each.low, ...each.high]);
  const [low, high] = extent(known, 0.05);
  const [left, right] = extent(figure.series.flatMap((each) => each.x), 0.01);
  const at = { x: scale(left, right, room.left, width - room.right), y: scale(low, high, height - room.bottom, room.top) };
  const picture = frameOf(figure, width, height, room, [left, right, low, high], at);
  const points = (xs, ys) => xs.map((x, k) => (x === null || ys[k] === null ? null : `${at.x(x)},${at.y(ys[k])}`)).filter(Boolean);
  figure.series.forEach((each, k) => {
    const kind = `c${k % 6}`;
    if (each.low.length && each.high.length) {
      picture.append(svg("polygon", { class: `area ${kind}`, points: [...points(each.x, each.high), ...points(each.x, each.low).reverse()].join(" ") }));
    }
    picture.append(svg("polyline", { class: `line ${kind}`, points: points(each.x, each.y).join(" "), "stroke-dasharray": DASHES[k % DASHES.length] }));
  });
  watchCurves(picture, figure, at, width, height, room);
  const legend = element("ul", { class: "legend" }, ...figure.series.map((each, k) => element("li", {},
    svg("svg", { viewBox: "0 0 22 12", "aria-hidden": "true" }, svg("path", { class: `line c${k % 6}`, d: "M0 6H22", "stroke-dasharray": DASHES[k % DASHES.length] })), each.name)));
  return element("div", {}, picture, figure.series.length > 1 ? legend : null);
}

function watchCurves(picture, figure, at, width, height, room) {
  const cross = svg("line", { class: "cross", y1: room.top, y2: height - room.bottom, visibility: "hidden" });
  picture.append(cross);
  const xs = [...new Set(figure.series.flatMap((each) => each.x))].filter((x) => x !== null);
  picture.addEventListener("pointermove", (event) => {
    const here = event.clientX - picture.getBoundingClientRect().left;
    const x = xs.reduce((best, each) => (Math.abs(at.x(each) - here) < Math.abs(at.x(best) - here) ? each : best), xs[0]);
    cross.setAttribute("x1", at.x(x));
    cross.setAttribute("x2", at.x(x));
    cross.setAttribute("visibility", "visible");
    const lines = figure.series.filter((each) => each.x.includes(x)).map((each) => `${each.name}: ${written(each.y[each.x.indexOf(x)])}`);
    showTip([`${figure.xTitle} ${written(x)}`, ...lines].join("\n"), event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); hideTip(); });
}

function gridOf(figure, width) {
  const [rows, columns] = [figure.grid.length, Math.max(...figure.grid.map((line) => line.length))];
  const height = clamp(width * 0.6, 240, 380);
  const room = { left: 40, right: 62, top: 24, bottom: 40 };
  const at = { x: scale(-0.5, columns - 0.5, room.left, width - room.right), y: scale(-0.5, rows - 0.5, height - room.bottom, room.top) };
  const known = figure.grid.flat().filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const picture = frameOf(figure, width, height, room, [-0.5, columns - 0.5, -0.5, rows - 0.5], at);
  const [wide, tall] = [width - room.left - room.right, height - room.top - room.bottom];
  const missing = `missing-${Math.random().toString(36).slice(2)}`;
  picture.append(
    svg("defs", {}, svg("pattern", { id: missing, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, svg("path", { class: "nothing", d: "M0 6L6 0" }))),
    svg("rect", { x: room.left, y: room.top, width: wide, height: tall, fill: `url(#${missing})` }),
    svg("image", { x: room.left, y: room.top, width: wide, height: tall, href: painted(figure.grid, columns, low, high), preserveAspectRatio: "none", class: "map" }),
  );
  drawRamp(picture, width - room.right + 12, room.top, tall, low, high);
  const cell = svg("rect", { class: "cell", width: wide / columns, height: tall / rows, visibility: "hidden" });
  picture.append(cell);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left - room.left) / wide) * columns);
    const line = rows - 1 - Math.floor(((event.clientY - box.top - room.top) / tall) * rows);
    const inside = column >= 0 && column < columns && line >= 0 && line < rows;
    cell.setAttribute("visibility", inside ? "visible" : "hidden");
    if (!inside) return hideTip();
    cell.setAttribute("x", at.x(column - 0.5));
    cell.setAttribute("y", at.y(line + 0.5));
    const value = figure.grid[line][column];
    return showTip(`${figure.xTitle} ${column}, ${figure.yTitle} ${line}\n${value === null || value === undefined ? "nothing" : written(value)}`, event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", () => { cell.setAttribute("visibility", "hidden"); hideTip(); });
  return picture;
}

// A pixel a cell, the first row at the bottom; enlarged sharply.
function painted(grid, columns, low, high) {
  const canvas = element("canvas", { width: columns, height: grid.length });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, grid.length);
  grid.forEach((line, k) => line.forEach((value, column) => {
    if (value === null) return;
    const place = ((grid.length - 1 - k) * columns + column) * 4;
    pixels.data.set([...shade((value - low) / (high - low || 1)), 255], place);
  }));
  context.putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

function drawRamp(picture, x, top, tall, low, high) {
  for (let k = 0; k < 40; k += 1) {
    const [r, g, b] = shade(1 - k / 39);
    picture.append(svg("rect", { x, y: top + (k * tall) / 40, width: 12, height: tall / 40 + 0.6, fill: `rgb(${r} ${g} ${b})` }));
  }
  picture.append(text(x + 17, top + 10, written(high, 2)), text(x + 17, top + tall, written(low, 2)));
}

// Made when opened: a map may have thousands.
function numbersOf(figure) {
  const table = element("table", { class: "plain" });
  const head = element("tr", {});
  if (figure.grid.length) {
    head.append(element("th", { scope: "col" }, `${figure.yTitle} / ${figure.xTitle}`));
    figure.grid[0].forEach((_, k) => head.append(element("th", { scope: "col" }, String(k))));
    table.append(element("thead", {}, head), element("tbody", {}, ...figure.grid.map((line, k) => element("tr", {},
      element("th", { scope: "row" }, String(k)), ...line.map((value) => element("td", {}, written(value)))))));
    return table;
  }
  const xs = [...new Set(figure.series.flatMap((each) => each.x))];
  head.append(element("th", { scope: "col" }, figure.xTitle), ...figure.series.map((each) => element("th", { scope: "col" }, each.name)));
  table.append(element("thead", {}, head), element("tbody", {}, ...xs.map((x) => element("tr", {},
    element("th", { scope: "row" }, written(x)), ...figure.series.map((each) => element("td", {}, written(each.y[each.x.indexOf(x)])))))));
  return table;
}

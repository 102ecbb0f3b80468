// Time against quality: plain steps as a curve, the front, intervals both ways.
function pareto(section, data, chosen, width) {
  const measure = data.measures.find((each) => each.name === chosen.measure);
  const rows = data.rows
    .filter((row) => row.costs[chosen.cost] && row.values[measure.name])
    .map((row) => ({ row, x: row.costs[chosen.cost], y: row.values[measure.name] }))
    .sort((a, b) => a.x[0] - b.x[0]);
  if (rows.length < 2) return element("p", { class: "soft" }, "Too few methods have both this measure and this time.");
  const small = width < 560;
  const room = { left: 50, right: small ? 12 : 26, top: 46, bottom: 50 };
  const height = Math.round(clamp(width * 0.58, 330, 520));
  const ends = rows.flatMap(({ y }) => y).concat(measure.floor || []);
  const [low, high] = extent(ends, 0.07);
  const [left, right] = extent(rows.flatMap(({ x }) => x), 0.07);
  const at = {
    x: scale(left, right, room.left, width - room.right),
    y: scale(low, high, height - room.bottom, room.top),
    box: { left: room.left, right: width - room.right, top: room.top, bottom: height - room.bottom },
  };
  const picture = svg("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `${measure.title} against ${titleOfCost(data, chosen.cost)}; ${rows.length} methods, the quickest first`,
  });
  drawCorner(picture, at, measure, small);
  drawAxes(picture, data, at, measure, chosen, [left, right, low, high], small);
  data.curves.forEach((names) => drawPlainCurve(picture, at, rows, names));
  drawFront(picture, at, rows, data.fronts[chosen.cost][measure.name]);
  drawPoints(picture, section, data, at, rows, measure, chosen);
  return picture;
}

const titleOfCost = (data, cost) => data.costs.find((each) => each.name === cost).title.toLowerCase();

function drawCorner(picture, at, measure, small) {
  const { left, right, top, bottom } = at.box;
  const identity = `corner-${Math.random().toString(36).slice(2)}`;
  const y = measure.higher ? top : bottom;
  picture.append(
    svg("defs", {}, svg("radialGradient", { id: identity, gradientUnits: "userSpaceOnUse", cx: left, cy: y, r: Math.min(right - left, bottom - top) * 0.55 },
      svg("stop", { offset: 0, "stop-color": "var(--better)", "stop-opacity": 0.2 }),
      svg("stop", { offset: 1, "stop-color": "var(--better)", "stop-opacity": 0 }))),
    svg("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: `url(#${identity})` }),
    text(left + 10, measure.higher ? top + 18 : bottom - 10, `${measure.higher ? "↖" : "↙"} best corner${small ? "" : ": quick and good"}`, { class: "better" }),
  );
}

function drawAxes(picture, data, at, measure, chosen, [left, right, low, high], small) {
  const { box } = at;
  for (const value of ticks(low, high, 6)) {
    picture.append(
      svg("line", { class: "grid-line", x1: box.left, x2: box.right, y1: at.y(value), y2: at.y(value) }),
      text(box.left - 8, at.y(value) + 4, written(value), { "text-anchor": "end" }),
    );
  }
  for (const value of ticks(left, right, small ? 4 : 8)) {
    picture.append(text(at.x(value), box.bottom + 18, `${written(value * 100)} %`, { "text-anchor": "middle" }));
  }
  // The same axis as speed-ups, above.
  let last = Infinity;
  for (const value of [1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20]) {
    const x = at.x(1 / value);
    if (x < box.left || x > box.right || last - x < 40) continue;
    last = x;
    picture.append(
      svg("line", { class: "grid-line", x1: x, x2: x, y1: box.top, y2: box.bottom }),
      text(x, box.top - 8, `${value}×`, { "text-anchor": "middle" }),
    );
  }
  picture.append(
    svg("line", { class: "axis-line", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    text(box.left - 44, 14, `${measure.title} · ${measure.higher ? "higher" : "lower"} is better`, { class: "title" }),
    text(box.right, 14, small ? "" : "speed-up", { "text-anchor": "end" }),
    text((box.left + box.right) / 2, box.bottom + 40, `${titleOfCost(data, chosen.cost)}, of the reference's`, { "text-anchor": "middle", class: "title" }),
  );
  if (measure.floor && measure.floor[0] >= low && measure.floor[0] <= high) {
    const y = at.y(measure.floor[0]);
    picture.append(
      svg("line", { class: "floor", x1: box.left, x2: box.right, y1: y, y2: y }),
      text(box.right - 4, y + (measure.higher ? -6 : 15), "real images against real ones", { "text-anchor": "end" }),
    );
  }
}

function drawPlainCurve(picture, at, rows, names) {
  const plain = rows.filter(({ row }) => names.includes(row.name));
  if (plain.length < 2) return;
  const up = plain.map(({ x, y }) => `${at.x(x[0])},${at.y(y[2])}`);
  const down = plain.map(({ x, y }) => `${at.x(x[0])},${at.y(y[1])}`).reverse();
  picture.append(
    svg("polygon", { class: "band", points: [...up, ...down].join(" ") }),
    svg("polyline", { class: "curve", points: plain.map(({ x, y }) => `${at.x(x[0])},${at.y(y[0])}`).join(" ") }),
  );
}

function drawFront(picture, at, rows, names) {
  const found = names.map((name) => rows.find(({ row }) => row.name === name)).filter(Boolean);
  if (found.length < 2) return;
  const steps = found.map(({ x, y }, k) => (k ? `H${at.x(x[0])}V${at.y(y[0])}` : `M${at.x(x[0])} ${at.y(y[0])}`));
  picture.append(svg("path", { class: "front", d: steps.join("") }));
}

function drawPoints(picture, section, data, at, rows, measure, chosen) {
  const places = rows.map(({ x, y }) => ({ x: at.x(x[0]), y: at.y(y[0]) }));
  const whiskers = svg("g", {});
  const taken = places.map(({ x, y }) => [x - 7, y - 7, x + 7, y + 7]);
  const points = rows.map(({ row, x, y }, k) => {
    const place = places[k];
    whiskers.append(svg("path", {
      class: `whisker as-${row.kind}`,
      d: `M${at.x(x[1])} ${place.y}H${at.x(x[2])}M${place.x} ${at.y(y[1])}V${at.y(y[2])}`,
    }));
    const words = wordsOf(row, measure, chosen);
    const point = svg("g", {
      class: `point ${row.kind} as-${row.kind}${row.stable[chosen.cost] ? "" : " hollow"}`, "data-row": row.name,
      role: "button", "aria-pressed": "false", tabindex: k ? -1 : 0, "aria-label": words.replaceAll("\n", ", "),
    }, svg("circle", { class: "halo", cx: place.x, cy: place.y, r: 11 }), markOf(row.kind, place));
    const label = labelAt(place, row.label, at.box, taken);
    if (label) point.append(label);
    point.addEventListener("pointerenter", (event) => showTip(words, event.clientX, event.clientY));
    point.addEventListener("pointerleave", hideTip);
    point.addEventListener("focus", () => { if (point.matches(":focus-visible")) showTipAt(one(".halo", point), words); });
    point.addEventListener("blur", hideTip);
    point.addEventListener("click", () => pick(section, row.name));
    return point;
  });
  picture.append(whiskers, ...points);
  const marked = section.dataset.picked;
  points.forEach((point) => markPoint(point, marked));
  picture.addEventListener("keydown", (event) => {
    const here = points.indexOf(document.activeElement);
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (here < 0) return;
    if (event.key === "Enter" || event.key === " ") pick(section, rows[here].row.name);
    else if (move) {
      const next = points[clamp(here + move, 0, points.length - 1)];
      points.forEach((point) => point.setAttribute("tabindex", point === next ? 0 : -1));
      next.focus();
    } else return;
    event.preventDefault();
  });
}

function markPoint(point, name) {
  const here = point.dataset.row === name;
  point.classList.toggle("picked", here);
  point.setAttribute("aria-pressed", String(here));
}

function wordsOf(row, measure, chosen) {
  const [value, low, high] = row.values[measure.name];
  const quick = row.speedups[chosen.cost];
  const lines = [
    row.label,
    `${written(quick, 2)}× ${row.seconds[chosen.cost] === "–" ? "" : `(${row.seconds[chosen.cost]})`}`.trim(),
    `${measure.title}: ${written(value, measure.digits)} (${written(low, measure.digits)} to ${written(high, measure.digits)})`,
  ];
  const states = row.equalTime && row.against[row.equalTime];
  if (states && states[measure.name]) lines.push(`${states[measure.name][0]} against fewer steps of no less time`);
  if (!row.stable[chosen.cost]) lines.push("time inconclusive");
  return lines.join("\n");
}

function markOf(kind, { x, y }) {
  if (kind === "cache") return svg("path", { class: "mark", d: `M${x} ${y - 7.5}L${x + 7.5} ${y}L${x} ${y + 7.5}L${x - 7.5} ${y}Z` });
  if (kind === "rival") return svg("rect", { class: "mark", x: x - 5.5, y: y - 5.5, width: 11, height: 11 });
  return svg("circle", { class: "mark", cx: x, cy: y, r: kind === "plain" ? 6.5 : 5 });
}

// The first free place beside a point; none where all are taken: the tip and the table have the name.
function labelAt({ x, y }, words, box, taken) {
  const shown = words.length > 30 ? `${words.slice(0, 29)}…` : words;
  const wide = shown.length * 6.7;
  const offers = [[11, 4, "start"], [-11, 4, "end"], [0, -13, "middle"], [0, 22, "middle"], [9, -9, "start"], [9, 17, "start"], [-9, -9, "end"], [-9, 17, "end"]];
  for (const [dx, dy, anchor] of offers) {
    const start = x + dx - (anchor === "end" ? wide : anchor === "middle" ? wide / 2 : 0);
    const spot = [start, y + dy - 11, start + wide, y + dy + 3];
    const inside = spot[0] >= box.left && spot[2] <= box.right + 8 && spot[1] >= box.top && spot[3] <= box.bottom;
    if (!inside || taken.some((other) => overlaps(spot, other))) continue;
    taken.push(spot);
    return text(x + dx, y + dy, shown, { class: "name", "text-anchor": anchor });
  }
  return null;
}

const overlaps = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

// A group of bars a method: end to end, denoiser, one call, each over the reference's.
function times(data, width) {
  const kinds = data.costs.filter((cost) => cost.name !== "macs");
  const rows = data.rows.filter((row) => kinds.some((kind) => row.costs[kind.name]));
  const small = width < 560;
  const names = small ? 0 : Math.min(230, width * 0.32);
  const bar = 9;
  const group = kinds.length * (bar + 3) + (small ? 30 : 16);
  const top = 24 + (small ? kinds.length * 18 : 22);
  const height = top + rows.length * group + 8;
  const most = Math.max(1, ...rows.flatMap((row) => kinds.map((kind) => (row.costs[kind.name] || [0, 0, 0])[2])));
  const x = scale(0, most, names, width - 62);
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Times of ${rows.length} methods over the reference's; the table above has the numbers` });
  kinds.forEach((kind, k) => {
    const left = small ? 0 : names + k * 172;
    const down = small ? 10 + k * 18 : 10;
    picture.append(
      svg("rect", { class: `bar ${["", "second", "third"][k]}`, x: left, y: down - 8, width: 14, height: 9 }),
      text(left + 20, down, kind.title),
    );
  });
  for (const value of ticks(0, most, small ? 4 : 8)) {
    picture.append(
      svg("line", { class: "grid-line", x1: x(value), x2: x(value), y1: top - 4, y2: height }),
      text(x(value), top - 9, `${written(value * 100)} %`, { "text-anchor": value === 0 && small ? "start" : "middle" }),
    );
  }
  rows.forEach((row, k) => {
    const y = top + k * group + (small ? 22 : 6);
    const words = row.label.length > (small ? 44 : 32) ? `${row.label.slice(0, small ? 43 : 31)}…` : row.label;
    picture.append(small ? text(0, y - 6, words, { class: "name" }) : text(names - 12, y + (kinds.length * (bar + 3)) / 2 + 2, words, { class: "name", "text-anchor": "end" }));
    const groupOf = svg("g", { class: `as-${row.kind}` });
    kinds.forEach((kind, j) => {
      const cost = row.costs[kind.name];
      if (!cost) return;
      const down = y + j * (bar + 3);
      groupOf.append(
        svg("rect", { class: `bar ${["", "second", "third"][j]}`, x: names, y: down, width: Math.max(0, x(cost[0]) - names), height: bar, rx: 2 }),
        svg("path", { class: "whisker", d: `M${x(cost[1])} ${down + bar / 2}H${x(cost[2])}` }),
      );
      if (j === 0) groupOf.append(text(Math.max(x(cost[2]), x(cost[0])) + 7, down + bar, `${written(row.speedups[kind.name], 2)}×`, { class: "name" }));
    });
    picture.append(groupOf);
  });
  return picture;
}

// The table: sorting, groups of columns, states against another row.
function startTable(section, data) {
  const table = one("table.rows", section);
  const body = one("tbody", table);
  const heads = all("thead th", table);
  const status = element("p", { class: "unseen", role: "status" });
  table.parentElement.after(status);
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = head.dataset.good === "high" ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sortRows(body, column, order === "ascending" ? 1 : -1);
      status.textContent = `Sorted by ${button.textContent}, ${order}`;
    });
  });
  startGroups(section, table);
  startStates(section, table, data);
  const mark = () => all("tr[data-row]", table).forEach((row) => row.classList.toggle("picked", row.dataset.row === section.dataset.picked));
  section.addEventListener("picked", mark);
}

// Rows without a value stay last, whichever way.
function sortRows(body, column, way) {
  const key = (row) => row.children[column].dataset.key;
  const compared = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const difference = Number(x) - Number(y);
    return way * (Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference);
  };
  body.append(...[...body.children].sort(compared));
}

function startGroups(section, table) {
  const controls = one(".methods .controls", section);
  controls.hidden = false;
  const settle = () => {
    for (const box of all("input[type=checkbox]", controls)) {
      all(`[data-group="${box.value}"]`, table).forEach((cell) => { cell.hidden = !box.checked; });
    }
  };
  controls.addEventListener("change", settle);
  settle();
}

function startStates(section, table, data) {
  const select = one("select.against", section);
  if (!select) return;
  select.addEventListener("change", () => {
    for (const row of data.rows) {
      const states = row.against[select.value || row.equalTime] || {};
      for (const cell of all("td[data-measure]", one(`tr[data-row="${CSS.escape(row.name)}"]`, table))) {
        const found = states[cell.dataset.measure];
        one(".state", cell).replaceChildren(...(found ? [chip(data, ...found)] : []));
      }
    }
  });
}

function chip(data, verdict, words) {
  return element("span", { class: `chip ${verdict}` }, element("i", { "aria-hidden": "true" }, data.marks[verdict]), ` ${verdict} `, element("small", {}, words));
}

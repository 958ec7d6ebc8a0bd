"use strict";
// Every column of a table sorts, by a button in its head; numbers and intervals by their (first) number, blanks last.
const NUMBER = /^\[?([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:,.*\])?$/i;

function sort(table, head) {
  const column = head.cellIndex, body = table.tBodies[0];
  const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  const rows = [...body.rows].map(row => ({ row, text: row.cells[column].textContent }));
  const numeric = rows.every(each => each.text === "" || NUMBER.test(each.text));
  const value = each => numeric ? Number(each.text.match(NUMBER)[1]) : each.text;
  const compare = (a, b) => numeric ? value(a) - value(b) : a.text.localeCompare(b.text, "en", { numeric: true });
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => (a.text === "") - (b.text === "") || (a.text === "" ? 0 : sign * compare(a, b)));
  body.append(...rows.map(each => each.row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}

const form = document.getElementById("filter");
if (form) {
  const rows = [...document.getElementById("claims-table").tBodies[0].rows];
  const selects = [...form.querySelectorAll("select")];
  const filter = () => {
    for (const row of rows) {
      row.hidden = !selects.every(s => s.value === "" || row.cells[s.dataset.column].textContent === s.value);
    }
    form.querySelector("output").textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} claims`;
  };
  form.addEventListener("change", filter);
  form.hidden = false;
  filter();
}

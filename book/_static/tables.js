// A table that is wider than its page has its rows as cards (book.css), whose cells name their columns.
const TABLES = "article :is(table.table, .claims > table, .output > .table-wrap > table)";
const NOTHING = ["", "–"]; // a card leaves such cells out

function fit(table) {
  table.classList.remove("cards");
  table.classList.toggle("cards", table.scrollWidth > table.parentElement.clientWidth + 1);
  const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
  for (const cell of table.querySelectorAll("tbody td")) {
    if (!NOTHING.includes(cell.textContent.trim())) cell.dataset.head = heads[cell.cellIndex];
  }
}

for (const event of ["load", "resize"]) {
  window.addEventListener(event, () => document.querySelectorAll(TABLES).forEach(fit));
}

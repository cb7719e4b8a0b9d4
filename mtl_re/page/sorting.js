// Sorts a table of the page by the column whose head is pressed, and the other way round when it is pressed again.
// Runs once for the component (`element`), and serves every table that is shown in it later. Rows that are equal keep
// their order; numbers are compared as numbers.
element.addEventListener("click", (event) => {
  const head = event.target.closest(".re-table th");
  if (!head) return;
  const column = head.cellIndex;
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  const body = head.closest("table").tBodies[0];
  const key = (row) => row.cells[column].innerText.trim();
  const isNumber = [...body.rows].every((row) => !Number.isNaN(Number(key(row))));
  const compare = (a, b) => (isNumber ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b), "ko"));
  const sorted = [...body.rows].sort((a, b) => (ascending ? compare(a, b) : compare(b, a)));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  body.append(...sorted);
});

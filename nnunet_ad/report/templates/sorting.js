"use strict";
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const [x, y] = [a.cells[column].dataset, b.cells[column].dataset];
      if ("none" in x || "none" in y) return ("none" in x) - ("none" in y);
      const order = "number" in x ? x.number - y.number
        : a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, { numeric: true });
      return descending ? -order : order;
    });
    body.append(...rows);
  });
}

// Tables that sort when a heading is clicked: ascending, descending, then the order of the file again.
"use strict";

(() => {
  // Numbers sort by value ("93.80 ± 0.41" by 93.80), anything else as text; empty cells always come last.
  function key(cell) {
    const text = cell.textContent.trim();
    const number = parseFloat(text.replace("−", "-").replace(/^[<>≤≥+]/, ""));
    return { empty: text === "" || text === "–", number, text: text.toLowerCase() };
  }

  function compare(a, b, direction) {
    if (a.empty || b.empty) return a.empty - b.empty;
    const numeric = !Number.isNaN(a.number) && !Number.isNaN(b.number);
    const order = numeric ? a.number - b.number : a.text.localeCompare(b.text);
    return direction * order;
  }

  // A cell that spans rows belongs to each of them, so each row gets its own copy before rows move.
  function expandRows(body) {
    const open = []; // column -> {cell, rows still to fill}
    for (const row of body.rows) {
      const cells = [...row.cells];
      let column = 0;
      let reference = 0;
      while (reference < cells.length || open[column]?.left > 0) {
        if (open[column]?.left > 0) {
          const copy = open[column].cell.cloneNode(true);
          copy.removeAttribute("id");
          row.insertBefore(copy, cells[reference] || null);
          open[column].left -= 1;
        } else {
          const cell = cells[reference];
          reference += 1;
          open[column] = { cell, left: cell.rowSpan - 1 };
          cell.rowSpan = 1;
        }
        column += 1;
      }
    }
  }

  // The heading of each column: the lowest cell above it that has a text and spans no other column.
  function headings(head) {
    const found = [];
    for (const row of head.rows) {
      let column = 0;
      for (const cell of row.cells) {
        if (cell.colSpan === 1 && cell.textContent.trim()) found[column] = cell;
        column += cell.colSpan;
      }
    }
    return found;
  }

  function makeSortable(table) {
    const body = table.tBodies[0];
    if (!table.tHead || !body || body.rows.length < 2) return;
    expandRows(body);
    for (const cell of body.querySelectorAll("td")) {
      if (Number.isNaN(key(cell).number) && !key(cell).empty) cell.classList.add("text");
      if (cell.textContent.length > 40) cell.classList.add("long");
    }
    // Rows of means are about the other rows and stay below them.
    const summary = (row) => /^(mean|average|all)\b/i.test(row.cells[0].textContent.trim());
    const rows = [...body.rows].filter((row) => !summary(row));
    const last = [...body.rows].filter(summary);
    const columns = headings(table.tHead);
    columns.forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" };
        const order = next[cell.getAttribute("aria-sort") || "none"];
        columns.forEach((other) => other.removeAttribute("aria-sort"));
        if (order !== "none") cell.setAttribute("aria-sort", order);
        const direction = order === "descending" ? -1 : 1;
        const keyed = rows.map((row) => [row, key(row.cells[column])]);
        if (order !== "none") keyed.sort((a, b) => compare(a[1], b[1], direction));
        body.append(...keyed.map(([row]) => row), ...last);
      });
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("table.adlib, table.sortable").forEach(makeSortable);
  });
})();

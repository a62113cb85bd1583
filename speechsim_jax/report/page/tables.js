// Tables: built from rows, sorted by a click on a heading.

// heads: texts; rows: of texts and numbers; `numeric` tells which columns are aligned on the right,
// `named` that the first one names its row.
function makeTable(heads, rows, {numeric = () => true, write = String, named = false} = {}) {
  const css = (column) => ({class: numeric(column) ? "number" : false});
  const head = heads.map((text, k) => element("th", {scope: "col", ...css(k)}, text));
  const cell = (value, k) => (named && !k
    ? element("th", {scope: "row"}, write(value, k)) : element("td", css(k), write(value, k)));
  const body = rows.map((row) => element("tr", {}, ...row.map(cell)));
  return element("table", {},
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
}

function scrolling(table, tall = false) {
  return element("div", {class: tall ? "wide tall" : "wide", tabindex: "0"}, table);
}

// Let a click on a heading sort the rows by that column; in columns of numbers, texts come last.
function sortable(table) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => {
    const sort = () => {
      const rising = head.getAttribute("aria-sort") === "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sortRows(table, column, rising ? 1 : -1);
    };
    head.replaceChildren(element("button", {type: "button", onclick: sort}, head.textContent));
  });
}

function sortRows(table, column, sign) {
  const body = table.tBodies[0];
  const text = (row) => row.cells[column].textContent;
  const numbers = head(table, column).classList.contains("number");
  const compare = (a, b) => {
    if (!numbers) return sign * text(a).localeCompare(text(b), undefined, {numeric: true});
    const [u, v] = [Number(text(a)), Number(text(b))];
    if (Number.isNaN(u) || Number.isNaN(v)) return Number.isNaN(u) - Number.isNaN(v);
    return sign * (u - v);
  };
  body.append(...[...body.rows].sort(compare));
}

const head = (table, column) => table.tHead.rows[0].cells[column];

// The texts of a table, for a file.
function tableRows(table) {
  const texts = (row) => [...row.cells].map((cell) => cell.textContent);
  return [texts(table.tHead.rows[0]), ...[...table.tBodies[0].rows].map(texts)];
}

// Sorting, filtering and CSV files of the site's tables. No library, no request: data is in the page.
"use strict";

const count = (n) => n.toLocaleString("en");
const numeric = (text) => text !== "" && !Number.isNaN(Number(text));

// Numbers by size ("0.903 [0.891, 0.913]" and "(1,987" count as numbers), words by letter; what is empty comes last.
function compare(a, b, down) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const size = (text) => (/^[(+-]?\.?\d/.test(text) ? parseFloat(text.replace(/^[(+]/, "").replace(/(\d),(?=\d{3})/g, "$1")) : NaN);
  const difference = size(a) - size(b);
  const order = Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference;
  return down ? -order : order;
}

// One button per column header; `sort(column, down)` orders the rows.
function sortable(table, sort) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(column, down);
    });
  });
}

function sortInPlace(table) {
  const body = table.tBodies[0];
  sortable(table, (column, down) => {
    const rows = [...body.rows].map((row) => [row.cells[column].textContent.trim(), row]);
    rows.sort((a, b) => compare(a[0], b[0], down));
    body.append(...rows.map((pair) => pair[1]));
  });
}

function parse(text) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c !== '"') cell += c;
      else if (text[i + 1] === '"') { cell += c; i++; }
      else quoted = false;
    } else if (c === '"') quoted = true;
    else if (c === ",") { row.push(cell); cell = ""; }
    else if (c === "\n") { row.push(cell); rows.push(row); row = []; cell = ""; }
    else if (c !== "\r") cell += c;
  }
  if (cell !== "" || row.length) { row.push(cell); rows.push(row); }
  return rows;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function offer(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// A table whose rows are packed in the page: sorted and filtered as a whole, shown in part.
async function browse(table, packed) {
  const text = await unpack(packed.textContent);
  const [header, ...rows] = parse(text);
  const numbers = header.map((_, i) => rows.every((row) => row[i] === "" || numeric(row[i])));
  const step = 200, body = table.tBodies[0];
  const [filter, more, save, said] = ["filter", "more", "save", "said"].map((id) => document.getElementById(id));
  let limit = body.rows.length, chosen = rows;

  function show() {
    const parts = document.createDocumentFragment();
    for (const row of chosen.slice(0, limit)) {
      const line = document.createElement("tr");
      row.forEach((cell, i) => {
        const box = document.createElement("td");
        if (numbers[i]) box.className = "number";
        box.textContent = cell;
        line.append(box);
      });
      parts.append(line);
    }
    body.replaceChildren(parts);
    const shown = Math.min(limit, chosen.length);
    said.textContent = `${count(shown)} of ${count(chosen.length)} rows shown` + (chosen.length < rows.length ? ` (${count(rows.length)} in all)` : "");
    more.hidden = shown === chosen.length;
  }

  function narrow() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    chosen = rows.filter((row) => {
      const line = row.join(" ").toLowerCase();
      return words.every((word) => line.includes(word));
    });
    show();
  }

  sortable(table, (column, down) => {
    rows.sort((a, b) => compare(a[column], b[column], down));
    narrow();
  });
  filter.addEventListener("input", narrow);
  more.addEventListener("click", () => { limit += step; show(); });
  if (save) save.addEventListener("click", () => offer(text, save.dataset.name));
  document.getElementById("tools").hidden = false;
  show();
}

for (const table of document.querySelectorAll("table[data-sort]")) {
  const packed = document.getElementById("packed");
  if (packed && table.id === "sheet") browse(table, packed);
  else sortInPlace(table);
}

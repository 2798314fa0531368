// Sorting, filtering, copying. Without it the page shows the same.
"use strict";
document.documentElement.classList.add("js");

function copied(button) {
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}

function copyBySelection(element) {
  const selection = getSelection();
  selection.selectAllChildren(element);
  const done = document.execCommand("copy");
  selection.removeAllRanges();
  return done;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  const text = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(text.textContent);
    copied(button);
  } catch {
    if (copyBySelection(text)) copied(button);
  }
});

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const own = cell.dataset.v ?? cell.textContent.trim();
    const number = Number(own);
    return own === "" || own === "—" || own === "not run" ? null : Number.isNaN(number) ? own : number;
  };
  const order = (a, b, up) => {
    if (a === null || b === null) return (a === null) - (b === null); // what was not measured comes last either way
    const less = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
    return up ? less : -less;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const numbers = head.classList.contains("number");
      const now = head.getAttribute("aria-sort");
      const up = now === "none" ? !numbers : now === "descending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? (up ? "ascending" : "descending") : "none"));
      const rows = [...body.rows].filter((row) => row.classList.contains("layer"));
      const pairs = rows.map((row) => [keyOf(row, column), row, row.nextElementSibling]);
      pairs.sort(([a], [b]) => order(a, b, up));
      body.append(...pairs.flatMap(([, row, detail]) => (detail?.classList.contains("detail") ? [row, detail] : [row])));
    });
  });
}

function filterable(table, controls) {
  const rows = [...table.tBodies[0].rows].filter((row) => row.classList.contains("layer"));
  const texts = rows.map((row) => (row.textContent + " " + [...row.querySelectorAll("[title]")].map((element) => element.title).join(" ")).toLowerCase());
  const input = controls.querySelector("input");
  const buttons = [...controls.querySelectorAll("[data-show]")];
  const wanted = { all: () => true, int8: (row) => "int8" in row.dataset, float: (row) => !("int8" in row.dataset), found: (row) => "found" in row.dataset };
  const apply = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = wanted[buttons.find((button) => button.getAttribute("aria-pressed") === "true").dataset.show];
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !(chosen(row) && words.every((word) => texts[index].includes(word)));
      shown += !row.hidden;
    });
    controls.querySelector("#shown").textContent = shown === rows.length ? "" : `${shown} of ${rows.length} shown`;
  };
  input.addEventListener("input", apply);
  buttons.forEach((button) => button.addEventListener("click", () => {
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    apply();
  }));
  controls.hidden = false;
}

for (const table of document.querySelectorAll("table.layers")) {
  const controls = table.parentElement.querySelector(".controls");
  sortable(table);
  if (controls) filterable(table, controls);
}
for (const box of document.querySelectorAll("[data-only-differences]")) {
  box.hidden = false;
  box.querySelector("input").addEventListener("change", (event) => {
    document.querySelector("table.compare-layers").classList.toggle("same-hidden", event.target.checked);
  });
}
document.documentElement.dataset.ready = String(Math.round(performance.now()));

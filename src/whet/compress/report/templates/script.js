"use strict";
// Only comforts: sorting and filtering the candidates, explanations on a tap, everything unfolded in print.
(() => {
  const table = document.getElementById("candidates");
  const body = table && table.tBodies[0];

  const sortBy = (header, index) => {
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[index].dataset.sort ?? "";
    const rows = [...body.rows].sort((a, b) => {
      const [left, right] = [value(a), value(b)];
      if (left === "" || right === "") return (left === "") - (right === "");
      const [x, y] = [Number(left), Number(right)];
      const order = Number.isNaN(x) || Number.isNaN(y) ? left.localeCompare(right) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  };

  if (table) {
    [...table.tHead.rows[0].cells].forEach((header, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(header, index));
      header.append(button);
    });

    const tools = document.getElementById("tools");
    const [words, verdict, count] = ["words", "verdict", "count"].map((id) => document.getElementById(id));
    const filter = () => {
      const wanted = words.value.toLowerCase();
      let shown = 0;
      for (const row of body.rows) {
        const fits = (!verdict.value || row.dataset.verdict === verdict.value) && row.textContent.toLowerCase().includes(wanted);
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${body.rows.length} shown`;
    };
    tools.hidden = false;
    words.addEventListener("input", filter);
    verdict.addEventListener("change", filter);
    filter();
  }

  // A title shows under a mouse only; on a tap it is shown at the foot of the screen.
  const tip = document.getElementById("tip");
  document.addEventListener("click", (event) => {
    const about = event.target.closest("[title], g.point");
    const text = about && (about.getAttribute("title") || about.querySelector("title")?.textContent);
    tip.textContent = text || "";
    tip.hidden = !text;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });

  window.addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
  });
})();

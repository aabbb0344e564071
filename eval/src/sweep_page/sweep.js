"use strict";
// Pointing at a trial shows its other marks; a click keeps it.
let kept = null;
const marks = number => document.querySelectorAll(`[data-trial="${number}"]`);
const show = number => {
  document.querySelectorAll(".on").forEach(mark => mark.classList.remove("on"));
  document.body.classList.toggle("picked", number !== null);
  if (number !== null) marks(number).forEach(mark => mark.classList.add("on"));
};
const trialOf = event => event.target.closest("[data-trial]")?.dataset.trial ?? null;
document.addEventListener("pointerover", event => show(trialOf(event) ?? kept));
document.addEventListener("click", event => {
  if (event.target.closest("thead")) return;
  const number = trialOf(event);
  kept = number === kept ? null : number;
  show(kept);
});
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && event.target.matches("tr[data-trial]")) event.target.click();
  if (event.key === "Escape") show(kept = null);
});
// A heading sorts its column; empty cells stay last.
const table = document.getElementById("trials-table");
table.querySelectorAll("th").forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
  const down = heading.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.key;
  const compare = (a, b) => {
    if (!key(a) || !key(b)) return !key(a) - !key(b);
    const order = key(a) - key(b);
    return (Number.isNaN(order) ? key(a).localeCompare(key(b)) : order) * (down ? -1 : 1);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}));

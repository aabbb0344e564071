// Enlarges a slice's picture, and steps through all of them.
(() => {
  const figures = [...document.querySelectorAll("figure.slice")];
  const dialog = document.getElementById("enlarged");
  if (!dialog || !figures.length) return;
  const panels = dialog.querySelector(".panels");
  const what = dialog.querySelector(".what");
  let at = 0;
  const show = (index) => {
    at = (index + figures.length) % figures.length;
    // The copies use the originals' scans, which stay in the page.
    panels.replaceChildren(...figures[at].querySelector(".panels").cloneNode(true).childNodes);
    panels.querySelectorAll("[id]").forEach((copy) => copy.removeAttribute("id"));
    const caption = figures[at].querySelector("figcaption .what").textContent;
    what.textContent = `${at + 1} of ${figures.length}. ${caption}`;
  };
  figures.forEach((figure, index) => {
    figure.querySelector(".panels").addEventListener("click", () => {
      show(index);
      dialog.showModal();
    });
  });
  dialog.querySelector(".previous").addEventListener("click", () => show(at - 1));
  dialog.querySelector(".next").addEventListener("click", () => show(at + 1));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      show(at + step);
    }
  });
})();

// Shows the slice at which the slider stands.
(() => {
  const slices = [...document.querySelectorAll("template")];
  const view = document.getElementById("slice");
  const slider = document.getElementById("position");
  const said = document.querySelector("output");
  const show = () => {
    const slice = slices[slider.value];
    view.replaceChildren(slice.content.cloneNode(true));
    said.textContent = `${slice.dataset.text} (${+slider.value + 1} of ${slices.length})`;
  };
  const step = (by) => {
    slider.value = +slider.value + by;
    show();
  };
  slider.addEventListener("input", show);
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    step(Math.sign(event.deltaY));
  }, { passive: false });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowUp: 1, PageUp: 10, ArrowLeft: -1, ArrowDown: -1, PageDown: -10 }[event.key];
    if (by) {
      event.preventDefault();
      step(by);
    }
  });
  show();
})();

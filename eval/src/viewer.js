// The view in three dimensions, drawn by NiiVue once it is opened.
(() => {
  const details = document.getElementById("in-3d");
  const canvas = details.querySelector("canvas");
  const note = details.querySelector(".note");
  const bytes = (id) => document.getElementById(id).textContent;
  const load = (id, settings) => niivue.NVImage.loadFromBase64({ base64: bytes(id), name: `${id}.nii.gz`, ...settings });
  const begin = async () => {
    const view = new niivue.Niivue({ backColor: [0, 0, 0, 1], show3Dcrosshair: false, dragAndDropEnabled: false, loadingText: "", logLevel: "error" });
    await view.attachToCanvas(canvas);
    if (!view.gl) throw new Error("it has no WebGL 2");
    const colours = JSON.parse(canvas.dataset.colours);
    view.addVolume(await load("volume-scan", { colormap: "gray", opacity: 0, cal_min: 0, cal_max: 255 }));
    for (const id of ["volume-prediction", "volume-reference"]) {
      const mask = await load(id, { opacity: 0 });
      mask.setColormapLabel(colours);
      view.addVolume(mask);
    }
    view.setInterpolation(true);
    const show = () => {
      details.querySelectorAll("input[data-volume]").forEach((box) => view.setOpacity(+box.dataset.volume, box.checked ? 1 : 0));
      const slices = details.querySelector("input[value=slices]").checked;
      view.setSliceType(slices ? view.sliceTypeMultiplanar : view.sliceTypeRender);
      details.dataset.shown = [...details.querySelectorAll("input:checked")].map((box) => box.value).join(" ");
    };
    details.addEventListener("change", show);
    show();
  };
  details.addEventListener("toggle", () => {
    if (!details.open || details.dataset.begun) return;
    details.dataset.begun = "yes";
    begin().catch((error) => { note.textContent = `This browser cannot show it: ${error.message ?? error}`; });
  });
})();

"""`make parity`: compares the program with PyTorch, SciPy, nibabel, zarr-python, pyarrow, MedPy and others.

    python bench/parity.py target/release/sam-ladder

1. A checkpoint written by `torch.save`, in the layout of SAM's ViT-B at 1024 px, loads and gives the golden embeddings.
2. A store of the golden scans is read by zarr-python and pyarrow and equals what SciPy and nibabel make of the scans.
3. A trained model's export loads in PyTorch, and its masks equal PyTorch's on the stored tensors.
4. The same for two channels and three classes in nnU-Net's layout, written by nibabel.
5. The Python in `docs/how-to/` runs on a store of this run and finds what is in it.
6. nibabel and SimpleITK see the masks of `predict` on their scans, for every kind of NIfTI file.
7. Checkpoints of the whole published model load both ways, and the logits of each image agree.
8. `make weights` resumes, refuses and advises, against a server on this machine.
9. Dice and HD95 equal MedPy's on the masks that `eval` writes and nibabel reads.
10. Every metric and every rule for empty masks equals MedPy's, MONAI's and SciPy's on random and degenerate masks; tests and intervals equal SciPy's.
11. NRRD, MetaImage and .hdr/.img have the values and places that SimpleITK and nibabel read.
12. The Python package reads what the program writes, its model and the models in ONNX have the program's logits (python/tests), and the notebook runs.
"""

import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet
import torch
import xarray
import zarr
from safetensors.numpy import load_file

from torch_ladder import LadderSam

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
GOLDEN = ROOT / "tests/golden"


def run(*command):
    """Shows a command, runs it, and stops everything if it fails."""
    print("──", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True)


def expect(what, difference, bound):
    """Prints a difference and stops everything if it is too large."""
    print(f"{what}: {difference:.2e}, at most {bound:.0e}", flush=True)
    if not difference <= bound:
        sys.exit(f"parity: {what} differs by {difference:.2e}, at most {bound:.0e} was expected")


def check_encoder(folder):
    """Our encoder on PyTorch's own file, against the golden embeddings."""
    checkpoint = folder / "sam_vit_b_rule.pth"
    run(sys.executable, BENCH / "parity/make_sam_pth.py", checkpoint)
    for size in (224, 512):
        out = folder / f"embed_{size}.safetensors"
        run(ROOT / "target/release/examples/embed_golden", checkpoint, f"embed_{size}", size, out)
        ours, golden = (load_file(path)["image_embeddings"] for path in (out, GOLDEN / f"embed_{size}.safetensors"))
        expect(f"embeddings at {size}, relative", np.abs(ours - golden).max() / np.abs(golden).max(), 1e-5)
    return checkpoint


def check_export(program, store, run_folder, folder):
    """Loads the exported model into PyTorch's model with the same names, runs it on the stored tensors of a test scan, and compares with `eval`'s mask."""
    exported = run_folder / "export.pth"
    run(program, "export", "--run", run_folder, "--out", exported)
    state = torch.load(exported, weights_only=True)
    root = zarr.open_group(str(store), mode="r")
    config, test = root.attrs["config"], root["test"]
    model = LadderSam(config["image_size"], len(config["class_names"]) + 1)
    model.load_state_dict(state, strict=True)
    model.eval()
    images, embeddings = (torch.from_numpy(test[name][:, 0].astype(np.float32)) for name in ("images", "embeddings"))
    if images.ndim == 3:
        images = images[:, None]
    with torch.inference_mode():
        logits = model(images, embeddings)
        masks = torch.nn.functional.interpolate(logits, size=images.shape[-1], mode="bilinear", align_corners=False).argmax(1).numpy()
    start = compared = 0
    for name, reference in sorted(test["masks"].arrays()):
        written = nibabel.load(folder / "masks" / f"{name}.nii.gz").get_fdata().transpose(2, 1, 0)
        depth = reference.shape[0]
        if written.shape == (depth, *masks.shape[1:]):
            expect(f"case {name}: share of voxels that differ from PyTorch's", np.mean(written != masks[start : start + depth]), 1e-4)
            compared += np.unique(written).size > 1
        start += depth
    if not compared:
        sys.exit("parity: no mask with an organ in it had the network's own resolution, so nothing was compared with PyTorch")


def check_training(program, scans, folder, *precompute):
    """Makes and checks a store of these scans, a model trained on it, its evaluation and its export."""
    store, trained, evaluation = folder / "store.zarr", folder / "run", folder / "eval"
    folder.mkdir()
    run(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 0, "--image-size", 64, "--dtype", "f32",
        *precompute)  # fmt: skip
    run(sys.executable, BENCH / "parity/check_store.py", store, "--scans", scans)
    run(program, "train", "--store", store, "--run", trained, "--epochs", 60, "--batch-size", 8, "--warmup", 10)
    fold, validation = folder / "fold", folder / "validation"
    run(program, "train", "--store", store, "--run", fold, "--fold", "1/2", "--epochs", 5, "--batch-size", 8, "--warmup", 10)
    for protocol in ("published", "standard"):
        for of, out, split in ((trained, evaluation, "test"), (fold, validation, "validation")):
            run(program, "eval", "--store", store, "--run", of, "--out", out, "--split", split, "--save-nifti", "--protocol", protocol, "--force")
            run(sys.executable, BENCH / "parity/check_eval.py", "--store", store, "--eval", out, "--protocol", protocol)
    check_export(program, store, trained, evaluation)


def run_page(page, folder):
    """Runs the Python blocks of a page of `docs/how-to/`, or the cells of a notebook, one after the other, in the folder of `store.zarr`; returns the
    names that they define."""
    print("──", page, flush=True)
    text = (ROOT / "docs/how-to" / page).read_text()
    if page.endswith(".ipynb"):
        blocks = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    else:
        blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    if not blocks:
        sys.exit(f"parity: {page} has no Python to run")
    defined = {}
    with contextlib.chdir(folder):
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"{page}, block {number}", "exec"), defined)
    return defined


def check_how_tos(store):
    """Checks that every page runs and finds what the arrays hold, read in the plainest way."""
    root = zarr.open_group(str(store), mode="r")
    table = pyarrow.parquet.read_table(store / "train/slices.parquet").to_pylist()
    spacing = [f"spacing_{axis}_mm" for axis in ("depth", "height", "width")]
    liver_ml = collections.Counter()
    for row in table:
        liver_ml[row["case"]] += row["voxels_liver"] * np.prod([row[name] for name in spacing]) / 1000
    pages = {path.name for path in (ROOT / "docs/how-to").iterdir() if path.suffix == ".ipynb" or "```python" in path.read_text()}
    checks = {
        "open-in-python.md": lambda page: (
            np.array_equal(page["image"], root["train/images"][3, 0])
            and np.array_equal(page["embedding"], root["train/embeddings"][3, 0])
            and all(np.array_equal(mask, root["test/masks"][case][:]) for case, mask in page["masks"].items())
            and np.array_equal(page["batch"][2], root["train/images"][12, 0].astype(np.float32))
            and np.array_equal(page["mask"], root["test/masks"][page["cases"][0]][:])
            and len(page["run"].steps) > 0
            and int(page["area"].sum()) == int((root["train/labels"][:, 0] == page["liver"]).sum()) > 0
        ),
        "query-slices.md": lambda page: (
            {case: round(ml, 6) for case, _, ml in page["volumes"]} == {case: round(ml, 6) for case, ml in liver_ml.items()}
            and len(page["with_pancreas"]) == sum(row["voxels_pancreas"] > 0 for row in table) > 0
        ),
        "onnx.md": lambda page: page["masks"].shape == (4, *root["test/labels"].shape[2:]),
        "track-runs.md": lambda page: len(page["steps"]) == len(page["run"].steps) > 0 and (store.parent / "mlflow.db").stat().st_size > 0,
        "store-and-run.ipynb": lambda page: np.mean(list(page["scores"].values())) > 0.2,
        "pytorch-dataset.md": lambda page: page["losses"][-1] < page["losses"][0] and len(page["train"]) == len(table),
    }
    if pages != set(checks):
        sys.exit(f"parity: docs/how-to has the pages {sorted(pages)}, expected {sorted(checks)}")
    for page, check in checks.items():
        if not check(run_page(page, store.parent)):
            sys.exit(f"parity: docs/how-to/{page} does not find what the store holds")


def check_package(program):
    """Runs the tests of the Python package."""
    os.environ |= {"SAM_LADDER_PROGRAM": str(program), "SAM_LADDER_LOGITS": str(program.parent / "examples/logits"), "PYTHONPATH": str(ROOT / "python")}
    run(sys.executable, "-m", "pytest", "-q", ROOT / "python/tests")


def main():
    os.environ |= {"MPLBACKEND": "agg", "WANDB_SILENT": "true"}
    program = Path(sys.argv[1]).resolve()
    run("cargo", "build", "--release", "--quiet", "--manifest-path", ROOT / "Cargo.toml", "--workspace", "--examples")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(sys.executable, BENCH / "parity/check_weights.py")
        checkpoint = check_encoder(folder)
        run(sys.executable, BENCH / "parity/check_published.py", program, folder / "published", checkpoint)
        run(sys.executable, BENCH / "parity/check_metrics.py")
        run(sys.executable, BENCH / "parity/check_statistics.py")
        run(sys.executable, BENCH / "parity/check_formats.py", ROOT / "target/release/examples/read_volume", folder / "formats")

        scans = GOLDEN / "synapse_mini/RawData"
        for dtype, augment in {"f32": ("--rotation-step", 10), "q8": ("--augment", "none"), "bf16": ("--augment", "none")}.items():
            store = folder / f"golden-{dtype}.zarr"
            run(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 0, "--image-size", 96,
                "--data-size", 64, "--dtype", dtype, *augment)  # fmt: skip
            run(sys.executable, BENCH / "parity/check_store.py", store, "--scans", scans)
        run(sys.executable, BENCH / "parity/check_rungs.py", program, scans, folder / "rungs")
        for choice in "neighbours", "windows":
            store = folder / f"golden-{choice}.zarr"
            run(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 0, "--image-size", 96,
                "--data-size", 64, "--augment", "flips", "--channels-from", choice)  # fmt: skip
            run(sys.executable, BENCH / "parity/check_store.py", store, "--scans", scans)

        phantoms, nnunet = folder / "scans", folder / "nnunet"
        run(program, "phantom", "--out", phantoms, "--cases", 4, "--size", 64, "--depth", 8)
        check_training(program, phantoms, folder / "phantom", "--data-size", 64, "--augment", "flips")
        run(program, "export", "--run", folder / "phantom/run", "--out", folder / "phantom/model.onnx")
        check_how_tos(folder / "phantom/store.zarr")
        check_package(program)
        run(sys.executable, BENCH / "parity/check_predict.py", program, folder / "phantom/run",
            phantoms / "RawData/Training/img/img0001.nii.gz", folder / "predict")  # fmt: skip
        run(sys.executable, BENCH / "parity/make_nnunet.py", nnunet)
        check_training(program, nnunet, folder / "two-channels", "--data-size", 48, "--rotation-step", 19, "--test-cases", "pet_007")
        train = xarray.open_zarr(folder / "two-channels/store.zarr", group="train", consolidated=False)
        if train["images"].sizes["image_channel"] != 2 or train["embeddings"].sizes["channel"] != 256:
            sys.exit(f"parity: xarray finds dimensions other than the documented ones: {train}")
    print("parity: everything agrees")


if __name__ == "__main__":
    main()

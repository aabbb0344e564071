"""Exchanges checkpoints of the whole published model both ways and compares the logits of each image.

    python bench/parity/check_published.py PROGRAM FOLDER SAM.pth

1. Theirs: a state dict as their training saves it (`epoch_3.pth`, every name with the prefix `module.`) loads into `eval` and `predict`.
2. Ours: `export --sam-checkpoint` loads with `strict=True`.

PyTorch's side is bench/torch_published.py, whose names are the published state dict's, with weights by the golden rule.
"""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import scipy.ndimage
import torch
import zarr
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import golden_rule
from torch_published import Published, without_module

SIZE, CLASSES = 224, 9
TOLERANCE = 2e-5  # of the largest logit: float32 through 12 transformer blocks and the decoder


def run(*command):
    print("──", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True)


def expect(what, difference, bound):
    print(f"{what}: {difference:.2e}, at most {bound:.0e}", flush=True)
    if not difference <= bound:
        sys.exit(f"parity: {what} is {difference:.2e}, at most {bound:.0e} was expected")


def rule_model():
    """The whole published model with weights by the rule; the encoder's position tables are made for this size."""
    model = Published("vit_b", SIZE, CLASSES)
    state = {}
    for name, tensor in model.state_dict().items():
        key = name.removeprefix("sam.")
        key = "image_encoder." + key.removeprefix("sam_encoder.") if key.startswith("sam_encoder.") else key
        state[name] = torch.from_numpy(np.asarray(golden_rule.weight(key, tuple(tensor.shape)))).to(tensor.dtype)
    state["sam.alpha"] = torch.tensor([0.25])
    model.load_state_dict(state, strict=True)
    return model.eval()


def logits(model, images):
    """[n, 1, s, s] → [n, classes, s/4, s/4]."""
    with torch.inference_mode():
        return model(torch.from_numpy(images).expand(-1, 3, -1, -1).contiguous()).numpy()


def store_images(store):
    return zarr.open_group(str(store), mode="r")["test/images"][:, 0].astype(np.float32)[:, None]


def check_masks(model, scan, mask, what):
    """A mask of `predict` against SciPy's preprocessing and PyTorch's model, slice by slice as the published code does."""
    image = nibabel.load(scan)
    volume = (np.clip(image.get_fdata().astype(np.float32), -125, 275) + 125) / 400
    found = np.asarray(nibabel.load(mask).dataobj)
    different = 0
    for index in range(volume.shape[2]):
        plane = volume[:, :, index].T
        zoomed = scipy.ndimage.zoom(plane, np.array([SIZE, SIZE]) / plane.shape, order=3) if plane.shape != (SIZE, SIZE) else plane
        low = torch.from_numpy(logits(model, zoomed[None, None].astype(np.float32)))
        masks = torch.nn.functional.interpolate(low, size=(SIZE, SIZE), mode="bilinear", align_corners=False).argmax(1)[0].numpy()
        expected = scipy.ndimage.zoom(masks, np.array(plane.shape) / SIZE, order=0) if plane.shape != masks.shape else masks
        different += int((found[:, :, index].T != expected).sum())
    expect(what, different / found.size, 1e-4)
    if np.unique(found).size < 2:
        sys.exit(f"parity: {what}: the mask is empty, so nothing was compared")


def main():
    program, folder, sam = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), Path(sys.argv[3])
    example = program.parent / "examples/logits"
    folder.mkdir()
    scans = folder / "scans"
    run(program, "phantom", "--out", scans, "--cases", 2, "--size", 96, "--depth", 3)
    scan = scans / "RawData/Training/img/img0001.nii.gz"

    theirs = rule_model()
    checkpoint = folder / "epoch_3.pth"
    torch.save({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, checkpoint)

    # The encoder in their file is not resized from SAM's. So its store is made from the same file, whose names contain SAM's.
    plain = folder / "sam_of_theirs.pth"
    sam_state = torch.load(sam, weights_only=True)
    own = theirs.state_dict()
    torch.save({name: own[f"sam.{name}"] if name.startswith("image_encoder.") else tensor for name, tensor in sam_state.items()}, plain)
    store = folder / "theirs.zarr"
    precompute = ["--image-size", SIZE, "--data-size", SIZE, "--augment", "none", "--dtype", "f32"]
    run(program, "precompute", "--scans", scans, "--store", store, "--sam-checkpoint", plain, *precompute)
    run(example, checkpoint, store, folder / "theirs.safetensors")
    ours = load_file(folder / "theirs.safetensors")["low_res_logits"]
    expected = logits(theirs, store_images(store))
    expect("their checkpoint here, logits, relative", np.abs(ours - expected).max() / np.abs(expected).max(), TOLERANCE)
    run(program, "eval", "--store", store, "--checkpoint", checkpoint, "--out", folder / "eval")
    run(program, "predict", "--scan", scan, "--checkpoint", checkpoint, "--out", folder / "mask.nii.gz")
    check_masks(theirs, scan, folder / "mask.nii.gz", "their checkpoint in predict, share of voxels that differ from PyTorch's")

    store, trained, exported = folder / "ours.zarr", folder / "run", folder / "ours.pth"
    run(program, "precompute", "--scans", scans, "--store", store, "--sam-checkpoint", sam, *precompute)
    run(program, "train", "--store", store, "--run", trained, "--epochs", 2, "--batch-size", 3)
    run(program, "export", "--run", trained, "--out", exported, "--sam-checkpoint", sam)
    there = Published("vit_b", SIZE, CLASSES)
    there.load_state_dict(without_module(torch.load(exported, weights_only=True)), strict=True)
    there.eval()
    run(example, trained / "checkpoint.safetensors", store, folder / "ours.safetensors")
    ours = load_file(folder / "ours.safetensors")["low_res_logits"]
    expected = logits(there, store_images(store))
    expect("our export there, logits, relative", np.abs(ours - expected).max() / np.abs(expected).max(), TOLERANCE)
    run(program, "predict", "--scan", scan, "--run", trained, "--sam-checkpoint", sam, "--out", folder / "ours.nii.gz")
    check_masks(there, scan, folder / "ours.nii.gz", "our run in predict, share of voxels that differ from PyTorch's on the export")


if __name__ == "__main__":
    main()

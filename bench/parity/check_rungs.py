"""Compares a store's rungs with the tokens of PyTorch's encoder, block by block.

    python bench/parity/check_rungs.py PROGRAM SCANS FOLDER

Makes a checkpoint for images of 64 pixels, and stores of the scans with the tokens as they are and with their principal components. Takes the
tokens of the stored images from PyTorch's encoder, and computes what the stores should hold.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import zarr
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
import golden_rule  # noqa: E402
from make_sam_pth import mask_decoder, prompt_encoder  # noqa: E402
from torch_encoder import ImageEncoder  # noqa: E402

SIZE, BLOCKS, CHANNELS = 64, (0, 2, 5, 11), 16


def expect(what, difference, bound):
    print(f"{what}: {difference:.2e}")
    if not difference <= bound:
        sys.exit(f"check_rungs: {what} differs by {difference:.2e}, at most {bound:.0e} was expected")


def checkpoint(path):
    """Writes weights by the golden rule for images of SIZE pixels; PyTorch's encoder with them."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in ImageEncoder("vit_b", SIZE).state_dict().items()}
    state = {name: torch.from_numpy(golden_rule.weight(f"image_encoder.{name}", shape)) for name, shape in shapes.items()}
    encoder = ImageEncoder("vit_b", SIZE)
    encoder.load_state_dict(state)
    whole = {f"image_encoder.{name}": tensor for name, tensor in state.items()}
    for prefix, others in ("prompt_encoder", prompt_encoder()), ("mask_decoder", mask_decoder()):
        for name, shape in others.items():
            whole[f"{prefix}.{name}"] = torch.from_numpy(golden_rule.weight(f"{prefix}.{name}", shape))
    torch.save(whole, path)
    return encoder.eval()


def tokens(encoder, images):
    """The tokens after each of BLOCKS, [rung, image, C, g, g] in float64."""
    found = {}
    for block in BLOCKS:
        encoder.blocks[block].register_forward_hook(lambda _module, _input, output, block=block: found.update({block: output}))
    with torch.inference_mode():
        encoder(torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1))
    return np.stack([found[block].numpy().transpose(0, 3, 1, 2) for block in BLOCKS]).astype(np.float64)


def precompute(program, scans, store, weights, *options):
    command = [program, "precompute", "--scans", scans, "--store", store, "--sam-checkpoint", weights, "--image-size", SIZE, "--data-size", SIZE,
               "--augment", "none", "--dtype", "f32", "--rungs", ",".join(map(str, BLOCKS)), *options]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True)
    return zarr.open_group(str(store), mode="r")


def main():
    program, scans, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir(parents=True)
    encoder = checkpoint(folder / "sam.pth")
    store = precompute(program, scans, folder / "all.zarr", folder / "sam.pth", "--rung-projection", "none")
    train = store["train"]
    expected = tokens(encoder, train["images"][:, 0])
    found = train["rungs"][:, 0].transpose(1, 0, 2, 3, 4)
    for block, ours, theirs in zip(BLOCKS, found, expected, strict=True):
        expect(f"tokens after block {block}, relative", np.abs(ours - theirs).max() / np.abs(theirs).max(), 1e-5)

    path = folder / "pca.zarr"
    store = precompute(program, scans, path, folder / "sam.pth", "--rung-channels", CHANNELS)
    projection = load_file(path / "rung_projection.safetensors")
    found = store["train"]["rungs"][:, 0].transpose(1, 0, 2, 3, 4).astype(np.float64)
    for block, ours, theirs in zip(BLOCKS, found, expected, strict=True):
        rows = theirs.transpose(0, 2, 3, 1).reshape(-1, theirs.shape[1])
        # The golden scans have 43 training slices, fewer than are sampled.
        mean = rows.mean(0)
        expect(f"mean after block {block}", np.abs(projection[f"blocks.{block}.mean"] - mean).max() / np.abs(mean).max(), 1e-5)
        values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
        components = vectors[:, ::-1][:, :CHANNELS].T
        signs = np.sign(components[np.arange(CHANNELS), np.abs(components).argmax(1)])
        projected = (rows - mean) @ (components * signs[:, None]).T
        projected = projected.reshape(theirs.shape[0], *theirs.shape[2:], CHANNELS).transpose(0, 3, 1, 2)
        # Directions of nearly the same variance may mix; their share of it may not.
        variances = values[::-1][:CHANNELS]
        spread = ours.transpose(1, 0, 2, 3).reshape(CHANNELS, -1).var(1)
        expect(f"variances after block {block}, relative", np.abs(spread - variances).max() / variances[0], 1e-4)
        gap = -np.diff(values[::-1][: CHANNELS + 1]) / values[-1]
        clear = np.minimum(gap, np.concatenate([[1.0], gap[:-1]])) > 1e-2
        if clear.any():
            difference = np.abs(ours[:, clear] - projected[:, clear]).max() / np.abs(projected).max()
            expect(f"the {clear.sum()} clearest components after block {block}, relative", difference, 1e-3)
    print("rungs: as PyTorch's tokens")


if __name__ == "__main__":
    main()

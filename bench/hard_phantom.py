"""Phantom scans on which the options beyond the paper can matter, in nnU-Net's layout: hard_phantom.py FOLDER [SIZE] [DEPTH]

Grey ellipses as bodies, with noise, and in them

| class | | what it takes |
| --- | --- | --- |
| `disc` | a large disc | nothing: any model finds it |
| `leftward`, `rightward` | tubes of the same grey and width; with rising slices the one moves to the left, the other to the right, and back by a leap every seven slices | the slices below and above: in one slice they are the same |
| `vessel` | lines one or two pixels wide, as bright as the tubes | detail finer than the embeddings' patches |
| `rare` | a small bright ball in one slice of fifty or so | seeing it often enough |

Ten training cases and sixteen test cases. Needs numpy and nibabel.
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np

CLASSES = ["disc", "leftward", "rightward", "vessel", "rare"]
TRAINING, TEST = 10, 16


def case(rng, size, depth):
    """Hounsfield units and classes of one scan, `[x, y, z]`."""
    z, y, x = np.meshgrid(np.arange(depth), np.arange(size), np.arange(size), indexing="ij")
    image = np.full((depth, size, size), -400.0)
    label = np.zeros((depth, size, size), np.uint8)
    centre = size / 2 + rng.uniform(-2, 2, 2)
    body = ((y - centre[0]) / (0.44 * size)) ** 2 + ((x - centre[1]) / (0.47 * size)) ** 2 < 1
    image[body] = 20

    def ball(at, radius, along_z, grey, value):
        where = ((z - at[0]) / along_z) ** 2 + ((y - at[1]) / radius) ** 2 + ((x - at[2]) / radius) ** 2 < 1
        image[where], label[where] = grey, value

    ball((depth / 2 + rng.uniform(-3, 3), 0.33 * size, rng.uniform(0.4, 0.6) * size), 0.15 * size, depth / 3, 90, 1)
    # The rows of the two tubes, and which is above, are drawn: their places say nothing.
    rows = rng.permutation([0.6, 0.75]) * size + rng.uniform(-1, 1, 2)
    for value, row, direction in zip((2, 3), rows, (-1, 1)):
        middle = rng.uniform(0.4, 0.6) * size
        # After seven slices each is back where it began.
        column = middle + direction * 0.04 * size * ((z + rng.integers(7)) % 7 - 3)
        where = (y - row) ** 2 + (x - column) ** 2 < (0.05 * size) ** 2
        image[where], label[where] = 150, value
    for _ in range(3):
        row, column, angle = rng.uniform(0.3, 0.7) * size, rng.uniform(0.25, 0.75) * size, rng.uniform(0, np.pi)
        distance = np.abs((y - row) * np.cos(angle) - (x - column) * np.sin(angle))
        near = ((y - row) ** 2 + (x - column) ** 2 < (0.16 * size) ** 2) & (np.abs(z - depth / 2) < depth * 0.4)
        where = (distance < 0.8) & near & body & (label == 0)
        image[where], label[where] = 150, 4
    if rng.random() < 0.5:
        at = (rng.integers(2, depth - 2), rng.uniform(0.4, 0.6) * size, rng.choice([0.2, 0.8]) * size)
        ball(at, 0.06 * size, 0.9, 220, 5)
    image += rng.normal(0, 15, image.shape)
    return image.transpose(2, 1, 0).astype(np.int16), label.transpose(2, 1, 0)


def write(folder, size=64, depth=24, seed=1):
    """Writes the data set. The same arguments give the same scans."""
    folder = Path(folder)
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    affine = np.diag([-2.0, -2.0, 4.0, 1.0])
    for number in range(TRAINING + TEST):
        image, label = case(np.random.default_rng([seed, number]), size, depth)
        split = "Tr" if number < TRAINING else "Ts"
        for name, voxels in ((f"images{split}/case{number:02}_0000", image), (f"labels{split}/case{number:02}", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    labels = {"background": 0} | {name: number for number, name in enumerate(CLASSES, 1)}
    facts = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": TRAINING, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    write(sys.argv[1], *map(int, sys.argv[2:]))

"""Writes a small data set in nnU-Net's raw layout with nibabel: two channels, CT and PET, three classes of blobs.

    make_nnunet.py FOLDER

Three training cases, and one whose labels are in `labelsTs`.
"""

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

SHAPE = (64, 64, 6)
CLASSES = {"background": 0, "liver": 1, "left kidney": 2, "tumour": 3}
SPACING = np.diag([1.5, 1.25, 4.0, 1.0])


def blobs(rng):
    """Labels: smooth noise, cut into classes by its height."""
    noise = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (6, 6, 1))
    return np.digitize(noise, np.quantile(noise, [0.6, 0.8, 0.92])).astype(np.uint8)


def main():
    folder, rng = Path(sys.argv[1]), np.random.default_rng(5)
    for half, cases in [("Tr", ["pet_001", "pet_002", "pet_007"]), ("Ts", ["pet_004"])]:
        for name in (f"images{half}", f"labels{half}"):
            (folder / name).mkdir(parents=True)
        for case in cases:
            label = blobs(rng)
            ct = np.array([-90, 60, 120, 200])[label] + 25 * rng.standard_normal(SHAPE)
            # a few voxels of the bladder outshine everything, as in PET: the reason for percentiles
            pet = np.array([0.3, 2.0, 1.0, 7.0])[label] + rng.exponential(0.4, SHAPE) + 90 * (rng.random(SHAPE) < 0.003)
            for channel, values in enumerate([ct.astype(np.int16), pet.astype(np.float32)]):
                image = nibabel.Nifti1Image(values, SPACING)
                if channel == 0:
                    image.header.set_slope_inter(1, 0)
                nibabel.save(image, folder / f"images{half}/{case}_{channel:04}.nii.gz")
            nibabel.save(nibabel.Nifti1Image(label, SPACING), folder / f"labels{half}/{case}.nii.gz")
    description = {"channel_names": {"0": "CT", "1": "PET"}, "labels": CLASSES, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description, indent=2))


if __name__ == "__main__":
    main()

"""Recomputes an evaluation's cases.parquet and summary.parquet with MedPy, from the saved NIfTI masks and the store's reference masks.

    python bench/parity/check_eval.py --store S.zarr --eval OUT --protocol published

OUT must have been written with --save-nifti; it may be of test scans or of a validation. Exit status 1 if a value differs: Dice by more than 1e-12, HD95 by more than 1e-6.
"""

import argparse
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as parquet
import zarr
from medpy.metric import binary

DICE_TOLERANCE = 1e-12
HD95_TOLERANCE = 1e-6


def published(prediction, reference, spacing_mm):
    """Dice and HD95 in voxels, by the published code's rules for empty masks."""
    if not prediction.any():
        return 0.0, 0.0
    if not reference.any():
        return 1.0, 0.0
    return binary.dc(prediction, reference), binary.hd95(prediction, reference)


def standard(prediction, reference, spacing_mm):
    """Dice and HD95 in millimetres, None where undefined."""
    both = prediction.any() and reference.any()
    either = prediction.any() or reference.any()
    dice = binary.dc(prediction, reference) if either else None
    return dice, binary.hd95(prediction, reference, voxelspacing=spacing_mm) if both else None


def read_spacing(store, split, case):
    """Spacing of a case along depth, height and width."""
    rows = parquet.read_table(Path(store) / split / "slices.parquet").to_pylist()
    row = next(row for row in rows if row["case"] == case)
    return tuple(row[f"spacing_{axis}_mm"] for axis in ("depth", "height", "width"))


def read_affine(store, split, case, spacing_mm):
    """The affine of a case's mask: its scan's, which must lie in the store as in its file; without one, that of its spacing."""
    rows = parquet.read_table(Path(store) / split / "scans.parquet").to_pylist()
    row = next(row for row in rows if row["case"] == case)
    assert list(row["axes"]) == [1, 2, 3], f"case {case} lies in the store in another orientation"
    if row["affine"] is None:
        return np.diag([*np.float32(spacing_mm[::-1]), 1])
    return np.float32(row["affine"]).reshape(4, 4)


def read_mask(path, expected):
    """A mask [d, h, w] from NIfTI, whose array is [w, h, d]; also checks its affine."""
    image = nibabel.load(path)
    assert np.array_equal(image.affine, expected), f"{path}: affine {image.affine.tolist()}, expected {expected.tolist()}"
    assert image.get_data_dtype() == np.uint8, f"{path}: {image.get_data_dtype()}"
    return np.asarray(image.dataobj).transpose(2, 1, 0)


def differs(found, expected, tolerance):
    if found is None or expected is None:
        return found is not expected
    return abs(found - expected) > tolerance


def mean(values):
    values = [value for value in values if value is not None]
    return float(np.mean(values)) if values else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--eval", required=True, type=Path)
    parser.add_argument("--protocol", choices=("published", "standard"), default="published")
    arguments = parser.parse_args()

    measure = {"published": published, "standard": standard}[arguments.protocol]
    scored = json.loads((arguments.eval / "evaluation.json").read_text())["scored"]["split"]
    split = {"test": "test", "validation": "train"}[scored]
    references = zarr.open_group(arguments.store, mode="r")[f"{split}/masks"]
    rows = parquet.read_table(arguments.eval / "cases.parquet").to_pylist()
    # A case's rows are in the order of the classes, from 1.
    organs = list(dict.fromkeys(row["organ"] for row in rows))
    problems = []
    values = {organ: [] for organ in organs}
    for case in dict.fromkeys(row["case"] for row in rows):
        spacing_mm = read_spacing(arguments.store, split, case)
        affine = read_affine(arguments.store, split, case, spacing_mm)
        prediction = read_mask(arguments.eval / "masks" / f"{case}.nii.gz", affine)
        reference = references[case][:]
        for row in (row for row in rows if row["case"] == case):
            label = organs.index(row["organ"]) + 1
            masks = prediction == label, reference == label
            dice, hd95 = measure(*masks, spacing_mm)
            values[row["organ"]].append((dice, hd95))
            checks = (
                ("dice", dice, DICE_TOLERANCE),
                ("hd95", hd95, HD95_TOLERANCE),
                ("predicted_voxels", int(masks[0].sum()), 0),
                ("reference_voxels", int(masks[1].sum()), 0),
            )
            for name, expected, tolerance in checks:
                if differs(row[name], expected, tolerance):
                    problems.append(f"case {case}, {row['organ']}: {name} is {row[name]}, MedPy says {expected}")

    summary = {row["organ"]: row for row in parquet.read_table(arguments.eval / "summary.parquet").to_pylist()}
    for index, (name, tolerance) in enumerate((("dice", DICE_TOLERANCE), ("hd95", HD95_TOLERANCE))):
        means = {organ: mean([pair[index] for pair in values[organ]]) for organ in organs}
        means["mean"] = mean(means.values())
        for organ, expected in means.items():
            if differs(summary[organ][name], expected, tolerance):
                problems.append(f"summary, {organ}: {name} is {summary[organ][name]}, expected {expected}")

    print("\n".join(problems) or f"{len(rows)} rows and their means equal MedPy's ({arguments.protocol} protocol)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

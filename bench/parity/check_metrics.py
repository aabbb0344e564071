"""Compares every metric with MedPy, MONAI and SciPy, on random and degenerate masks.

    python bench/parity/check_metrics.py [target/release/examples/parity]

Dice, HD95 of both directions in one list and Hausdorff by MedPy; HD95 by the larger direction and surface Dice by MONAI; all of them again by SciPy's
erosion and distance transform, written out here. Exit status 1 if a value differs.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from medpy.metric import binary
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from safetensors.numpy import save_file
from scipy import ndimage

ROOT = Path(__file__).resolve().parent.parent.parent
# Not a distance that occurs on grids with these spacings, so that rounding decides nothing.
TOLERANCE_MM = 2.03717
EXACT = 1e-9
# MONAI keeps distances in float32.
MONAI = 2e-5


def blobs(generator, shape):
    """Smooth random shapes, like organs."""
    noise = ndimage.gaussian_filter(generator.standard_normal(shape), [min(2, length / 6) for length in shape])
    return noise > np.quantile(noise, generator.uniform(0.5, 0.95))


def make_pairs():
    """Pairs of masks with their spacing."""
    generator = np.random.default_rng(7)
    spacings = [(1.0, 1.0, 1.0), (5.0, 0.84, 0.91), (0.3, 2.0, 7.0), (3.0, 0.75, 0.75)]
    pairs = []
    for index in range(48):
        shape = tuple(generator.integers(4, 28, 3))
        spacing = spacings[index % len(spacings)]
        reference = blobs(generator, shape)
        kind = index % 4
        if kind == 0:
            prediction = blobs(generator, shape)
        elif kind == 1:
            prediction = np.roll(reference, generator.integers(-2, 3, 3), (0, 1, 2))
        elif kind == 2:
            prediction = ndimage.binary_dilation(reference)
        else:
            prediction = reference ^ (generator.random(shape) < 0.03)
        pairs.append((prediction, reference, spacing))
    # Degenerate: single voxels, full volumes, planes, lines, corners, one voxel against many, equal masks, empty ones.
    shape = (5, 7, 6)
    empty, full, corner, other, plane, line = (np.zeros(shape, bool) for _ in range(6))
    full[:] = True
    corner[0, 0, 0] = other[4, 6, 5] = True
    plane[2] = True
    line[:, 3, 3] = True
    shapes = [empty, full, corner, other, plane, line]
    pairs += [(a, b, spacings[1]) for a in shapes for b in shapes]
    pairs += [(np.ones((1, 1, 1), bool), np.ones((1, 1, 1), bool), spacings[0]), (np.ones((1, 9, 1), bool), line[:1, :1, :1] | True, spacings[2])]
    return [(a, b, spacing) for a, b, spacing in pairs if a.shape == b.shape]


def scipy_distances(prediction, reference, spacing):
    """Distances between the surfaces in both directions."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, reference)]
    one, other = (ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces)
    return other[surfaces[0]], one[surfaces[1]]


def expected(prediction, reference, spacing):
    """Every column, as (value, tolerance); None where undefined."""
    both, either = prediction.any() and reference.any(), prediction.any() or reference.any()
    values = {
        "dice": (binary.dc(prediction, reference) if either else None, 1e-12),
        "reference_voxels": (int(reference.sum()), 0),
        "predicted_voxels": (int(prediction.sum()), 0),
        "volume_difference_ml": ((int(prediction.sum()) - int(reference.sum())) * np.prod(spacing) / 1000, 1e-12),
    }
    one_hot = [torch.from_numpy(mask[None, None]).float() for mask in (prediction, reference)]
    for unit, scale in (("voxels", (1.0, 1.0, 1.0)), ("mm", spacing)):
        pooled = larger = None
        if both:
            pooled = binary.hd95(prediction, reference, voxelspacing=scale)
            forward, back = scipy_distances(prediction, reference, scale)
            assert abs(np.percentile(np.concatenate([forward, back]), 95) - pooled) < EXACT
            larger = max(np.percentile(forward, 95), np.percentile(back, 95))
            monai = compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=list(scale)).item()
            assert abs(monai - larger) <= MONAI * max(1, larger), f"MONAI {monai}, SciPy {larger}"
        values[f"hd95_{unit}"] = (pooled, EXACT)
        values[f"hd95_larger_{unit}"] = (larger, EXACT)
    surface = compute_surface_dice(*one_hot, class_thresholds=[TOLERANCE_MM], include_background=True, spacing=list(spacing)).item()
    if both:
        distances = np.concatenate(scipy_distances(prediction, reference, spacing))
        assert abs(np.mean(distances <= TOLERANCE_MM) - surface) < 1e-6
    values["surface_dice"] = (None if np.isnan(surface) else surface, 1e-6)
    return values


def by_rule(prediction, reference, spacing, values):
    """`dice` and `hd95` (mm) by each rule for empty masks."""
    missed = reference.any() and not prediction.any()
    invented = prediction.any() and not reference.any()
    diagonal = float(np.linalg.norm((np.array(prediction.shape) - 1) * spacing))
    plain = values["dice"][0], values["hd95_mm"][0]
    return {
        "leave-out": plain,
        "penalise": (0.0, diagonal) if missed or invented else plain,
        "published": (0.0, 0.0) if not prediction.any() else (1.0, 0.0) if invented else plain,
    }


def differs(found, expected, tolerance):
    if found is None or expected is None:
        return found is not expected
    return not abs(found - expected) <= tolerance * max(1.0, abs(expected))


def main():
    warnings.filterwarnings("ignore")
    program = sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/examples/parity"
    pairs = make_pairs()
    tensors = {"tolerance_mm": np.array([TOLERANCE_MM])}
    for index, (prediction, reference, spacing) in enumerate(pairs):
        tensors |= {f"{index}/pred": prediction.astype(np.uint8), f"{index}/ref": reference.astype(np.uint8), f"{index}/spacing": np.array(spacing)}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "pairs.safetensors"
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
        subprocess.run([program, "metrics", path, path.with_suffix(".json")], check=True)
        found = json.loads(path.with_suffix(".json").read_text())
    problems = []
    for index, (pair, rules) in enumerate(zip(pairs, found, strict=True)):
        values = expected(*pair)
        for rule, (dice, hd95) in by_rule(*pair, values).items():
            for name, (value, tolerance) in (values | {"dice": (dice, 1e-12), "hd95": (hd95, EXACT)}).items():
                if differs(rules[rule][name], value, tolerance):
                    problems.append(f"pair {index}, {rule}: {name} is {rules[rule][name]}, expected {value}")
    empty = sum(not (a.any() and b.any()) for a, b, _ in pairs)
    print("\n".join(problems) or f"{len(pairs)} pairs of masks, {empty} with an empty one: every metric equals MedPy's, MONAI's and SciPy's")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks that NRRD, MetaImage and pairs of .hdr and .img have the values and places that SimpleITK and nibabel read.

    python bench/parity/check_formats.py READ_VOLUME FOLDER

READ_VOLUME is the example `read_volume`. SimpleITK and nibabel write one made-up volume in every number type, attached and with voxels in a file of
their own, compressed and not, in all 48 orientations and at random oblique ones; hand-made headers have what other programs write. Each file is read
by us and by them, and compared: values exactly, affines within 1e-9 of their largest number.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

TYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64)
RNG = np.random.default_rng(7)
LPS_TO_RAS = np.diag((-1.0, -1.0, 1.0))


def ours(program, path):
    """Values [d, h, w], affine or None, spacing (d, h, w)."""
    out = path.with_suffix(".f32")
    printed = subprocess.run([program, path, out], check=True, capture_output=True, text=True).stdout
    found = json.loads(printed)
    affine = None if found["affine"] is None else np.array(found["affine"])
    return np.fromfile(out, "<f4").reshape(found["shape"]), affine, np.array(found["spacing_mm"])


def itks(path):
    """The same by SimpleITK, in RAS+."""
    image = SimpleITK.ReadImage(str(path))
    spacing = np.array(image.GetSpacing())
    columns = np.array(image.GetDirection()).reshape(3, 3) * spacing
    affine = LPS_TO_RAS @ np.column_stack([columns, image.GetOrigin()])
    return SimpleITK.GetArrayFromImage(image).astype(np.float64).astype(np.float32), affine, spacing[::-1]


def nibabels(path):
    """The same by nibabel."""
    image = nibabel.load(path)
    zooms = np.array(image.header.get_zooms()[:3], dtype=np.float64)
    return image.get_fdata().astype(np.float32).T, image.affine[:3], zooms[::-1]


def compare(program, path, theirs, has_place=True):
    (values, affine, spacing), (their_values, their_affine, their_spacing) = ours(program, path), theirs
    assert values.shape == their_values.shape and np.array_equal(values, their_values), f"{path}: other values"
    assert np.allclose(spacing, their_spacing, rtol=1e-6), f"{path}: spacing {spacing}, theirs {their_spacing}"
    if has_place:
        apart = np.abs(affine - their_affine).max() / np.abs(their_affine).max()
        assert apart < 1e-9, f"{path}: affine {affine}, theirs {their_affine}"
    else:
        assert affine is None, f"{path}: an affine, and nothing says where it lies"


def image_of(voxels, direction=np.eye(3), spacing=(0.75, 0.8, 2.5), origin=(-31.5, 12.25, 101.125)):
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetDirection([float(value) for value in np.asarray(direction).ravel()])
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def directions():
    """All orientations, and random rotations."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            yield np.eye(3)[:, list(order)] * signs
    for _ in range(12):
        rotation = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
        yield rotation * np.sign(np.linalg.det(rotation))


def check_itk(program, folder, voxels):
    count = 0
    for kind, (ending, compress) in itertools.product(TYPES, itertools.product((".nrrd", ".nhdr", ".mha", ".mhd"), (False, True))):
        path = folder / f"{np.dtype(kind).name}_{int(compress)}{ending}"
        SimpleITK.WriteImage(image_of(voxels.astype(kind)), str(path), compress)
        compare(program, path, itks(path))
        count += 1
    for number, direction in enumerate(directions()):
        for ending in (".nrrd", ".mha"):
            path = folder / f"direction_{number}{ending}"
            SimpleITK.WriteImage(image_of(voxels, direction), str(path), True)
            compare(program, path, itks(path))
            count += 1
    return count


def check_hand_made(program, folder, voxels):
    """Headers that SimpleITK reads and does not write."""
    start = ["NRRD0005", "type: short", "dimension: 3", "sizes: " + " ".join(map(str, voxels.shape[::-1]))]
    place = ["space directions: (0.5,0,0.1) (0,0.75,0) (-0.2,0,3)", "space origin: (1,2,3)"]
    big, little = voxels.astype(">i2").tobytes(), voxels.astype("<i2").tobytes()
    raw = ["endian: little", "encoding: raw"]
    cases = {
        "ras": (raw + ["space: RAS", *place], little, True),
        "las": (raw + ["space: left-anterior-superior", *place], little, True),
        "lps": (["endian: big", "encoding: raw", "space: left-posterior-superior", *place], big, True),
        "scanner": (raw + ["space: scanner-xyz", *place], little, False),
        "unnamed": (raw + ["space dimension: 3", *place], little, False),
        "spacings": (raw + ["spacings: 0.5 0.75 3"], little, False),
        "skip": (raw + ["space: LPS", *place, "byte skip: 5"], b"12345" + little, True),
        "end": (raw + ["space: LPS", *place, "byte skip: -1"], b"12345" + little, True),
        "line": (raw + ["space: LPS", *place, "line skip: 1"], b"a line\n" + little, True),
        "words": (["encoding: ascii", "space: LPS", *place], " ".join(map(str, voxels.ravel())).encode(), True),
    }
    for name, (lines, body, has_place) in cases.items():
        path = folder / f"hand_{name}.nrrd"
        path.write_bytes("\n".join(start + lines + ["", ""]).encode() + body)
        compare(program, path, itks(path), has_place)
    meta = ["ObjectType = Image", "NDims = 3", "DimSize = " + " ".join(map(str, voxels.shape[::-1])), "ElementType = MET_SHORT"]
    matrix = "0 1 0 0.6 0 0.8 0.8 0 -0.6"
    cases = {
        "matrix": (["BinaryData = True", f"TransformMatrix = {matrix}", "Offset = 1 2 3", "ElementSpacing = 0.5 0.75 3"], little),
        "rotation": (["BinaryData = True", f"Rotation = {matrix}", "Position = 1 2 3", "ElementSize = 0.5 0.75 3"], little),
        "origin": (["BinaryData = True", "ElementByteOrderMSB = True", "Origin = 1 2 3", "ElementSpacing = 0.5 0.75 3"], big),
        "nothing": (["BinaryData = True"], little),
    }
    for name, (lines, body) in cases.items():
        path = folder / f"hand_{name}.mha"
        path.write_bytes("\n".join(meta + lines + ["ElementDataFile = LOCAL", ""]).encode() + body)
        compare(program, path, itks(path))
    # SimpleITK refuses words in a MetaImage; the voxels and the header are known.
    path = folder / "hand_words.mha"
    lines = meta + ["BinaryData = False", "ElementSpacing = 0.5 0.75 3", "ElementDataFile = LOCAL", ""]
    path.write_bytes("\n".join(lines).encode() + " ".join(map(str, voxels.ravel())).encode())
    place = LPS_TO_RAS @ np.column_stack([np.diag((0.5, 0.75, 3)), (0, 0, 0)])
    compare(program, path, (voxels.astype(np.float32), place, np.array((3, 0.75, 0.5))))
    return 15


def check_pairs(program, folder, voxels):
    count = 0
    affine = np.array([[0.5, 0, 0.1, -7], [0, -0.75, 0, 8], [0.2, 0, 3, 9], [0, 0, 0, 1]])
    for kind, ending in itertools.product(TYPES, (".img", ".img.gz")):
        # A NIfTI-2 header has float64; NIfTI-1's float32 is what both read.
        image = nibabel.Nifti1Pair(voxels.T.astype(kind), affine, dtype=kind)
        path = folder / f"pair_{np.dtype(kind).name}{ending}"
        image.to_filename(path)
        header = path.with_name(path.name.replace(".img", ".hdr"))
        compare(program, header, nibabels(header))
        count += 1
    for kind, order in itertools.product((np.uint8, np.int16, np.int32, np.float32, np.float64), "<>"):
        header = nibabel.AnalyzeHeader(endianness=order)
        header.set_data_dtype(kind)
        header.set_data_shape(voxels.T.shape)
        header.set_zooms((0.5, 0.75, 3))
        path = folder / f"analyze_{np.dtype(kind).name}_{'little' if order == '<' else 'big'}.hdr"
        path.write_bytes(header.binaryblock)
        path.with_suffix(".img").write_bytes(voxels.astype(np.dtype(kind).newbyteorder(order)).tobytes())
        compare(program, path, nibabels(path), has_place=False)
        count += 1
    return count


def main():
    program, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    voxels = RNG.integers(0, 100, (3, 5, 7)).astype(np.int16)
    count = sum(check(program, folder, voxels) for check in (check_itk, check_hand_made, check_pairs))
    print(f"{count} files of NRRD, MetaImage and pairs: values and places are SimpleITK's and nibabel's")


if __name__ == "__main__":
    main()

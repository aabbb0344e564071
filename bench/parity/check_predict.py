"""Checks that masks of `predict` lie on their scans: nibabel and SimpleITK see the same grid, direction, origin and spacing, for every kind of file.

    python bench/parity/check_predict.py PROGRAM RUN SCAN FOLDER

RUN is a run on a random encoder with one channel, SCAN a scan in which it finds organs. nibabel writes its voxels again in many ways: number types,
byte orders, NIfTI-1 and -2, orientations, oblique affines; with only a quaternion, only an affine, or neither. The anatomy is the same, so all masks,
brought to one orientation by nibabel, must be the same.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK


def rotation(*degrees):
    """A rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def affine(turn=np.eye(3), spacing=(0.75, 0.8, 2.5), origin=(-31.5, 12.25, 101.125)):
    """Of an array that lies in LPS, as SCAN does, turned by less than 45 degrees."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn @ np.diag((-1, -1, 1)) @ np.diag(spacing), origin
    return matrix


def in_orientation(image, codes):
    """The same anatomy, stored in another orientation."""
    wanted = nibabel.orientations.axcodes2ornt(codes)
    return image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted))


def volume(path):
    """A scan's Hounsfield units within the window in steps of 4, as whole numbers from 0 to 100, which every number type holds."""
    return np.round((np.clip(nibabel.load(path).get_fdata(), -125, 275) + 125) / 4).astype(np.int16)


def saved(image, kind=np.int16):
    """The image with its voxels stored as `kind`, and the slope and intercept that make Hounsfield units of them."""
    image.set_data_dtype(kind)
    image.header.set_slope_inter(4, -125)
    return image


def scans(voxels):
    """Name → image."""
    for kind in (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64, np.int64, np.uint64):
        yield f"type_{np.dtype(kind).name}.nii.gz", saved(nibabel.Nifti1Image(voxels, affine()), kind)
    yield "big_endian.nii", saved(nibabel.Nifti1Image(voxels, affine(), nibabel.Nifti1Header(endianness=">")))
    yield "second_version.nii.gz", saved(nibabel.Nifti2Image(voxels, affine(rotation(10, 20, 30))))
    yield "second_big.nii", saved(nibabel.Nifti2Image(voxels, affine(), nibabel.Nifti2Header(endianness=">")), np.float32)
    yield "oblique.nii.gz", saved(nibabel.Nifti1Image(voxels, affine(rotation(12, -7, 33))))
    unscaled = nibabel.Nifti1Image((4 * voxels - 125).astype(np.int16), affine())
    yield "no_slope.nii.gz", unscaled
    with_time = nibabel.Nifti1Image(voxels[..., None], affine(rotation(0, 0, 5)))
    with_time.header.set_xyzt_units("mm", "sec")
    yield "fourth_axis.nii.gz", saved(with_time)
    for order in itertools.permutations(("LR", "PA", "IS")):
        for codes in itertools.product(*order):
            yield f"axes_{''.join(codes)}.nii.gz", saved(in_orientation(nibabel.Nifti1Image(voxels, affine(rotation(4, -3, 8))), codes))
    for name, sform, qform in (("quaternion_alone", 0, 1), ("affine_alone", 2, 0), ("both_differ", 4, 2), ("neither", 0, 0)):
        image = nibabel.Nifti1Image(voxels, affine(rotation(5, 40, -20)))
        image.set_sform(affine(rotation(5, 40, -20), origin=(1, 2, 3)) if sform else None, sform)
        image.set_qform(affine(rotation(5, 40, -20)) if qform else None, qform)
        if not qform:
            image.header["pixdim"][1:4] = (0.75, 0.8, 2.5)
        yield f"{name}.nii.gz", saved(image)


def itk(path):
    """What SimpleITK, and with it 3D Slicer and ITK-SNAP, reads from a file; None if it refuses the file."""
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        return None
    return image.GetSize(), image.GetDirection(), image.GetOrigin(), image.GetSpacing()


def main():
    program, run_folder, voxels_of, folder = sys.argv[1], sys.argv[2], volume(sys.argv[3]), Path(sys.argv[4])
    folder.mkdir()
    (folder / "scans").mkdir()
    names = []
    for name, image in scans(voxels_of):
        nibabel.save(image, folder / "scans" / name)
        names.append(name)
    command = [program, "predict", "--scan", folder / "scans", "--run", run_folder, "--out", folder / "masks"]
    print("──", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True)
    first, refused, organs = None, [], 0
    for name in names:
        scan, mask = folder / "scans" / name, folder / "masks" / f"{name.removesuffix('.gz').removesuffix('.nii')}.nii.gz"
        a, b = nibabel.load(scan), nibabel.load(mask)
        problems = [
            what
            for what, same in (
                ("kind", type(a) is type(b)),
                ("shape", a.shape == b.shape),
                ("affine", np.array_equal(a.affine, b.affine)),
                ("sform", np.array_equal(a.header.get_sform(), b.header.get_sform())),
                ("sform code", int(a.header["sform_code"]) == int(b.header["sform_code"])),
                ("qform", all(np.array_equal(a.header[f], b.header[f]) for f in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"))),
                ("qform code", int(a.header["qform_code"]) == int(b.header["qform_code"])),
                ("pixdim", np.array_equal(a.header["pixdim"], b.header["pixdim"])),
                ("units", a.header.get_xyzt_units() == b.header.get_xyzt_units()),
                ("number type", b.get_data_dtype() == np.uint8),
                ("slope", b.dataobj.slope == 1 and b.dataobj.inter == 0),
            )
            if not same
        ]
        of_scan, of_mask = itk(scan), itk(mask)
        if of_scan is None:
            refused.append(name)
        elif of_scan != of_mask:
            problems.append(f"SimpleITK: {of_scan} against {of_mask}")
        if b.header["sform_code"] or b.header["qform_code"]:
            b = in_orientation(b, "LPS")
        voxels = np.asarray(b.dataobj).reshape(voxels_of.shape)
        first = voxels if first is None else first
        organs = max(organs, np.unique(voxels).size)
        if not np.array_equal(voxels, first):
            problems.append("voxels: another file of the same anatomy had another mask")
        if problems:
            sys.exit(f"parity: predict: {name}: the mask differs in {', '.join(problems)}")
    if organs < 2:
        sys.exit("parity: predict: every mask is empty, so no orientation was compared")
    print(f"predict: {len(names)} kinds of files, mask and scan agree in nibabel and, but for {refused or 'none'}, in SimpleITK")


if __name__ == "__main__":
    main()

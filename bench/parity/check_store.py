"""Opens a store with zarr-python and pyarrow, knowing only docs/reference/store-format.md, and checks it against SciPy and nibabel.

    python bench/parity/check_store.py STORE.zarr --scans SCANS [--slices 3]

Checks attributes, tables, shapes and number formats of every array, and recomputes images, labels and masks of a few slices from the
raw NIfTI files, in the raw Synapse layout or nnU-Net's. If something differs, prints one line per mismatch and exits with 1.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import google_crc32c
import nibabel
import numpy as np
import pyarrow.parquet
import zarr
from scipy import ndimage

FORMAT_VERSION = 2
ARRAYS = ("embeddings", "images", "labels")
STORED_AS = {"f16": "float16", "f32": "float32", "bf16": "uint16", "q8": "uint8"}
ONE_CT_CHANNEL = [{"index": 0, "name": "CT", "intensity": {"kind": "window"}}]
# Largest difference of an image, whose values lie in about [0, 1]: splines agree to 1e-5; the rest is rounding of the number format.
TOLERANCE = {"f16": 1e-5 + 2.0**-11, "f32": 1e-5, "bf16": 1e-5 + 2.0**-8, "q8": 1e-5 + 2.0**-8}

mismatches = []


def expect(what, found, expected):
    if found != expected:
        mismatches.append(f"{what}: expected {expected}, found {found}")


def to_float32(group, name, row, variant):
    """One variant of one slice of `images`, `embeddings` or `rungs` as float32; bfloat16 is stored as its bits, 8-bit codes with scale and offset."""
    values = group[name][row, variant]
    encoding = group[name].attrs.get("encoding")
    if encoding == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if encoding == "quantized":
        pairs = group["quantization"][row, variant]
        # Channels of the embeddings, of the image, of the rungs.
        images = 256 + (1 if group["images"].ndim == 4 else group["images"].shape[2])
        of = {"embeddings": slice(0, 256), "images": slice(256, images), "rungs": slice(images, None)}[name]
        scale, offset = pairs[of].T[..., None, None]
        codes = values.astype(np.float32).reshape(-1, *values.shape[-2:])
        return (offset + scale * codes).reshape(values.shape)
    return values.astype(np.float32)


def check_checksums(root, store):
    """Every chunk has the checksum that the table records of its place, and the table has every chunk."""
    table = pyarrow.parquet.read_table(store / "checksums.parquet").to_pylist()
    shards = {}
    for row in table:
        chunks = shards.setdefault((row["array"], row["shard"]), [])
        expect("checksums.parquet chunk", row["chunk"], len(chunks))
        chunks.append(row["crc32c"])
    for (path, shard), expected in shards.items():
        content = (store / path / f"c.{shard}{'.0' * (root[path].ndim - 1)}").read_bytes()
        index = np.frombuffer(content[-4 - 16 * len(expected) : -4], "<u8").reshape(-1, 2)
        for chunk, ((offset, length), checksum) in enumerate(zip(index.tolist(), expected)):
            where = f"{path} shard {shard} chunk {chunk}"
            expect(f"{where} stored", int.from_bytes(content[offset + length - 4 : offset + length], "little"), checksum)
            expect(f"{where} computed", google_crc32c.value(content[offset : offset + length - 4]), checksum)
    arrays = [root[split][name] for split in ("train", "test") for name in root[split].array_keys()]
    masks = [root[f"{split}/masks"][case] for split in ("train", "test") for case in root[f"{split}/masks"].array_keys()]
    chunks = [(a.shape[0] * a.shape[1]) for a in arrays] + [mask.shape[0] for mask in masks]
    expect("rows of checksums.parquet", len(table), sum(chunks))


def check_attributes(attributes):
    expect("format_version", attributes["format_version"], FORMAT_VERSION)
    expect("complete", attributes["complete"], True)
    hashed = {key: attributes[key] for key in ("format_version", "config", "sources")}
    canonical = json.dumps(hashed, separators=(",", ":"), ensure_ascii=False)
    expect("cache_id", attributes["cache_id"], hashlib.sha256(canonical.encode()).hexdigest())
    others = {key: value for key, value in attributes.items() if key != "checksum"}
    canonical = json.dumps(others, separators=(",", ":"), ensure_ascii=False)
    expect("checksum", attributes["checksum"], hashlib.sha256(canonical.encode()).hexdigest())


def check_arrays(split, group, config, slices, variants):
    size = config["image_size"]
    grid = size // 16
    made_of_one = "channels_from" in config["preprocessing"]
    channels = 3 if made_of_one else len(config["preprocessing"].get("channels", ONE_CT_CHANNEL))
    image = (size, size) if channels == 1 else (channels, size, size)
    dimensions = {
        "embeddings": ("channel", "grid_y", "grid_x"),
        "images": ("y", "x") if channels == 1 else ("image_channel", "y", "x"),
        "labels": ("low_res_y", "low_res_x"),
    }
    items = {"embeddings": (256, grid, grid), "images": image, "labels": (size // 4, size // 4)}
    names = ARRAYS
    rungs = len(config.get("rungs", ()))
    width = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}[config["encoder"]] if config.get("rung_projection") == "none" else config.get("rung_channels", 64)
    if config["dtype"] == "q8":
        names = (*names, "quantization")
        dimensions["quantization"] = ("quantized_channel", "scale_offset")
        items["quantization"] = (256 + channels + rungs * width, 2)
    if rungs:
        names = (*names, "rungs")
        dimensions["rungs"] = ("rung", "rung_channel", "grid_y", "grid_x")
        items["rungs"] = (rungs, width, grid, grid)
    for name in names:
        array = group[name]
        where = f"{split}/{name}"
        expect(f"{where} shape", array.shape, (slices.num_rows, variants, *items[name]))
        expect(f"{where} dtype", str(array.dtype), {"labels": "uint8", "quantization": "float32"}.get(name, STORED_AS[config["dtype"]]))
        expect(f"{where} shards", array.shards, (1, variants, *items[name]))
        expect(f"{where} chunks", array.chunks, (1, 1, *items[name]))
        expect(f"{where} dimensions", array.metadata.dimension_names, ("slice", "variant", *dimensions[name]))
    names = [f"voxels_{name.replace(' ', '_')}" for name in config["class_names"]]
    expect(f"{split} voxel columns", [name for name in slices.column_names if name.startswith("voxels_")], names)
    expect(f"{split} rows", slices["row"].to_pylist(), list(range(slices.num_rows)))


def check_variants(table):
    probabilities = table["probability"].to_numpy()
    expect("sum of probabilities", round(float(probabilities.sum()), 12), 1.0)
    expect("first variant", table["kind"][0].as_py(), "identity")


def scale(values, intensity, window):
    """A channel's values as [0, 1]."""
    low, high = window
    if intensity["kind"] == "percentiles":
        low, high = np.percentile(values.astype(np.float64), [intensity["low"], intensity["high"]]).astype(np.float32)
    return (np.clip(values, low, high) - low) / (high - low)


def read_case(scans, source, preprocessing):
    """A raw scan: image [d, c, h, w] in [0, 1], classes [d, h, w], and its first file's SHA-256."""
    channels = preprocessing.get("channels", ONE_CT_CHANNEL)
    first = next(path for path in scans.rglob("*.nii*") if path.as_posix().endswith(source))
    if first.parent.name.startswith("images"):
        case, ending = first.name.rsplit("_", 1)[0], first.name.rsplit("_", 1)[1][4:]
        paths = [first.with_name(f"{case}_{channel['index']:04}{ending}") for channel in channels]
        label_path = first.parent.parent / first.parent.name.replace("images", "labels") / f"{case}{ending}"
    else:
        paths, label_path = [first], first.parent.parent / "label" / first.name.replace("img", "label", 1)
    channels_from = preprocessing.get("channels_from", {"kind": "slice"})
    windows = channels_from.get("hu", [preprocessing["window_hu"]])
    scaled = [
        scale(nibabel.load(path).get_fdata().astype(np.float32), channel["intensity"], window).transpose(2, 1, 0)
        for path, channel in zip(paths, channels, strict=True)
        for window in windows
    ]
    if channels_from["kind"] == "neighbours":
        (at,) = scaled
        scaled = [np.concatenate([at[:1], at[:-1]]), at, np.concatenate([at[1:], at[-1:]])]
    label = nibabel.load(label_path).get_fdata().astype(np.int64).transpose(2, 1, 0)
    return np.stack(scaled, 1), np.asarray(preprocessing["label_map"], np.uint8)[label], hashlib.sha256(first.read_bytes()).hexdigest()


def resize(values, size, order):
    height, width = values.shape
    if (height, width) == (size, size):
        return values
    return ndimage.zoom(values, (size / height, size / width), order=order)


def augment(values, variant):
    if variant["kind"] == "reflection":
        return np.flip(np.rot90(values, variant["k"]), variant["axis"])
    if variant["kind"] == "rotation":
        return ndimage.rotate(values, variant["angle_degrees"], order=0, reshape=False)
    return values


def check_slice(split, group, config, row, image, label, variants):
    """Recomputes a slice's variants from the scan's slice, `image` [c, h, w] and `label` [h, w]."""
    size, data_size = config["image_size"], config["data_size"]
    image, label = [resize(channel, data_size, 3) for channel in image], resize(label, data_size, 0)
    for variant in variants:
        index = variant["variant"]
        where = f"slice {row} ({variant['name']})"
        expected = np.stack([resize(augment(channel, variant), size, 3) for channel in image])
        found = to_float32(group, "images", row, index).reshape(expected.shape)
        worst = float(np.abs(found - expected).max())
        if not worst <= TOLERANCE[config["dtype"]]:
            mismatches.append(f"{split}/images of {where}: differs from SciPy by {worst}")
        expected = ndimage.zoom(resize(augment(label, variant), size, 0), 1 / 4, order=0)
        differing = int((group["labels"][row, index] != expected).sum())
        expect(f"{split}/labels of {where}, differing pixels", differing, 0)
        for name in ("embeddings", "rungs") if "rungs" in config else ("embeddings",):
            expect(f"{split}/{name} of {where} finite", bool(np.isfinite(to_float32(group, name, row, index)).all()), True)


def some_variants(variants):
    """The first of each kind, and the last."""
    kinds = {variant["kind"]: variant for variant in reversed(variants)}
    picked = {variant["variant"]: variant for variant in [*kinds.values(), variants[-1]]}
    return [picked[index] for index in sorted(picked)]


def check_against_scans(root, store, config, scans, num_slices, variants):
    for split in ("train", "test"):
        slices = pyarrow.parquet.read_table(store / split / "slices.parquet").to_pylist()
        of_split = some_variants(variants) if split == "train" else variants[:1]
        cases = {}
        for row in slices:
            cases.setdefault(row["case"], []).append(row)
        for case, rows in cases.items():
            image, label, sha256 = read_case(scans, rows[0]["source"], config["preprocessing"])
            expect(f"{split} case {case} slices", len(rows), image.shape[0])
            for row in rows:
                where = f"{split} slice {row['row']}"
                expect(f"{where} source_sha256", row["source_sha256"], sha256)
                expect(f"{where} size", (row["height"], row["width"]), image.shape[2:])
                for index, name in enumerate(config["class_names"], 1):
                    found = row[f"voxels_{name.replace(' ', '_')}"]
                    expect(f"{where} voxels of {name}", found, int((label[row["slice_index"]] == index).sum()))
            mask = root[f"{split}/masks"][case][:]
            expect(f"{split} mask {case} shape", mask.shape, label.shape)
            expect(f"{split} mask {case} differing voxels", int((mask != label).sum()) if mask.shape == label.shape else -1, 0)
            for row in rows[:: max(1, len(rows) // num_slices)][:num_slices]:
                index = row["slice_index"]
                check_slice(split, root[split], config, row["row"], image[index], label[index], of_split)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--scans", type=Path, help="the raw scans that the store was made from")
    parser.add_argument("--slices", type=int, default=3, help="slices of each case to recompute")
    args = parser.parse_args()

    root = zarr.open_group(args.store, mode="r")
    attributes = dict(root.attrs)
    config = attributes["config"]
    check_attributes(attributes)
    variants = pyarrow.parquet.read_table(args.store / "variants.parquet")
    check_variants(variants)
    check_checksums(root, args.store)
    for split in ("train", "test"):
        slices = pyarrow.parquet.read_table(args.store / split / "slices.parquet")
        check_arrays(split, root[split], config, slices, variants.num_rows if split == "train" else 1)
    if args.scans:
        check_against_scans(root, args.store, config, args.scans, args.slices, variants.to_pylist())

    for mismatch in mismatches:
        print(mismatch, file=sys.stderr)
    print(f"{args.store}: {'differs' if mismatches else 'as documented'} ({config['dtype']}, {variants.num_rows} variants)")
    return 1 if mismatches else 0


if __name__ == "__main__":
    sys.exit(main())

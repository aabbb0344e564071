"""Writes chain.json: what SciPy and NumPy make of more shapes and of all 44 variants than augment.safetensors holds.

Run with any Python that has numpy and scipy (1.17.1 wrote the committed file): python tests/golden/make_chain.py
Inputs follow the rule of README.md; hashes are FNV-1a 64 over the bytes of a uint8 array in C order.
"""

import json
import pathlib

import numpy as np
from scipy import ndimage


def fnv1a(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def rule(name, shape):
    h = np.uint64(fnv1a(name.encode()))
    with np.errstate(over="ignore"):
        z = h + np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1).reshape(shape)


def image(shape):
    return ((rule(f"chain.image.{shape[0]}x{shape[1]}", shape) + 1) / 2).astype(np.float32)


def label(shape):
    return np.floor((rule(f"chain.label.{shape[0]}x{shape[1]}", shape) + 1) / 2 * 9).astype(np.uint8)


def zoom(array, shape, order):
    if array.shape == tuple(shape):
        return array
    return ndimage.zoom(array, (shape[0] / array.shape[0], shape[1] / array.shape[1]), order=order)


def text_hash(array):
    assert array.dtype == np.uint8
    return f"{fnv1a(np.ascontiguousarray(array).tobytes()):016x}"


def main():
    out = {"rotate": [], "zoom_nearest": [], "chain": []}
    for shape in [(224, 224), (225, 225), (101, 160)]:
        hashes = {str(a): text_hash(ndimage.rotate(label(shape), a, order=0, reshape=False)) for a in range(-20, 20)}
        out["rotate"].append({"shape": shape, "hash_by_angle": hashes})
    # Endpoint grids whose last coordinate rounds to just above the last pixel are among these: 58 to 224, 32 to 224, 14 to 100.
    for source, target in [((58, 32), (224, 224)), ((14, 27), (100, 100)), ((512, 512), (224, 224)), ((224, 224), (512, 512)),
                           ((512, 512), (128, 128)), ((224, 224), (56, 56)), ((1, 7), (3, 1)), ((97, 131), (224, 41))]:
        out["zoom_nearest"].append({"from": source, "to": target, "hash": text_hash(zoom(label(source), target, 0))})

    variants = {"identity": lambda x: x}
    for k in (0, 1):
        for axis in (0, 1):
            variants[f"rot90x{k}_flip{axis}"] = lambda x, k=k, axis=axis: np.flip(np.rot90(x, k), axis).copy()
    for angle in range(-20, 20):
        if angle:
            variants[f"rotate{angle}"] = lambda x, angle=angle: ndimage.rotate(x, angle, order=0, reshape=False)
    shape, data, network = (137, 151), 224, 512
    image_at_data, label_at_data = zoom(image(shape), (data, data), 3), zoom(label(shape), (data, data), 0)
    for name, variant in variants.items():
        network_image = zoom(variant(image_at_data), (network, network), 3)
        network_label = zoom(variant(label_at_data), (network, network), 0)
        low_res = zoom(network_label, (network // 4, network // 4), 0)
        out["chain"].append({"variant": name, "label_hash": text_hash(low_res),
                             "every_8191st_pixel": [float(v) for v in network_image.ravel()[::8191]]})
    out["chain_sizes"] = {"slice": shape, "data_size": data, "image_size": network}
    pathlib.Path(__file__).with_name("chain.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()

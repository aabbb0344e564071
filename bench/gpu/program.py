"""The program's part of `make gpu-check`: both stages on a phantom, and runs that must agree."""

import json
import struct


def program_steps(program, folder, device):
    """What is run, and as what: [(name, command)]."""
    phantom = ["--cases", "4", "--size", "96", "--depth", "6", "--seed", "1"]
    stage_one = ["--scans", folder / "scans", "--random-encoder", "1", "--image-size", "224", "--data-size", "96", "--augment", "flips"]
    train = ["--store", folder / "s.zarr", "--epochs", "2", "--batch-size", "4", "--warmup", "2", "--device", device]

    def run(name, *more):
        return f"train, {name}", [program, "train", *train, "--run", folder / name, *more]

    return [
        ("phantom", [program, "phantom", "--out", folder / "scans", *phantom]),
        ("precompute", [program, "precompute", *stage_one, "--store", folder / "s.zarr", "--device", device]),
        ("precompute, bf16", [program, "precompute", *stage_one, "--store", folder / "bf16.zarr", "--precision", "bf16", "--device", device]),
        ("verify", [program, "verify", "--store", folder / "s.zarr"]),
        run("resident"),
        run("streamed", "--device-store", "off"),
        run("plain", "--cuda-graph", "off"),
        run("bf16", "--precision", "bf16"),
        run("resumed", "--max-steps", "3"),
        ("train, resumed to its end", [program, "train", *train, "--run", folder / "resumed", "--max-steps", "1000", "--resume"]),
        ("eval", [program, "eval", "--store", folder / "s.zarr", "--run", folder / "resident", "--out", folder / "eval", "--device", device]),
    ]


def tensors(path):
    """The float32 tensors of a safetensors file, flat; read by hand, since a borrowed machine may have no library for it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            found[name] = struct.unpack(f"<{(end - begin) // 4}f", data[8 + length + begin : 8 + length + end])
    return found


def compare_runs(folder):
    """The largest difference of each run's trained weights from the resident run's, relative to the norm: [(name, good, found)]."""
    reference = tensors(folder / "resident/checkpoint.safetensors")
    trained = [key for key in reference if ("CNN_encoder" in key or "output_upscaling" in key or key.endswith("alpha")) and "running" not in key]
    rows = []
    for name, bound in [("streamed", 1e-3), ("plain", 1e-3), ("resumed", 1e-3), ("bf16", 0.2)]:
        other = tensors(folder / name / "checkpoint.safetensors")
        worst = 0.0
        for key in trained:
            difference = sum((a - b) ** 2 for a, b in zip(other[key], reference[key])) ** 0.5
            error = difference / (sum(value**2 for value in reference[key]) ** 0.5 + 1e-6)
            worst = max(worst, error) if error == error else float("inf")
        rows.append((f"resident = {name}", worst < bound, f"{worst:.1e}"))
    return rows

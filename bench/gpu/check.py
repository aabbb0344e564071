"""`make gpu-check`: everything that needs a GPU, in one command, on a machine with an NVIDIA driver, the CUDA 13 and cuDNN 9 libraries, and a
Python with PyTorch and torchvision. Installs nothing.

First come the golden cases and every operation's gradients on the device, training from the store, and resuming; then the times next to PyTorch's, and
the losses of each precision on the same batches. A short table is printed last, and `bench/results/<gpu>-<date>/` gets `checks.txt`, `bench.csv`,
`trajectories.csv` and `summary.md`. The exit status is not zero if a check fails. Work that is slower than its target is reported and is no failure.

It takes the binaries from `--binaries` (a folder made by `make gpu-pack`), or from target-cuda/release after `make gpu-binaries`.
"""

import argparse
import csv
import os
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# name of a test binary, arguments: run with SAM_LADDER_TEST_DEVICE
CHECKS = [
    ("every kernel against the CPU", "sam_ladder_ops", ["cuda::tests::"]),
    ("golden encoder at 224 and 512", "golden_encoder", []),
    ("golden step, all gradients", "golden_step", []),
    ("golden trajectory of 16 steps", "golden_trajectory", []),
]

# work, our command, PyTorch's case, PyTorch's options, at most this ratio
STEP = ["gpu_step", "512", "24"]
BENCHMARKS = [
    ("step bf16, 512, batch 24, against (a) the published loop", [*STEP, "bf16"], "published", ["--steps", "4"], 0.02),
    ("step bf16, 512, batch 24, against (b) an ideal loader", [*STEP, "bf16"], "ideal", ["--steps", "4"], 0.1),
    ("step f32, 512, batch 24, against (b) an ideal loader", [*STEP, "f32"], "ideal", ["--steps", "4"], 0.1),
    ("step bf16, 512, batch 24, against (c) the strongest", [*STEP, "bf16"], "strongest", [], 1.0),
    ("the same as a CUDA graph, against (c)", [*STEP, "bf16", "--graph"], "strongest", [], 1.0),
    ("encoder ViT-B bf16, 512, batch 16", ["gpu_encoder", "vit_b", "512", "16", "bf16"], "encoder", ["--batch", "16"], 1.0),
]


PRECISIONS = ("f32", "tf32", "bf16")
TRAJECTORY_STEPS = 200
# 16 trials of λ and the learning rate
SWEEP = """
[settings]
epochs = 2
batch_size = 8
warmup = 4
lr = { min = 1e-4, max = 1e-2, scale = "log", points = 4 }
lambda = { min = 0.2, max = 0.8, points = 4 }
[search]
method = "grid"
[validation]
fold = "1/3"
"""


def find(folder, name):
    """A binary by its name; cargo's test binaries carry a hash."""
    exact = [folder / name, folder / "examples" / name]
    hashed = sorted((path for path in (folder / "deps").glob(f"{name}-*") if path.suffix == ""), key=lambda path: path.stat().st_mtime)
    found = [path for path in exact if path.is_file()] + hashed[-1:]
    return found[0] if found else None


def library_path():
    """The loader's path: what is set already, then the CUDA libraries that come with PyTorch."""
    try:
        import torch
    except ImportError:
        return os.environ.get("LD_LIBRARY_PATH", "")
    site = Path(torch.__file__).resolve().parent.parent
    folders = [str(path) for path in sorted(site.glob("nvidia/*/lib"))] + [str(site / "torch/lib")]
    return ":".join(filter(None, [os.environ.get("LD_LIBRARY_PATH", ""), *folders]))


def run(command, environment, log, limit):
    """Runs a command and logs it; returns its output, or None if it failed."""
    start = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=limit)
        output, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, status = f"{error.stdout or ''}\nstopped after {limit} s", 124
    except OSError as error:
        output, status = str(error), 127
    log.write(f"$ {' '.join(map(str, command))}\n{output}\nstatus {status}, {time.perf_counter() - start:.1f} s\n\n")
    log.flush()
    return output if status == 0 else None


def gpu_name(device):
    index = device.split(":")[1]
    try:
        done = subprocess.run(["nvidia-smi", f"--id={index}", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit("gpu-check: there is no nvidia-smi on the PATH; this needs a machine with a GPU and NVIDIA's driver")
    if done.returncode != 0 or not done.stdout.strip():
        sys.exit(f"gpu-check: nvidia-smi finds no GPU {index}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def last_number(output, unit):
    found = re.findall(rf"([0-9.eE+-]+) {unit}", output or "")
    return float(found[-1]) if found else None


def pipeline(program, device, environment, log):
    """Runs both stages through the program: checks that resident equals streamed, and that a stopped run resumes."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    try:
        phantom = ["--cases", "4", "--size", "96", "--depth", "6", "--seed", "1"]
        stage_one = ["--scans", folder / "RawData", "--random-encoder", "1", "--image-size", "224", "--data-size", "96", "--augment", "flips"]
        train = ["--store", folder / "s.zarr", "--epochs", "2", "--batch-size", "4", "--warmup", "2", "--device", device]
        steps = [
            [program, "phantom", "--out", folder / "RawData", *phantom],
            [program, "precompute", *stage_one, "--store", folder / "s.zarr", "--device", device],
            [program, "precompute", *stage_one, "--store", folder / "bf16.zarr", "--precision", "bf16", "--device", device],
            [program, "verify", "--store", folder / "s.zarr"],
            [program, "train", *train, "--run", folder / "resident"],
            [program, "train", *train, "--run", folder / "streamed", "--device-store", "off"],
            [program, "train", *train, "--run", folder / "graphed", "--cuda-graph"],
            [program, "train", *train, "--run", folder / "bf16", "--precision", "bf16"],
            [program, "train", *train, "--run", folder / "resumed", "--max-steps", "3"],
            [program, "train", *train, "--run", folder / "resumed", "--max-steps", "1000", "--resume"],
            [program, "eval", "--store", folder / "s.zarr", "--run", folder / "resident", "--out", folder / "eval", "--device", device],
        ]
        for command in steps:
            if run(command, environment, log, 600) is None:
                return False, f"failed: {' '.join(map(str, command[1:3]))}"
        return compare_runs(folder, log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tensors(path):
    """The float32 tensors of a safetensors file, flat. Read by hand, because only PyTorch can be relied on."""
    import json
    import struct

    import torch

    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            found[name] = torch.frombuffer(bytearray(data[8 + length + begin : 8 + length + end]), dtype=torch.float32)
    return found


def compare_runs(folder, log):
    """Largest difference of each run's weights from the resident run's, relative to the norm."""
    reference = tensors(folder / "resident/checkpoint.safetensors")
    worst = {}
    for name, bound in [("streamed", 1e-3), ("graphed", 1e-3), ("resumed", 1e-3), ("bf16", 0.2)]:
        other = tensors(folder / name / "checkpoint.safetensors")
        trained = [key for key in reference if "CNN_encoder" in key or "output_upscaling" in key or key.endswith("alpha")]
        error = max(float((other[key] - reference[key]).norm() / (reference[key].norm() + 1e-6)) for key in trained if "running" not in key)
        worst[name] = (error, error < bound)
    log.write(f"{worst}\n")
    told = ", ".join(f"{name} {error:.1e}" for name, (error, _) in worst.items())
    return all(good for _, good in worst.values()), told


def trajectories(binary, device, environment, log, out):
    """The losses of each precision on the same batches from the same weights, and how far they end from those of float32."""
    curves = {}
    for precision in PRECISIONS:
        output = run([binary, *STEP[1:], precision, device, str(TRAJECTORY_STEPS), "--losses"], environment, log, 900)
        curves[precision] = [float(total) for total in re.findall(r"^\d+,([^,]+),[^,]+,[^,]+$", output or "", re.MULTILINE)]
        if len(curves[precision]) != TRAJECTORY_STEPS:
            return False, f"{precision} failed"
    with open(out / "trajectories.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *PRECISIONS])
        writer.writerows([step, *(curves[precision][step] for precision in PRECISIONS)] for step in range(TRAJECTORY_STEPS))
    last = {precision: statistics.fmean(curve[-20:]) for precision, curve in curves.items()}
    told = ", ".join(f"{precision} {loss:.4f}" for precision, loss in last.items())
    return all(abs(loss - last["f32"]) < 0.05 * last["f32"] for loss in last.values()), f"mean loss of the last 20 of {TRAJECTORY_STEPS} steps: {told}"


def trials(program, device, environment, log):
    """Seconds of a sweep of 16 trials and of 16 `train` commands with the same settings, on a phantom at 224."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "sweep.toml").write_text(SWEEP)
        steps = [
            [program, "phantom", "--out", folder / "scans", "--cases", "8", "--size", "128", "--depth", "16", "--seed", "1"],
            [program, "precompute", "--scans", folder / "scans", "--store", folder / "s.zarr", "--random-encoder", "1", "--preset", "native224",
             "--augment", "none", "--device", device],  # fmt: skip
        ]
        for command in steps:
            if run(command, environment, log, 600) is None:
                return None
        common = ["--store", folder / "s.zarr", "--device", device]
        settings = ["--epochs", "2", "--batch-size", "8", "--warmup", "4", "--fold", "1/3"]
        points = [(10 ** (-4 + 2 * i / 3), 0.2 * j) for i in range(4) for j in range(1, 5)]
        runs = [
            [program, "train", *common, *settings, "--run", folder / f"run-{lr:.1e}-{weight:.1f}", "--lr", f"{lr:e}", "--lambda", f"{weight:.1f}"]
            for lr, weight in points
        ]
        seconds = []
        for commands in ([[program, "sweep", *common, "--config", folder / "sweep.toml", "--out", folder / "sweep"]], runs):
            start = time.perf_counter()
            if any(run(command, environment, log, 1200) is None for command in commands):
                return None
            seconds.append(time.perf_counter() - start)
        return seconds
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def figures(arguments, program, environment, log, rows):
    """The targets other than a ratio to PyTorch: [what, found, target, whether it is reached]."""
    found = []
    rate = last_number(run([sys.executable, HERE / "torch_stages.py", "matrix", "--device", arguments.device], environment, log, 300), "TFLOP/s")
    binary = find(arguments.binaries, "gpu_encoder")
    encoder = last_number(run([binary, "vit_b", "512", "16", "bf16", arguments.device], environment, log, 600), "TFLOP/s") if binary else None
    if rate and encoder:
        share = encoder / rate
        found.append(("encoder's share of the bf16 matrix rate", f"{encoder:.0f} of {rate:.0f} TFLOP/s, {share:.0%}", "at least 40 %", share >= 0.4))
    taken = [row["ours_gib"] for row in rows if row["work"].startswith("step") and row["ours_gib"]]
    if taken:
        found.append(("memory of a step at 512, batch 24", f"{max(taken):.2f} GiB", "under 10 GB", max(taken) * 1.073741824 < 10))
    both = trials(program, arguments.device, environment, log) if program else None
    if both:
        sweep, runs = both
        text = f"{sweep:.1f} s, {runs:.1f} s by 16 train commands: {sweep / runs:.2f}"
        found.append(("a sweep of 16 trials", text, "at most 1.0", sweep <= runs))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binaries", type=Path, default=ROOT / "target-cuda/release")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--checks-only", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", default="max-autotune", help="of PyTorch's torch.compile")
    arguments = parser.parse_args()

    name = gpu_name(arguments.device)
    out = arguments.out or ROOT / "bench/results" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date.today()}"
    out.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, LD_LIBRARY_PATH=library_path(), SAM_LADDER_TEST_DEVICE=arguments.device, CARGO_MANIFEST_DIR=str(ROOT))
    checks, rows = [], []
    with open(out / "checks.txt", "w") as log:
        for what, binary, options in CHECKS:
            path = find(arguments.binaries, binary)
            command = [path, *options, "--nocapture", "--test-threads=1"]
            output = run(command, environment, log, 900) if path else None
            passed = output is not None and "skipped:" not in output and re.search(r"test result: ok\. [1-9]", output)
            checks.append((what, bool(passed), "" if path else f"no {binary} in {arguments.binaries}"))
        program = find(arguments.binaries, "sam-ladder")
        passed, told = pipeline(program, arguments.device, environment, log) if program else (False, "no sam-ladder")
        checks.append(("stages through the program: resident = streamed = resumed", passed, told))
        for what, ours, case, options, goal in [] if arguments.checks_only else BENCHMARKS:
            binary = find(arguments.binaries, ours[0])
            mine, theirs, memory = [], [], (None, None)
            for _ in range(arguments.rounds):
                output = run([binary, *ours[1:], arguments.device], environment, log, 600) if binary else None
                torch_case = [sys.executable, HERE / "torch_stages.py", case, "--device", arguments.device, "--mode", arguments.mode, *options]
                torch_output = run(torch_case, environment, log, 1200)
                mine.append(last_number(output, "s/image"))
                theirs.append(last_number(torch_output, "s/image"))
                memory = (last_number(output, "GiB taken"), last_number(torch_output, "GiB taken"))
            if None in mine or None in theirs:
                checks.append((what, False, "a side failed, see checks.txt"))
                continue
            a, b = statistics.median(mine), statistics.median(theirs)
            rows.append({"work": what, "ours_s_per_image": a, "torch_s_per_image": b, "ratio": a / b, "asked": goal, "ours_gib": memory[0], "torch_gib": memory[1]})
        others = []
        if not arguments.checks_only:
            binary = find(arguments.binaries, STEP[0])
            good, told = trajectories(binary, arguments.device, environment, log, out) if binary else (False, f"no {STEP[0]}")
            checks.append(("losses of tf32 and bf16, compared with float32's", good, told))
            others = figures(arguments, program, environment, log, rows)
    if rows:
        with open(out / "bench.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    lines = [f"# {name}, {date.today()}", "", "| check | |", "| --- | --- |"]
    lines += [f"| {what} | {'passed' if good else 'FAILED'} {told} |" for what, good, told in checks]
    lines += ["", "| work | s per image | PyTorch's | ratio | target |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {r['work']} | {r['ours_s_per_image']:.6f} | {r['torch_s_per_image']:.6f} | {r['ratio']:.3f} | {r['asked']} |" for r in rows]
    lines += ["", "| figure | found | target | |", "| --- | --- | --- | --- |"]
    lines += [f"| {what} | {told} | {asked} | {'reached' if holds else 'not reached'} |" for what, told, asked, holds in others]
    (out / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"\nwritten to {out}")
    sys.exit(0 if all(good for _, good, _ in checks) else 1)


if __name__ == "__main__":
    main()

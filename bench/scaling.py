"""How our times grow: varies batch, image size, threads and slices one at a time; the rest is as in the main table."""

import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from fixture import run

ROUNDS = 3
# work, the axis that varies, command with {} for its value, its values, images per call
SWEEPS = [
    ("encoder, 224", "batch", ["bench_encoder", "vit_b", "224", "{}"], [1, 2, 4, 8], None),
    ("encoder, batch 1", "image size", ["bench_encoder", "vit_b", "{}", "1"], [128, 224, 320, 512], 1),
    ("encoder, 224, batch 4", "threads", ["bench_encoder", "vit_b", "224", "4"], None, 4),
    ("step, 224", "batch", ["bench_step", "224", "{}"], [4, 8, 16, 24], None),
    ("step, batch 8", "image size", ["bench_step", "{}", "8"], [128, 224, 320, 512], 8),
    ("step, 224, batch 24", "threads", ["bench_step", "224", "24"], None, 24),
]
SLICES = [8, 16, 32]


def seconds_per_image(command, threads):
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    output = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(re.findall(r"([0-9.eE+-]+) s/image", output)[-1])


def sweep(examples, threads):
    """Yields one row per point: seconds per call."""
    for work, axis, words, values, images in SWEEPS:
        for value in values or sorted({1, threads}):
            name, *arguments = words
            command = [examples / name, *(word.format(value) for word in arguments), str(ROUNDS)]
            seconds = seconds_per_image(command, value if axis == "threads" else threads)
            yield {"work": work, "axis": axis, "value": value, "seconds": f"{seconds * (images or value):.4f}"}


def sweep_slices(program):
    """Times whole commands on a scan of a given number of slices: all of `precompute`, and an epoch of `train`."""
    for slices in SLICES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            scans, store, trained = folder / "scans", folder / "store.zarr", folder / "run"
            run(program, "phantom", "--out", scans, "--cases", 1, "--size", 224, "--depth", slices)
            start = time.perf_counter()
            run(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 1, "--preset", "native224", "--augment", "none")
            precompute = time.perf_counter() - start
            run(program, "train", "--store", store, "--run", trained, "--epochs", 4, "--batch-size", 8)
            epoch = statistics.median(pq.read_table(trained / "epochs.parquet")["seconds"].to_pylist()[1:])
        yield {"work": "precompute, 224", "axis": "slices", "value": slices, "seconds": f"{precompute:.3f}"}
        yield {"work": "epoch, 224", "axis": "slices", "value": slices, "seconds": f"{epoch:.3f}"}


def sweep_threads(program, threads):
    """Times `precompute` by threads, and for how long its encoder waited for images (0 where the program does not mention it)."""
    for value in sorted({1, threads}):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            run(program, "phantom", "--out", folder / "scans", "--cases", 2, "--size", 224, "--depth", 16)
            words = ["precompute", "--scans", folder / "scans", "--store", folder / "store.zarr", "--random-encoder", 1]
            words += ["--preset", "native224", "--augment", "none"]
            environment = dict(os.environ, RAYON_NUM_THREADS=str(value))
            start = time.perf_counter()
            done = subprocess.run([program, *map(str, words)], check=True, stderr=subprocess.PIPE, text=True, env=environment)
            seconds = time.perf_counter() - start
            waited = re.search(r"the encoder waited ([0-9.]+) s", done.stderr)
        yield {"work": "precompute of 32 slices, 224", "axis": "threads", "value": value, "seconds": f"{seconds:.3f}"}
        waited = waited.group(1) if waited else "0"
        yield {"work": "precompute of 32 slices, 224: encoder waits", "axis": "threads", "value": value, "seconds": waited}

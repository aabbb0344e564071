"""Times an epoch of `sam-ladder train` at 224 from a store on disk: time_epoch.py PROGRAM SLICES BATCH → seconds a slice of the second epoch.

The store is made in the same run, of phantoms and an encoder with random weights; making it is not timed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

program, slices, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def run(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    scans, store, trained = folder / "scans", folder / "store.zarr", folder / "run"
    # Two scans, of which the published split trains on one.
    run(program, "phantom", "--out", scans, "--cases", 2, "--size", 224, "--depth", slices, "--seed", 1)
    run(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 1, "--preset", "native224", "--augment", "none")
    table = pq.read_table(store / "train/slices.parquet")
    run(program, "train", "--store", store, "--run", trained, "--epochs", 2, "--batch-size", batch, "--read", "stream")
    seconds = pq.read_table(trained / "epochs.parquet")["seconds"].to_pylist()
    print(f"{seconds[1] / table.num_rows:.5f} s/image")

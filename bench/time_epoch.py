"""Times an epoch of `sam-ladder train` from a store on disk: time_epoch.py PROGRAM STORE BATCH → median seconds per slice, without the first epoch."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

program, store, batch = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
slices = pq.read_table(store / "train/slices.parquet").num_rows
with tempfile.TemporaryDirectory() as temporary:
    run = Path(temporary) / "run"
    command = [program, "train", "--store", store, "--run", run, "--epochs", "3", "--batch-size", batch, "--read", "stream"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = pq.read_table(run / "epochs.parquet")["seconds"].to_pylist()
print(f"{statistics.median(seconds[1:]) / slices:.5f} s/image")

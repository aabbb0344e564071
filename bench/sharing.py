"""`make bench-sharing`: what a sweep's trials save by reading the store together: sharing.py PROGRAM [SIZE EPOCHS]

Trains four learning rates on one phantom store at SIZE pixels (224): each as a `train` of its own, one after the other, then as sweeps with one, two
and four jobs. Prints total seconds and peak memory as Markdown. The runs are the same to the byte (tests/sweep.rs).
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
JOBS = (1, 2, 4)


def measured(*command):
    """Seconds and peak MiB of a command."""
    begun = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(process.args)}: failed with {process.returncode}")
    return time.monotonic() - begun, usage.ru_maxrss / 1024


def main():
    program = Path(sys.argv[1]).resolve()
    size, epochs = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (224, 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scans, store = folder / "scans", folder / "store.zarr"
        measured(program, "phantom", "--out", scans, "--cases", 8, "--size", 128, "--depth", 16, "--seed", 1)
        measured(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 1, "--image-size", size, "--data-size", size, "--augment", "none")
        print("| four runs | seconds | relative to `train` | peak memory, MiB |\n| --- | ---: | ---: | ---: |", flush=True)
        lone = [
            measured(program, "train", "--store", store, "--run", folder / f"run-{rate}", "--lr", rate, "--epochs", epochs, "--batch-size", 8, "--warmup", 4, "--fold", "1/3")
            for rate in RATES
        ]
        alone = sum(seconds for seconds, _ in lone)
        print(f"| `train`, one after the other | {alone:.1f} | 1.00 | {max(memory for _, memory in lone):.0f} |", flush=True)
        config = folder / "sweep.toml"
        config.write_text(
            f'[settings]\nepochs = {epochs}\nbatch_size = 8\nwarmup = 4\nlr = {list(RATES)}\n[search]\nmethod = "grid"\n[validation]\nfold = "1/3"\n'
        )
        for jobs in JOBS:
            seconds, memory = measured(program, "sweep", "--store", store, "--config", config, "--out", folder / f"sweep-{jobs}", "--jobs", jobs)
            print(f"| `sweep --jobs {jobs}` | {seconds:.1f} | {seconds / alone:.2f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""`make bench-sweep`: TPE with successive halving against a grid of 64 points, as a table in Markdown.

    python bench/sweep_search.py PROGRAM [--work DIR] [--seeds N] [--searches NAME,NAME]

A small phantom (64 pixels) is precomputed once. The grid (8 learning rates × 8 λ) is trained completely; each seed of the other searches may spend at
most a third of the grid's epochs. As many searches as there are cores run at a time, each on one thread: so small a training run does not gain from
more. Fails unless TPE with successive halving comes within 1 % Dice of the grid's best on every seed. With --work, an interrupted call can be resumed;
the seconds then count from the new start.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

# Ten of them are training scans: six are trained on, four are held out. The noise of a run has to be well below the bound of 1 %. With eight scans (two held
# out) the Dice of one setting had a standard deviation over seeds of two hundredths, since organs of a few voxels were found or not; with these it is two
# thousandths.
SCANS = 16
EPOCHS = 15
# Lowest rung of successive halving: where the curves begin to differ
MIN_EPOCHS = 5
GRID = 8
SETTINGS = f"""
[settings]
epochs = {EPOCHS}
batch_size = 8
warmup = 4
lr = {{ min = 1e-5, max = 3e-2, scale = "log", points = {GRID} }}
lambda = {{ min = 0.05, max = 0.95, points = {GRID} }}
[validation]
fold = "1/3"
"""
SEARCHES = {
    "grid": '[search]\nmethod = "grid"\n',
    "TPE + ASHA": '[search]\nmethod = "tpe"\nseed = {seed}\n[pruning]\nmethod = "asha"\nmin_epochs = {rung}\n[budget]\nepochs = {third}\ntrials = 64\n',
    "TPE": '[search]\nmethod = "tpe"\nseed = {seed}\n[budget]\nepochs = {third}\n',
    "random + ASHA": '[search]\nmethod = "random"\nseed = {seed}\n[pruning]\nmethod = "asha"\nmin_epochs = {rung}\n[budget]\nepochs = {third}\ntrials = 64\n',
    "random": '[search]\nmethod = "random"\nseed = {seed}\n[budget]\nepochs = {third}\n',
}


def run(*command):
    environment = dict(os.environ, RAYON_NUM_THREADS="1")
    done = subprocess.run([str(word) for word in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[1]} ended with {done.returncode}: {done.stderr.strip()}")


def search(program, store, work, name, seed):
    """Best Dice, epochs of all runs, trials, seconds."""
    third = EPOCHS * GRID * GRID // 3
    config = work / f"{name.replace(' ', '')}-{seed}.toml"
    # A budget of epochs lets what is under way end, at most from one rung to the next.
    budget = third - (EPOCHS - MIN_EPOCHS) + 1
    out = config.with_suffix("")
    begun = time.monotonic()
    config.write_text(SETTINGS + SEARCHES[name].format(seed=seed, third=budget, rung=MIN_EPOCHS))
    # With the file, a folder of another benchmark's settings is refused.
    resume = ["--resume"] if (out / "sweep.json").exists() else []
    run(program, "sweep", "--store", store, "--config", config, "--out", out, "--jobs", 1, *resume)
    seconds = time.monotonic() - begun
    trials = pq.read_table(out / "trials.parquet").to_pylist()
    best = max((row for row in trials if row["status"] == "finished"), key=lambda row: row["dice"])
    epochs = pq.read_table(out / "curves.parquet").num_rows
    assert name == "grid" or epochs <= third, (name, epochs, third)
    return best["dice"], json.loads(best["settings"]), epochs, len(trials), seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--searches", default=",".join(SEARCHES))
    args = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()
    work = args.work or Path(temporary.name)
    work.mkdir(parents=True, exist_ok=True)
    scans, store = work / "scans", work / "store.zarr"
    if not scans.exists():
        partial = work / "scans.partial"
        shutil.rmtree(partial, ignore_errors=True)
        run(args.program, "phantom", "--out", partial, "--cases", SCANS, "--size", 64, "--depth", 12, "--seed", 1)
        partial.rename(scans)
    run(args.program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 1, "--image-size", 64, "--data-size", 64, "--augment", "none")
    print("| search | seed | best Dice | below the grid's best | at lr, λ | epochs | relative to the grid | trials | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    wanted = [("grid", 1), *((name, seed) for name in args.searches.split(",") if name != "grid" for seed in range(1, args.seeds + 1))]
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = [pool.submit(search, args.program, store, work, name, seed) for name, seed in wanted]
        top, _, all_epochs, _, _ = results[0].result()
        for (name, seed), result in zip(wanted, results):
            dice, at, epochs, trials, seconds = result.result()
            print(f"| {name} | {'–' if name == 'grid' else seed} | {dice:.4f} | {top - dice:+.4f} | {at['lr']:.2e}, {at['lambda']:.2f} "
                  f"| {epochs} | {epochs / all_epochs:.2f} | {trials} | {seconds:.0f} |", flush=True)  # fmt: skip
            if name == "TPE + ASHA":
                found.append(dice)
    if found:
        print(f"\nTPE + ASHA, mean over seeds: {top - statistics.fmean(found):+.4f} below the grid's best")
    missed = sum(dice < top - 0.01 for dice in found)
    if missed:
        sys.exit(f"TPE + ASHA stays more than 1 % Dice below the grid's best on {missed} of {len(found)} seeds")


if __name__ == "__main__":
    main()

"""Compares the options that go beyond the paper, on phantoms: beyond.py PROGRAM FOLDER [SEEDS] [SIZE] [BENCH_STEP]

Makes the scans of `make demo` and a store of them with reflections and rungs at SIZE pixels (224, or 64 for a quick look), trains every choice
with the same seeds and budget, evaluates, and prints Dice and HD95 of each as Markdown, and with BENCH_STEP the step times. Finished parts are
kept, so an interrupted call resumes. Needs pyarrow.
"""

import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq

program, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
seeds = range(1, 1 + int(sys.argv[3]) if len(sys.argv) > 3 else 2)
size = int(sys.argv[4]) if len(sys.argv) > 4 else 224
bench_step = sys.argv[5] if len(sys.argv) > 5 else None
# Small images need more epochs.
BUDGET = f"--epochs {15 if size >= 224 else 40} --batch-size 8 --warmup 10"
CHOICES = {
    "published": "",
    "`--side-network resnet34`": "--side-network resnet34",
    "`--side-network resnet50`": "--side-network resnet50",
    "`--side-network vit-tiny`": "--side-network vit-tiny",
    "`--gate channel`": "--gate channel",
    "`--gate pixel`": "--gate pixel",
    "`--decoder skips`": "--decoder skips",
    "`--neighbours 1`": "--neighbours 1",
    "`--ladder gated`": "--ladder gated",
    "`--train-mask-tokens`": "--train-mask-tokens",
    "`--train-mask-tokens --train-hypernetworks`": "--train-mask-tokens --train-hypernetworks",
}
FOLDS = 3


def call(words, makes):
    """Runs the program unless the file that it makes last exists."""
    if not makes.exists():
        command = [str(program), *words.split()]
        print("+", *command[1:], file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train(name, options, seed):
    run = folder / f"{name}-{seed}"
    if not (run / "done").exists():
        resume = "--resume" if (run / "config.json").exists() else f"{BUDGET} --seed {seed} {options}"
        call(f"train --store {folder}/store.zarr --run {run} {resume}", run / "done")
        (run / "done").touch()
    return run


def score(name, words):
    """Mean Dice and HD95 in millimetres of an evaluation with the standard protocol."""
    out = folder / f"eval-{name}"
    call(f"eval --store {folder}/store.zarr --out {out} --protocol standard --force {words}", out / "report.html")
    rows = pq.read_table(out / "summary.parquet").to_pylist()
    mean = next(row for row in rows if row["organ"] == "mean")
    return mean["dice"], mean["hd95"]


def shown(scores):
    dice, hd95 = zip(*scores)
    return f"{fmean(dice):.3f} | {fmean(hd95):.2f} |" + (f" {min(dice):.3f}–{max(dice):.3f} |" if len(dice) > 1 else "")


folder.mkdir(parents=True, exist_ok=True)
call(f"phantom --out {folder}/scans --cases 8 --size 128 --depth 16 --seed 1", folder / "scans")
stored = folder / "stored"
call(
    f"precompute --scans {folder}/scans --store {folder}/store.zarr --random-encoder 1 "
    f"--image-size {size} --data-size {size} --augment flips --test-augment flips --rungs 2,5,8,11",
    stored,
)
stored.touch()

runs = {}
for seed in seeds:
    for name, options in CHOICES.items():
        key = name.strip("`").replace("--", "").replace(" ", "_")
        runs.setdefault(name, []).append((key, train(key, options, seed)))
    for fold in range(1, FOLDS + 1):
        runs.setdefault("folds", []).append((f"fold{fold}", train(f"fold{fold}", f"--fold {fold}/{FOLDS}", seed)))

spread = " lowest and highest |" if len(seeds) > 1 else ""
print(f"| choice | Dice | HD95, mm |{spread}\n| --- | --- | --- |{' --- |' if spread else ''}")
for name in CHOICES:
    print(f"| {name} | {shown([score(run.name, f'--run {run}') for _, run in runs[name]])}")
plain = [run for _, run in runs["published"]]
print(f"| published, `eval --average-reflections` | {shown([score(f'{run.name}-tta', f'--run {run} --average-reflections') for run in plain])}")
folds = [[run for _, run in runs["folds"]][FOLDS * i : FOLDS * (i + 1)] for i in range(len(seeds))]
print(f"| one of {FOLDS} folds, mean of the {FOLDS} | {shown([score(run.name, f'--run {run}') for three in folds for run in three])}")
for suffix, option in [("", ""), (" `--average-reflections`", "--average-reflections")]:
    scores = []
    for seed, three in zip(seeds, folds):
        words = " ".join(f"--run {run}" for run in three)
        scores.append(score(f"ensemble-{seed}{option}", f"{words} {option}"))
    print(f"| the {FOLDS} folds together, `eval --run A --run B --run C`{suffix} | {shown(scores)}")

if bench_step:
    print("\n| network, gate, decoder, neighbours, ladder | parameters trained | step at 224, batch 8, s per image |\n| --- | --- | --- |")
    for words in [
        "resnet18 scalar plain 0 none",
        "resnet34 scalar plain 0 none",
        "resnet50 scalar plain 0 none",
        "vit-tiny scalar plain 0 none",
        "resnet18 channel plain 0 none",
        "resnet18 pixel plain 0 none",
        "resnet18 scalar skips 0 none",
        "resnet18 scalar plain 1 none",
        "resnet18 scalar plain 0 gated",
    ]:
        out = subprocess.run([bench_step, "224", "8", "3", *words.split()], check=True, capture_output=True, text=True).stdout
        parameters = next(line.split()[0] for line in out.splitlines() if "parameters" in line)
        print(f"| {words.replace(' ', ', ')} | {int(parameters):,} | {float(out.split()[-2]):.3f} |")

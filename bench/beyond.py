"""`make beyond`: which options beyond the paper help, on scans on which each can matter: beyond.py PROGRAM FOLDER [--seeds 3] [--epochs 40] [--bench-step FILE]

Writes the scans of hard_phantom.py and a store for each choice of what the encoder sees (64 pixels, a random encoder), trains each choice from the same
seeds with the same budget, evaluates on the test scans, and prints for each the mean Dice, the Dice of each class, and the paired tests of
`sam-ladder table --against` against the published choice. With --bench-step (target/release/examples/bench_step) also the time and memory of a step.
Finished parts are kept, so an interrupted call resumes. Needs numpy, nibabel and pyarrow.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import hard_phantom
import pyarrow.parquet as pq

STORES = {
    "plain": "--augment flips --test-augment flips --rungs 2,5,8,11 --rung-channels 32",
    "neighbours": "--augment flips --channels-from neighbours",
    "windows": "--augment flips --channels-from windows",
    "normalised": "--augment flips --pixel-normalisation sam",
    "seeded": "--augment seeded --draws 8",
}
# Name of the row, store, options of train, options of eval.
CHOICES = [
    ("published", "plain", "", ""),
    ("side-network resnet34", "plain", "--side-network resnet34", ""),
    ("side-network resnet50", "plain", "--side-network resnet50", ""),
    ("side-network vit-tiny", "plain", "--side-network vit-tiny", ""),
    ("gate channel", "plain", "--gate channel", ""),
    ("gate pixel", "plain", "--gate pixel", ""),
    ("decoder skips", "plain", "--decoder skips", ""),
    ("neighbours 1", "plain", "--neighbours 1", ""),
    ("ladder gated", "plain", "--ladder gated", ""),
    ("train-mask-tokens", "plain", "--train-mask-tokens", ""),
    ("train-mask-tokens, train-hypernetworks", "plain", "--train-mask-tokens --train-hypernetworks", ""),
    ("sampling organs", "plain", "--sampling organs", ""),
    ("sampling foreground", "plain", "--sampling foreground", ""),
    ("loss focal", "plain", "--loss focal", ""),
    ("loss tversky", "plain", "--loss tversky", ""),
    ("loss generalised-dice", "plain", "--loss generalised-dice", ""),
    ("class-weights inverse-frequency", "plain", "--class-weights inverse-frequency --lambda 0.5", ""),
    ("ema 0.99", "plain", "--ema 0.99", ""),
    ("lr-schedule cosine", "plain", "--lr-schedule cosine", ""),
    ("average-reflections", "plain", "", "--average-reflections"),
    ("resample logits", "plain", "", "--resample logits"),
    ("channels-from neighbours", "neighbours", "", ""),
    ("channels-from windows", "windows", "", ""),
    ("pixel-normalisation sam", "normalised", "", ""),
    ("augment seeded", "seeded", "", ""),
    ("decoder skips, channels-from neighbours, sampling organs", "neighbours", "--decoder skips --sampling organs", ""),
]
# Side network, gate, decoder, neighbours and ladder, as bench_step takes them.
STEPS = [
    ("resnet18", "scalar", "plain", "0", "none"),
    ("resnet34", "scalar", "plain", "0", "none"),
    ("resnet50", "scalar", "plain", "0", "none"),
    ("vit-tiny", "scalar", "plain", "0", "none"),
    ("resnet18", "channel", "plain", "0", "none"),
    ("resnet18", "pixel", "plain", "0", "none"),
    ("resnet18", "scalar", "skips", "0", "none"),
    ("resnet18", "scalar", "plain", "1", "none"),
    ("resnet18", "scalar", "plain", "0", "gated"),
]


class Comparison:
    def __init__(self, program, folder, seeds, epochs):
        self.program, self.folder, self.seeds = Path(program).resolve(), Path(folder), range(1, 1 + seeds)
        self.budget = f"--epochs {epochs} --batch-size 8 --warmup 20"

    def call(self, words, done):
        """Runs the program, unless it has ended well before."""
        if done.exists():
            return
        words = [str(word) for word in words]
        print("+", *words, file=sys.stderr, flush=True)
        subprocess.run([self.program, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        done.touch()

    def make_stores(self):
        scans = self.folder / "scans"
        if not (scans / "dataset.json").exists():
            hard_phantom.write(scans)
        for name, options in STORES.items():
            words = f"--scans {scans} --random-encoder 1 --image-size 64 --data-size 64 {options} --store {self.folder}/{name}.zarr"
            self.call(["precompute", *words.split()], self.folder / f"{name}.stored")

    def evaluate(self, choice, seed):
        """The folder of the choice's evaluation. Choices that train alike share a run."""
        _, store, options, scoring = choice
        run = self.folder / f"run-{re.sub('[^a-z0-9.]+', '-', f'{store} {options}')}-{seed}"
        store = self.folder / f"{store}.zarr"
        begun = (run / "config.json").exists()
        how = ["--resume"] if begun else [*self.budget.split(), "--seed", seed, *options.split()]
        self.call(["train", "--store", store, "--run", run, *how], self.folder / f"{run.name}.trained")
        out = run / f"eval{re.sub('[^a-z0-9]+', '-', scoring)}"
        words = ["eval", "--store", store, "--run", run, "--protocol", "standard", "--force", "--out", out, *scoring.split()]
        self.call(words, self.folder / f"{run.name}-{out.name}.scored")
        return out

    def table(self):
        self.make_stores()
        rows = []
        # Seed by seed, so that an interrupted call has compared all choices.
        evaluations = {choice[0]: [] for choice in CHOICES}
        for seed in self.seeds:
            for choice in CHOICES:
                evaluations[choice[0]].append(self.evaluate(choice, seed))
        for name, folders in evaluations.items():
            rows += ["--row", f"{name.replace(',', ' and')}={','.join(map(str, folders))}"]
        words = ["table", *rows, "--against", "published", "--out", self.folder / "tables", "--force"]
        subprocess.run([self.program, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        print((self.folder / "tables/table.md").read_text())
        self.classes()

    def classes(self):
        """Mean Dice of each class: what each of them takes is another thing."""
        rows = pq.read_table(self.folder / "tables/table.parquet").to_pylist()
        print(f"| choice | {' | '.join(hard_phantom.CLASSES)} |\n| --- |{' ---: |' * len(hard_phantom.CLASSES)}")
        for name in dict.fromkeys(row["method"] for row in rows):
            dice = {row["organ"]: row["dice"] for row in rows if row["method"] == name}
            print(f"| {name} | {' | '.join(f'{dice[organ]:.3f}' for organ in hard_phantom.CLASSES)} |")


def steps(bench_step):
    print("\n| side network, gate, decoder, neighbours, ladder | parameters trained | step at 224, batch 8, s per image | memory, MiB |\n| --- | ---: | ---: | ---: |")
    for words in STEPS:
        process = subprocess.Popen([bench_step, "224", "8", "3", *words], stdout=subprocess.PIPE, text=True)
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"bench_step {' '.join(words)} failed")
        parameters = next(line.split()[0] for line in out.splitlines() if "parameters" in line)
        print(f"| {', '.join(words)} | {int(parameters):,} | {float(out.split()[-2]):.3f} | {usage.ru_maxrss // 1024} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--bench-step")
    typed = parser.parse_args()
    Path(typed.folder).mkdir(parents=True, exist_ok=True)
    Comparison(typed.program, typed.folder, typed.seeds, typed.epochs).table()
    if typed.bench_step:
        steps(typed.bench_step)


if __name__ == "__main__":
    main()

"""`make beyond`: which options beyond the paper help, on scans on which each can matter: beyond.py PROGRAM FOLDER [--seeds 3] [--epochs 24] [--jobs 2] [--bench-step FILE]

Writes the scans of hard_phantom.py and a store for each choice of what the encoder sees (64 pixels, a random encoder), trains each choice from the same
seeds with the same budget, evaluates on the test scans, and prints for each the mean Dice, the Dice of each class, and the paired tests of
`sam-ladder table --against` against the published choice. With --bench-step (target/release/examples/bench_step) also the time and memory of a step.
Finished parts are kept, so an interrupted call resumes. With --jobs 2 two trainings run at once, each with half of the processor's threads. Needs numpy, nibabel and pyarrow.
"""

import argparse
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hard_phantom
import pyarrow.parquet as pq

STORES = {
    "plain": "--augment flips --test-augment flips --rungs 2,5,8,11 --rung-channels 32",
    "half": "--augment flips --half-labels",
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
    ("decoder skips-half", "half", "--decoder skips-half", ""),
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
    ("resnet18", "scalar", "skips-half", "0", "none"),
    ("resnet18", "scalar", "plain", "1", "none"),
    ("resnet18", "scalar", "plain", "0", "gated"),
]


class Comparison:
    def __init__(self, program, folder, seeds, epochs, jobs):
        self.program, self.folder, self.seeds, self.jobs = Path(program).resolve(), Path(folder), range(1, 1 + seeds), jobs
        self.budget = f"--epochs {epochs} --batch-size 8 --warmup 20"
        self.environment = os.environ | {"RAYON_NUM_THREADS": str(max(1, os.cpu_count() // jobs))}
        self.locks = defaultdict(threading.Lock)

    def call(self, words, done):
        """Runs the program, unless it has ended well before."""
        if done.exists():
            return
        words = [str(word) for word in words]
        print("+", *words, file=sys.stderr, flush=True)
        subprocess.run([self.program, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment)
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
        with self.locks[run.name]:
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
            with ThreadPoolExecutor(self.jobs) as pool:
                for choice, folder in zip(CHOICES, pool.map(lambda choice: self.evaluate(choice, seed), CHOICES)):
                    evaluations[choice[0]].append(folder)
        for name, folders in evaluations.items():
            rows += ["--row", f"{name.replace(',', ' and')}={','.join(map(str, folders))}"]
        words = ["table", *rows, "--against", "published", "--out", self.folder / "tables", "--force"]
        subprocess.run([self.program, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        print((self.folder / "tables/table.md").read_text())
        scores = self.scores(evaluations)
        self.verdicts(scores)
        self.classes(scores)

    def scores(self, evaluations):
        """Of each choice Dice by class, and by `mean`: a number for each seed."""
        found = {}
        for name, folders in evaluations.items():
            rows = [row for folder in folders for row in pq.read_table(folder / "summary.parquet").to_pylist()]
            found[name] = {organ: [row["dice"] for row in rows if row["organ"] == organ] for organ in [*hard_phantom.CLASSES, "mean"]}
        return found

    def verdicts(self, scores):
        """For each choice how it differs from the published one: better or worse if every seed says so and the paired test of the mean over seeds has a p
        of at most 0.05, otherwise not told apart."""
        means = {row["method"]: row for row in pq.read_table(self.folder / "tables/table.parquet").to_pylist() if row["organ"] == "mean"}
        tested = {}
        for line in (self.folder / "tables/table.md").read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0].startswith("published over "):
                tested[cells[0].removeprefix("published over ")] = cells[4]
        print("| choice | DSC | HD95, mm | difference in DSC | seeds in which it is better | p | |\n| --- | ---: | ---: | ---: | ---: | ---: | --- |")
        for name in scores:
            row = means[name.replace(",", " and")]
            gains = [seed - published for seed, published in zip(scores[name]["mean"], scores["published"]["mean"])]
            p = tested.get(name.replace(",", " and"), "–")
            sure = p.startswith("<") or (p[:1].isdigit() and float(p) <= 0.05)
            better = sum(gain > 0 for gain in gains)
            verdict = ("better" if better else "worse") if sure and agree(gains) else "not told apart"
            difference = f"{100 * sum(gains) / len(gains):+.1f} | {better} of {len(gains)} | {p} | {verdict}"
            if name == "published":
                difference = "– | – | – | "
            print(f"| {name} | {100 * row['dice']:.1f} ± {100 * (row['dice_sd'] or 0):.1f} | {row['hd95']:.2f} | {difference} |")

    def classes(self, scores):
        """Mean Dice of each class: what each of them takes is another thing. + and − where every seed is better or worse than the published choice's."""
        print(f"\n| choice | {' | '.join(hard_phantom.CLASSES)} |\n| --- |{' ---: |' * len(hard_phantom.CLASSES)}")
        for name, of_choice in scores.items():
            cells = []
            for organ in hard_phantom.CLASSES:
                gains = [seed - published for seed, published in zip(of_choice[organ], scores["published"][organ])]
                mark = (" +" if gains[0] > 0 else " −") if agree(gains) else ""
                cells.append(f"{100 * sum(of_choice[organ]) / len(gains):.1f}{mark}")
            print(f"| {name} | {' | '.join(cells)} |")


def agree(gains):
    """Whether all gains, of two seeds or more, have one sign."""
    return len(gains) > 1 and (all(gain > 0 for gain in gains) or all(gain < 0 for gain in gains))


def steps(bench_step):
    print("\n| side network, gate, decoder, neighbours, ladder | parameters trained | step at 224, batch 8, s per image | memory, MiB |\n| --- | ---: | ---: | ---: |")
    for words in STEPS:
        process = subprocess.Popen([bench_step, "224", "8", "3", *words], stdout=subprocess.PIPE, text=True)
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"bench_step {' '.join(words)} failed")
        parameters = next(line.split()[0] for line in out.splitlines() if "parameters" in line)
        seconds = float(re.search(r"([0-9.]+) s/image", out).group(1))
        print(f"| {', '.join(words)} | {int(parameters):,} | {seconds:.3f} | {usage.ru_maxrss // 1024} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--bench-step")
    typed = parser.parse_args()
    Path(typed.folder).mkdir(parents=True, exist_ok=True)
    Comparison(typed.program, typed.folder, typed.seeds, typed.epochs, typed.jobs).table()
    if typed.bench_step:
        steps(typed.bench_step)


if __name__ == "__main__":
    main()

"""`make bench`: this project and PyTorch doing the same work, in turn, in one run, with the same number of threads.

Prints a table, and writes `bench.csv` and `summary.md` to `bench/results/<machine>/`. Each row takes the median over the rounds of each
side, and the ratio of the medians; rounds alternate between the two sides, so that a machine whose speed drifts is fair to both.
"""

import argparse
import csv
import os
import platform
import re
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
EXAMPLES = ROOT / "target/release/examples"
PROGRAM = ROOT / "target/release/sam-ladder"

# name, our command, PyTorch's script and arguments, the ratio asked for; each command prints "<seconds> s/image" last
CASES = [
    ("encoder ViT-B, 224, batch 4", ["bench_encoder", "vit_b", "224", "4"], ["time_encoder.py", "vit_b", "224", "4"], 0.6),
    ("encoder ViT-B, 512, batch 1", ["bench_encoder", "vit_b", "512", "1"], ["time_encoder.py", "vit_b", "512", "1"], 0.6),
    ("stage-two step, 224, batch 24", ["bench_step", "224", "24"], ["time_step.py", "224", "24"], 0.9),
    ("stage-two step, 512, batch 8", ["bench_step", "512", "8"], ["time_step.py", "512", "8"], 0.9),
    ("epoch of 200 slices, 224", ["time_epoch.py", "200", "24"], ["time_published_loop.py", "224", "24"], 0.1),
]


def command_of(words):
    """A benchmark's command: an example of ours, or a script that may need the program."""
    name, *rest = words
    if name == "time_epoch.py":
        return [sys.executable, BENCH / name, PROGRAM, *rest]
    return [sys.executable, BENCH / name, *rest] if name.endswith(".py") else [EXAMPLES / name, *rest]


def seconds(command, threads):
    """Runs a command and returns the seconds an image that it reports, and its peak memory in MiB."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    found = re.findall(r"([0-9.eE+-]+) s/image", output)
    if status != 0 or not found:
        sys.exit(f"{' '.join(map(str, command))} failed with status {status}:\n{output}")
    return float(found[-1]), usage.ru_maxrss / 1024


def cpu_name():
    """The processor's name, as Linux has it."""
    try:
        return re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()).group(1).strip()
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()

    rows = []
    for name, ours, torch, goal in CASES:
        if arguments.only not in name:
            continue
        mine, theirs = [], []
        for _ in range(arguments.rounds):
            mine.append(seconds(command_of(ours), arguments.threads))
            theirs.append(seconds(command_of(torch), arguments.threads))
        ours_s, torch_s = (statistics.median(run[0] for run in runs) for runs in (mine, theirs))
        rows.append(
            {
                "work": name,
                "sam_ladder_s_per_image": f"{ours_s:.4f}",
                "pytorch_s_per_image": f"{torch_s:.4f}",
                "ratio": f"{ours_s / torch_s:.2f}",
                "asked": f"{goal:.1f}",
                "sam_ladder_peak_mib": f"{max(run[1] for run in mine):.0f}",
                "pytorch_peak_mib": f"{max(run[1] for run in theirs):.0f}",
            }
        )
        print(rows[-1], flush=True)

    if not rows:
        sys.exit(f"no case's name contains {arguments.only!r}")
    import torch as pytorch

    cpu = cpu_name()
    folder = arguments.out or BENCH / "results" / re.sub(r"[^a-z0-9]+", "-", f"{cpu} {os.cpu_count()} cores".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "bench.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        f"{cpu}, {os.cpu_count()} cores, {arguments.threads} threads each, PyTorch {pytorch.__version__}, {date.today()}; "
        f"medians of {arguments.rounds} alternating rounds.",
        "",
        "| work | sam-ladder, s an image | PyTorch, s an image | ratio | asked, at most | peak memory, MiB: sam-ladder | PyTorch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    print(f"\nwritten to {folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder}")


if __name__ == "__main__":
    main()

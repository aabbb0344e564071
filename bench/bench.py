"""`make bench`: times this project and others doing the same work, alternating in one run, with the same number of threads.

The others are PyTorch as our users run it, and whatever else one can pick on a CPU: PyTorch compiled, in bfloat16, with channels last, ONNX Runtime and
OpenVINO. A row names the fastest of the row's precision, and its target is against that one. bfloat16 is timed where the processor has instructions
for it.

Prints tables and writes them to `bench/results/<machine>/`: `bench.csv` (the work of all), `others.csv` (each of the others), `reading.csv`, `machine.csv` (the limit of the
processor), `scaling.csv`, and `summary.md`. From these `page.py` makes the tables and plots of `docs/reference/speed.md`. Each figure is the median
over the rounds. Rounds alternate between the two sides, so that a machine whose speed drifts is fair to both. A piece that fails is left out and
reported.
"""

import argparse
import csv
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import fixture
import page
import scaling

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
EXAMPLES = ROOT / "target/release/examples"
PROGRAM = ROOT / "target/release/sam-ladder"
# Runs of the reading benchmark, whose median counts.
READS = 5
PIECES = ("work", "reading", "machine", "scaling")


@dataclass
class Case:
    """One row of the main table."""

    name: str
    ours: list
    torch: list
    asked: float
    # other ways to do it, by the script's last word
    others: tuple = ()
    # PyTorch's rounds, if it takes minutes
    torch_rounds: int = 10**9
    # both sides print the same rows, which must agree
    compared: bool = False
    # in bfloat16, compared with what is
    bf16: bool = False

    @property
    def baseline(self):
        """The way of PyTorch that has a column of its own."""
        return "pytorch-bf16" if self.bf16 else "pytorch"


# Ways other than the default of time_encoder.py and time_step.py.
ENCODERS = ("pytorch-compiled", "pytorch-bf16", "pytorch-bf16-compiled", "onnxruntime", "openvino", "openvino-bf16")
STEPS = tuple(f"pytorch{way}" for way in ("-compiled", "-channels_last", "-bf16", "-bf16-channels_last", "-bf16-channels_last-compiled"))

CASES = [
    Case("encoder ViT-B, 224, batch 4", ["bench_encoder", "vit_b", "224", "4"], ["time_encoder.py", "vit_b", "224", "4"], 0.9, ENCODERS),
    Case("encoder ViT-B, 512, batch 1", ["bench_encoder", "vit_b", "512", "1"], ["time_encoder.py", "vit_b", "512", "1"], 0.75, ENCODERS),
    Case("encoder ViT-B, 224, batch 4, bf16", ["bench_encoder", "vit_b", "224", "4", "5", "bf16"], ["time_encoder.py", "vit_b", "224", "4"], 1.0, ENCODERS, bf16=True),
    Case("encoder ViT-B, 512, batch 1, bf16", ["bench_encoder", "vit_b", "512", "1", "5", "bf16"], ["time_encoder.py", "vit_b", "512", "1"], 0.9, ENCODERS, bf16=True),
    Case("stage-two step, 224, batch 24", ["bench_step", "224", "24"], ["time_step.py", "224", "24", "5"], 0.75, STEPS),
    Case("stage-two step, 512, batch 8", ["bench_step", "512", "8"], ["time_step.py", "512", "8", "5"], 0.75, STEPS),
    Case(
        "stage-two step, 224, batch 24, bf16",
        ["bench_step", "224", "24", "5", "resnet18", "scalar", "plain", "0", "none", "bf16"],
        ["time_step.py", "224", "24", "5"],
        1.0,
        STEPS,
        bf16=True,
    ),
    Case("epoch of 200 slices, 224", ["time_epoch.py", PROGRAM, "STORE", "24"], ["time_published_loop.py", "224", "24"], 0.1, (), 2),
    Case("evaluation of a scan, 512×512×100", ["bench_eval", "STORE", "RUN", "1"], ["time_eval.py", "STORE", "RUN"], 0.5, (), 1, True),
]


def command_of(words, shared):
    """A benchmark's command: an example of ours, or a script of this folder."""
    words = [shared.get(word, word) if isinstance(word, str) else word for word in words]
    name, *rest = words
    return [sys.executable, BENCH / name, *rest] if str(name).endswith(".py") else [EXAMPLES / name, *rest]


def measure(command, threads):
    """Runs a command and returns its output, the seconds per image that it reports, and its peak memory in MiB."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), RAYON_NUM_THREADS=str(threads))
    command = [str(word) for word in command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    found = re.findall(r"([0-9.eE+-]+) s/image", output)
    if status != 0 or not found:
        raise RuntimeError(f"{' '.join(command)} failed with status {status}: {output}")
    return output, float(found[-1]), usage.ru_maxrss / 1024


def compare(ours, theirs):
    """Stops if two outputs differ in their organs, in a Dice by more than 1e-3 or in an HD95 by more than 2 %, the rounding of logits."""
    rows = [re.findall(r"^(.+): dice ([-0-9.]+), hd95 ([-0-9.]+)$", output, re.MULTILINE) for output in (ours, theirs)]
    for (organ, dice, hd95), (other, torch_dice, torch_hd95) in zip(*rows, strict=True):
        off = abs(float(hd95) - float(torch_hd95)) > 0.02 * float(torch_hd95) + 0.05
        if organ != other or abs(float(dice) - float(torch_dice)) > 1e-3 or off:
            raise RuntimeError(f"{organ}: Dice {dice}, HD95 {hd95}; PyTorch and MedPy say {other}: {torch_dice}, {torch_hd95}")
    if not rows[0]:
        raise RuntimeError("the evaluation printed no organ")


def has_bf16():
    """Whether the processor multiplies bfloat16 numbers."""
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(f" {flag}" in said for flag in ("avx512_bf16", "amx_bf16"))


def run_case(case, shared, arguments, failed):
    """The row of a case, and a row for each of the others."""
    ways = {} if case.bf16 else {"pytorch": command_of(case.torch, shared)}
    ways |= {way: [*command_of(case.torch, shared), way] for way in case.others if ("bf16" in way) == case.bf16}
    mine, theirs = [], {way: [] for way in ways}
    for round_number in range(arguments.rounds):
        mine.append(measure(command_of(case.ours, shared), arguments.threads))
        for way, command in ways.items():
            if way not in theirs or round_number >= case.torch_rounds:
                continue
            try:
                theirs[way].append(measure(command, arguments.threads))
            except RuntimeError as error:
                if way == case.baseline:
                    raise
                failed.append(f"{case.name}, {way}: {error}")
                del theirs[way]
    if case.compared:
        compare(mine[0][0], theirs[case.baseline][0][0])
    ours_s = statistics.median(run[1] for run in mine)
    seconds = {way: statistics.median(run[1] for run in runs) for way, runs in theirs.items()}
    fastest = min(seconds, key=seconds.get)
    row = {
        "work": case.name,
        "sam_ladder_s_per_image": f"{ours_s:.4f}",
        "pytorch_s_per_image": f"{seconds[case.baseline]:.4f}",
        "fastest": fastest,
        "fastest_s_per_image": f"{seconds[fastest]:.4f}",
        "ratio": f"{ours_s / seconds[fastest]:.3f}",
        "asked": f"{case.asked:g}",
        "sam_ladder_peak_mib": f"{max(run[2] for run in mine):.0f}",
        "pytorch_peak_mib": f"{max(run[2] for run in theirs[case.baseline]):.0f}",
    }
    others = [
        {"work": case.name, "way": way, "s_per_image": f"{seconds[way]:.4f}", "peak_mib": f"{max(run[2] for run in runs):.0f}"}
        for way, runs in theirs.items()
    ]
    return row, others


def work(arguments, failed, others):
    cases = [case for case in CASES if arguments.only in case.name and (has_bf16() or not case.bf16)]
    with tempfile.TemporaryDirectory() as temporary:
        shared = {}
        if any("STORE" in case.ours for case in cases):
            try:
                shared["STORE"], shared["RUN"] = fixture.make(PROGRAM, Path(temporary))
            except subprocess.CalledProcessError as error:
                failed.append(f"the store of the last rows: {error}: {error.stderr.decode()[-300:]}")
                cases = [case for case in cases if "STORE" not in case.ours]
        for case in cases:
            try:
                row, of_others = run_case(case, shared, arguments, failed)
                others.extend(of_others)
                yield row
            except Exception as error:  # noqa: BLE001  a piece that fails must not stop the others
                traceback.print_exc()
                failed.append(f"{case.name}: {error}")


def reading(arguments, failed):
    """Random batches of 24 at 512 from a store in the page cache, compared with zarr-python, TensorStore and a plain read of as many bytes."""
    from formats import tensorstore_rate, zarr_python_rate

    with tempfile.TemporaryDirectory() as temporary:
        store = Path(temporary) / "loader.zarr"
        subprocess.run([EXAMPLES / "bench_loader", "make", store, "f16", "none"], check=True)
        runs = []
        for _ in range(READS):
            said = subprocess.run([EXAMPLES / "bench_loader", "read", store, "24", "60"], check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append([float(found) for found in re.findall(r"([0-9.]+) MB/s.* ([0-9.]+) MB/s", said)[0]])
        ours, plain = (statistics.median(run[i] for run in runs) for i in (0, 1))
        yield {
            "work": "random batches of 24 at 512, float16",
            "sam_ladder_mb_per_s": f"{ours:.0f}",
            "plain_read_mb_per_s": f"{plain:.0f}",
            "ratio": f"{ours / plain:.2f}",
            "asked_at_least": "0.85",
            "zarr_python_mb_per_s": f"{zarr_python_rate(store, 3):.0f}",
            "tensorstore_mb_per_s": f"{tensorstore_rate(store, 30):.0f}",
        }


def machine(arguments, failed):
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), RAYON_NUM_THREADS=str(arguments.threads))
    for command in ([EXAMPLES / "bench_machine"], [sys.executable, BENCH / "time_machine.py"]):
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        for what, threads, rate, unit in re.findall(r"^(.+), (\d+), ([0-9.]+), (\S+)$", output, re.MULTILINE):
            yield {"what": what, "threads": threads, "rate": rate, "unit": unit}


def sweeps(arguments, failed):
    yield from scaling.sweep(EXAMPLES, arguments.threads)
    yield from scaling.sweep_slices(PROGRAM)
    yield from scaling.sweep_threads(PROGRAM, arguments.threads)


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def cpu_name():
    """The processor's name according to Linux, and its widest vectors: on a virtual machine, several models may have one name."""
    try:
        said = Path("/proc/cpuinfo").read_text()
        name = re.search(r"model name\s*:\s*(.+)", said).group(1).strip()
    except (OSError, AttributeError):
        return platform.processor() or platform.machine()
    vectors = next((name for flag, name in (("amx_bf16", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2")) if f" {flag} " in said), "")
    return f"{name} {vectors}".strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES, help="the others keep their last results")
    parser.add_argument("--only", default="", help="of the piece `work`, the rows whose name contains this; nothing is written")
    parser.add_argument("--out", type=Path, default=None, help="where the results go; README and docs keep theirs")
    arguments = parser.parse_args()
    pieces = ["work"] if arguments.only else arguments.pieces

    name = f"{cpu_name()} {os.cpu_count()} cores"
    folder = arguments.out or BENCH / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    failed, others = [], []
    for piece, file, make in (
        ("work", "bench.csv", lambda arguments, failed: work(arguments, failed, others)),
        ("reading", "reading.csv", reading),
        ("machine", "machine.csv", machine),
        ("scaling", "scaling.csv", sweeps),
    ):
        if piece not in pieces:
            continue
        rows, start = [], time.perf_counter()
        try:
            for row in make(arguments, failed):
                rows.append(row)
                print(row, flush=True)
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            failed.append(f"{piece}: {error}")
        print(f"{piece}: {time.perf_counter() - start:.0f} s", flush=True)
        if rows and not arguments.only:
            write_csv(folder / file, rows)
        if piece == "work" and others:
            print(*others, sep="\n", flush=True)
            if not arguments.only:
                write_csv(folder / "others.csv", others)
    if not arguments.only:
        import torch

        (folder / "about.txt").write_text(
            f"{cpu_name()}, {os.cpu_count()} cores, {arguments.threads} threads each, PyTorch {torch.__version__}, {date.today()}; "
            f"medians of {arguments.rounds} alternating rounds, each the median of several calls\n"
        )
        summary = page.summary(folder)
        (folder / "summary.md").write_text(summary)
        if not arguments.out:
            page.write(folder, ROOT / "docs")
        print(f"{summary}\nwritten to {folder}" + (" and docs/reference/speed.md" if not arguments.out else ""))
    if failed:
        sys.exit("left out:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()

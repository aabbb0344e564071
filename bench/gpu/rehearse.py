"""`make gpu-rehearsal`: rehearses `make gpu-check` without a GPU.

Stubs stand in for the binaries, for nvidia-smi and for PyTorch's side. In each scenario some of them hang, crash or print nothing; whatever happens, the
summary must exist, hold what the others found, and come within the budget. Prints a table; the exit status is 1 if a scenario failed.
"""

import csv
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

CHECK = Path(__file__).resolve().parent / "check.py"
BUDGET = 25
# What each stub prints where all is well.
GOOD = {
    "sam_ladder_ops": "test result: ok. 1 passed",
    "golden_step": "test result: ok. 1 passed",
    "golden_encoder": "test result: ok. 1 passed",
    "golden_trajectory": "test result: ok. 1 passed",
    "gpu_rates": "700 TFLOP/s bf16\n50 TFLOP/s f32\n3.0 TB/s copied",
    "gpu_step": "the training step is a CUDA graph\n5.0 GiB taken\n0.012 s/step\n0.0005 s/image",
    "gpu_encoder": "300 TFLOP/s\n1.0e-3 of the largest value\n0 values not finite\n0.001 s/image",
}
# All is well but two values.
FINDS_NAN = f"cat <<'END'\n{GOOD['gpu_encoder'].replace('0 values', '2 values')}\nEND"
FAULTS = {"hangs": "sleep 1000", "crashes": "kill -SEGV $$", "overruns": "while :; do echo still busy; sleep 0.2; done", "says nothing": "exit 0"}


def write_stub(path, body):
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def stub_body(name, fault):
    """Tests are listed in any case, so that the fault meets one of them."""
    listing = 'if [[ "$*" == *--list* ]]; then echo "cuda::tests::one: test"; exit 0; fi\n' if name.startswith(("sam_", "golden_")) else ""
    return listing + (fault or f"cat <<'END'\n{GOOD[name]}\nEND")


def rehearse(folder, faulty, fault, call):
    binaries, out = folder / "bin", folder / "out"
    binaries.mkdir(parents=True)
    for name in GOOD:
        write_stub(binaries / name, stub_body(name, FAULTS.get(fault, FINDS_NAN) if name == faulty else None))
    write_stub(binaries / "nvidia-smi", "echo 'Stub GPU'")
    environment = dict(os.environ, PATH=f"{binaries}:{os.environ['PATH']}")
    command = [sys.executable, CHECK, "--budget", str(BUDGET), "--call", str(call), "--binaries", binaries, "--out", out, "--limit-scale", "0.02"]
    start = time.monotonic()
    status = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=4 * BUDGET).returncode
    seconds = time.monotonic() - start
    faults = []
    if not (out / "summary.md").exists():
        return ["there is no summary"], seconds
    with (out / "checks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if seconds > BUDGET + 5:
        faults.append(f"took {seconds:.0f} s of {BUDGET}")
    failed = {row["what"] for row in rows if row["status"] == "FAILED"}
    if bool(failed) != (status != 0):
        faults.append(f"exit status {status} with {len(failed)} failed checks")
    if call == 1:
        sections = {row["section"] for row in rows}
        faults += [f"no results of {name}" for name in ("device tests", "16 bits", "our times", "golden cases") if name not in sections]
        if faulty is None and failed:
            faults.append(f"failed without a fault: {sorted(failed)}")
        if faulty is not None and not failed:
            faults.append("the fault was not noticed")
        if faulty != "gpu_step" and "step bf16" not in (out / "bench.csv").read_text():
            faults.append("the step's time is missing")
    return faults, seconds


def rehearse_report(folder):
    """The report is written though nvidia-smi hangs and the program crashes."""
    for name, fault in [("nvidia-smi", "echo Stub GPU; exec sleep 1000"), ("sam-ladder", FAULTS["crashes"])]:
        write_stub(folder / name, fault)
    run, out = folder / "run", folder / "report.tar.gz"
    run.mkdir()
    (run / "log.txt").write_text("no CUDA graph")
    environment = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="0")
    words = ["--out", out, "--binary", folder / "sam-ladder", "--run", run, "--results", folder, "--limit", "2"]
    start = time.monotonic()
    subprocess.run([sys.executable, CHECK.parent / "report.py", *words], env=environment, capture_output=True, timeout=4 * BUDGET)
    expected = {
        "nvidia-smi.txt": "ended after 2",
        "doctor.txt": "exit status -11",
        "run/log.txt": "no CUDA graph",
        "environment.txt": "CUDA_VISIBLE_DEVICES=0",
    }
    if not out.exists():
        return ["there is no report"], time.monotonic() - start
    with tarfile.open(out) as archive:
        found = {name: archive.extractfile(f"gpu-report/{name}").read().decode() for name in expected}
    return [f"{name}: {found[name]!r}" for name, text in expected.items() if text not in found[name]], time.monotonic() - start


def main():
    scenarios = [(1, None, "")] + [(1, name, fault) for name in GOOD for fault in FAULTS]
    scenarios += [(1, "gpu_encoder", "finds NaN"), (2, None, "")]
    bad = 0
    print("| call | stub | what it does | s | |\n| --- | --- | --- | ---: | --- |")
    for call, faulty, fault in scenarios:
        with tempfile.TemporaryDirectory() as folder:
            faults, seconds = rehearse(Path(folder), faulty, fault, call)
        bad += bool(faults)
        print(f"| {call} | {faulty or 'all'} | {fault or 'works'} | {seconds:.0f} | {'; '.join(faults) or 'good'} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        faults, seconds = rehearse_report(Path(folder))
    bad += bool(faults)
    print(f"| report | nvidia-smi, sam-ladder | hang and crash | {seconds:.0f} | {'; '.join(faults) or 'good'} |")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

"""`make gpu-check`: what needs a GPU, in order of worth, within a budget of seconds.

It needs an NVIDIA driver, the CUDA 13 and cuDNN 9 libraries, and Python; PyTorch and torchvision only for the comparison. It installs nothing. The
binaries are those of `make gpu-pack` (`--binaries FOLDER`), or target-cuda/release after `make gpu-binaries`.

    python3 bench/gpu/check.py --call 1 --budget 300     correctness on the device, and our own times
    python3 bench/gpu/check.py --call 2 --budget 300     PyTorch's times, the sanitizer, the whole program

Every command runs in a process group of its own, for at most its own limit and what is left of the budget. After each section `summary.md`,
`checks.csv` and `bench.csv` in `--out` are complete so far, and `log.txt` has every command with its output. A section that fails, crashes or hangs
hides no other. A second call with the same `--out` adds to the first one's results. The exit status is 1 if a check failed; what is slower than its
target or outside its usual bounds is a note.
"""

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from program import compare_runs, program_steps  # noqa: E402

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHECK_COLUMNS = ["section", "what", "status", "found", "seconds"]
BENCH_COLUMNS = ["work", "figure", "value", "unit", "target", "reached"]
PASSED, NOTE, FAILED, MISSING = "passed", "note", "FAILED", "not run"
STEP = ["gpu_step", "512", "24"]
ENCODER = ["gpu_encoder", "vit_b", "512", "16"]
# Largest difference from float32 over the largest value: usual, and wrong.
SIXTEEN_BITS = {"bf16": (2e-2, 8e-2), "f16": (3e-3, 1.5e-2)}
# Modes of torch.compile; the best counts.
TORCH_MODES = ["eager", "default", "max-autotune-no-cudagraphs", "captured"]


class Results:
    """What was found so far, in the files of a folder."""

    def __init__(self, out, title):
        self.out, self.title = out, title
        self.checks = self.read("checks.csv")
        self.bench = self.read("bench.csv")

    def read(self, name):
        path = self.out / name
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    def check(self, section, what, status, found="", seconds=0.0):
        row = {"section": section, "what": what, "status": status, "found": found, "seconds": f"{seconds:.1f}"}
        self.checks = [old for old in self.checks if (old["section"], old["what"]) != (section, what)] + [row]

    def figure(self, work, figure, value, unit, target="", reached=""):
        row = {"work": work, "figure": figure, "value": f"{value:.7g}", "unit": unit, "target": target, "reached": reached}
        self.bench = [old for old in self.bench if (old["work"], old["figure"]) != (work, figure)] + [row]

    def value(self, work, figure):
        found = [float(row["value"]) for row in self.bench if (row["work"], row["figure"]) == (work, figure)]
        return found[0] if found else None

    def write(self):
        for name, columns, rows in [("checks.csv", CHECK_COLUMNS, self.checks), ("bench.csv", BENCH_COLUMNS, self.bench)]:
            with (self.out / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
        lines = [f"# {self.title}", "", "| section | check | | found | s |", "| --- | --- | --- | --- | ---: |"]
        lines += ["| " + " | ".join(str(row[column]).replace("|", "/") for column in CHECK_COLUMNS) + " |" for row in self.checks]
        lines += ["", "| work | figure | value | unit | target | |", "| --- | --- | ---: | --- | --- | --- |"]
        lines += ["| " + " | ".join(str(row[column]) for column in BENCH_COLUMNS) + " |" for row in self.bench]
        (self.out / "summary.md").write_text("\n".join(lines) + "\n")

    def failed(self):
        return any(row["status"] == FAILED for row in self.checks)


class Machine:
    """Runs commands within the budget."""

    def __init__(self, arguments, out):
        self.device, self.binaries, self.scale = arguments.device, arguments.binaries, arguments.limit_scale
        self.end = time.monotonic() + arguments.budget
        self.log = (out / "log.txt").open("a")
        self.environment = dict(
            os.environ, LD_LIBRARY_PATH=library_path(), SAM_LADDER_TEST_DEVICE=self.device, CARGO_MANIFEST_DIR=str(ROOT)
        )
        self.known = {}

    def left(self):
        return self.end - time.monotonic()

    def find(self, name):
        """A binary by its name; cargo's test binaries carry a hash."""
        exact = [self.binaries / name, self.binaries / "examples" / name]
        hashed = sorted((path for path in (self.binaries / "deps").glob(f"{name}-*") if path.suffix == ""), key=lambda path: path.stat().st_mtime)
        found = [path for path in exact if path.is_file()] + hashed[-1:]
        return found[0] if found else None

    def run(self, command, limit, environment=None):
        """Status, output and seconds of a command; a command that ran before is not run again. The status is None without time or binary."""
        command = [str(word) for word in command]
        key = (*command, *sorted((environment or {}).items()))
        if key not in self.known:
            self.known[key] = self.run_anew(command, min(limit * self.scale, self.left()), environment)
        return self.known[key]

    def run_anew(self, command, limit, environment):
        if limit <= 0:
            return None, "no time was left", 0.0
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            try:
                child = subprocess.Popen(
                    command, env={**self.environment, **(environment or {})}, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                return None, str(error), 0.0
            try:
                status = child.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                status = 124
            output.seek(0)
            text = output.read()
        seconds = time.monotonic() - start
        if status == 124:
            text += f"\nstopped after {seconds:.0f} s"
        self.log.write(f"$ {' '.join(command)}\n{text}\nstatus {status}, {seconds:.1f} s\n\n")
        self.log.flush()
        return status, text, seconds

    def binary(self, words, limit, environment=None):
        path = self.find(words[0])
        if path is None:
            return None, f"no {words[0]} in {self.binaries}", 0.0
        return self.run([path, *words[1:]], limit, environment)

    def torch(self, words, limit):
        return self.run([sys.executable, HERE / "torch_stages.py", *words, "--device", self.device], limit)


def library_path():
    """The loader's path: what is set already, then the CUDA libraries that come with PyTorch, which is looked for and not loaded."""
    from importlib.util import find_spec

    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return os.environ.get("LD_LIBRARY_PATH", "")
    site = Path(spec.origin).resolve().parent.parent
    folders = [str(path) for path in sorted(site.glob("nvidia/*/lib"))] + [str(site / "torch/lib")]
    return ":".join(filter(None, [os.environ.get("LD_LIBRARY_PATH", ""), *folders]))


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else ""


def number(text, unit):
    found = re.findall(rf"([0-9.eE+-]+) {unit}", text)
    return float(found[-1]) if found else None


def timed(machine, results, section, what, words, limit, units):
    """Runs a binary that prints numbers, one per unit; returns them and the output, or None if it failed or printed too little."""
    status, text, seconds = machine.binary(words, limit)
    found = [number(text, unit) for unit in units]
    good = status == 0 and None not in found
    results.check(section, what, PASSED if good else FAILED if status is not None else MISSING, last_line(text) or "printed nothing", seconds)
    return (found, text) if good else None


def status_of(status):
    return MISSING if status is None else PASSED if status == 0 else FAILED


def tests_of(machine, results, section, binary, prefix, limit):
    """Runs the tests of a binary one by one, so that one that crashes the driver spoils no other."""
    status, listed, _ = machine.binary([binary, "--list"], 30)
    names = [line.removesuffix(": test") for line in listed.splitlines() if line.startswith(prefix) and line.endswith(": test")]
    if status != 0 or not names:
        results.check(section, binary, status_of(status) if status != 0 else FAILED, last_line(listed) or "no tests")
    for name in names:
        status, text, seconds = machine.binary([binary, name, "--exact", "--nocapture", "--test-threads=1"], limit)
        if status == 0 and ("skipped:" in text or not re.search(r"test result: ok\. [1-9]", text)):
            status = 1
        results.check(section, f"{binary}: {name}", status_of(status), "" if status == 0 else last_line(text), seconds)


def device_tests(machine, results):
    tests_of(machine, results, "device tests", "sam_ladder_ops", "", 60)


def encoder_in_16_bits(machine, results):
    for size in ("512", "1024"):
        for precision, (usual, wrong) in SIXTEEN_BITS.items():
            words = ["gpu_encoder", "vit_b", size, "2", precision, machine.device, "--against-f32"]
            status, text, seconds = machine.binary(words, 60)
            what = f"encoder at {size}, {precision} against float32"
            error, odd = number(text, "of the largest value"), number(text, "values not finite")
            if status != 0 or error is None or odd is None:
                results.check("16 bits", what, status_of(status) if status != 0 else FAILED, last_line(text), seconds)
                continue
            verdict = FAILED if odd > 0 or not error <= wrong else NOTE if error > usual else PASSED
            results.check("16 bits", what, verdict, f"{error:.2e} (usual {usual}, wrong {wrong}), {odd:.0f} not finite", seconds)


def our_times(machine, results):
    units = {"bf16": "TFLOP/s bf16", "f32": "TFLOP/s f32", "copies": "TB/s"}
    if measured := timed(machine, results, "our times", "rates of the card", ["gpu_rates", machine.device], 30, units.values()):
        for (figure, unit), value in zip(units.items(), measured[0]):
            results.figure("card", figure, value, unit.removesuffix(f" {figure}"))
    for precision in ("bf16", "f32"):
        for graph in ([], ["--graph"]):
            work = f"step {precision}{' as a graph' if graph else ''}"
            measured = timed(machine, results, "our times", work, [*STEP, precision, machine.device, *graph], 60, ["s/step", "GiB taken"])
            if measured is None:
                continue
            (seconds, taken), text = measured
            if graph and "the training step is a CUDA graph" not in text:
                results.check("our times", work, NOTE, "the graph fell back to plain steps")
                continue
            results.figure(work, "ours", seconds, "s/step")
            results.figure(work, "memory", taken, "GiB", "under 9.3", taken < 9.3)
    for precision in ("bf16", "f16"):
        work = f"encoder {precision}"
        measured = timed(machine, results, "our times", work, [*ENCODER, precision, machine.device], 60, ["TFLOP/s", "s/image"])
        if measured is None:
            continue
        rate, seconds = measured[0]
        results.figure(work, "ours", seconds, "s/image")
        if most := results.value("card", "bf16"):
            results.figure(work, "share of the matrix rate", rate / most, "", "at least 0.4", rate / most >= 0.4)


def golden_cases(machine, results):
    for binary in ("golden_step", "golden_encoder", "golden_trajectory"):
        tests_of(machine, results, "golden cases", binary, "", 120)


def pytorch(machine, results):
    """The best of PyTorch's modes against what we measured before."""
    for case, words, work, unit in [
        ("strongest", ["--batch", "24"], "step bf16", "s/step"),
        ("encoder", ["--batch", "16"], "encoder bf16", "s/image"),
    ]:
        times = {}
        for mode in TORCH_MODES:
            status, text, seconds = machine.torch([case, "--mode", mode, *words], 90)
            results.check("PyTorch", f"{case}, {mode}", MISSING if status is None else PASSED if status == 0 else NOTE, last_line(text), seconds)
            if status == 0 and (value := number(text, unit)) is not None:
                times[mode] = value
                results.figure(work, f"PyTorch, {mode}", value, unit)
        ours = [value for name in (work, f"{work} as a graph") if (value := results.value(name, "ours")) is not None]
        if times and ours:
            ratio = min(ours) / min(times.values())
            results.figure(work, f"ours over PyTorch's best ({min(times, key=times.get)})", ratio, "", "at most 1.0", ratio <= 1.0)


def kernels_by_time(machine, results):
    for work, words in [("step bf16", [*STEP, "bf16", machine.device, "1"]), ("encoder bf16", [*ENCODER, "bf16", machine.device, "1"])]:
        path, ncu = machine.find(words[0]), shutil.which("ncu")
        if ncu is None or path is None:
            results.check("kernels", work, MISSING, "no ncu" if ncu is None else f"no {words[0]}")
            continue
        command = [ncu, "--clock-control", "none", "--metrics", "gpu__time_duration.sum", "--csv", path, *words[1:]]
        status, text, seconds = machine.run(command, 90)
        results.check("kernels", work, MISSING if status is None else PASSED if status == 0 else NOTE, last_line(text), seconds)
        if status == 0:
            (results.out / f"kernels-{work.replace(' ', '-')}.csv").write_text(text)


def sanitizer(machine, results):
    tool, path = shutil.which("compute-sanitizer"), machine.find("sam_ladder_ops")
    for check in ("memcheck", "racecheck"):
        if tool is None or path is None:
            results.check("sanitizer", check, MISSING, "no compute-sanitizer" if tool is None else "no sam_ladder_ops")
            continue
        command = [tool, "--tool", check, "--error-exitcode", "9", path, "cuda::tests::", "--test-threads=1"]
        status, text, seconds = machine.run(command, 120)
        results.check("sanitizer", check, status_of(status), last_line(text), seconds)


def program(machine, results):
    """Both stages through the program: resident, streamed, recorded and resumed runs are one run."""
    path = machine.find("sam-ladder")
    if path is None:
        results.check("program", "stages", MISSING, f"no sam-ladder in {machine.binaries}")
        return
    with tempfile.TemporaryDirectory() as folder:
        for what, command in program_steps(path, Path(folder), machine.device):
            status, text, seconds = machine.run(command, 60)
            results.check("program", what, status_of(status), "" if status == 0 else last_line(text), seconds)
            if status != 0:
                return
        for what, good, found in compare_runs(Path(folder)):
            results.check("program", what, PASSED if good else FAILED, found)


def losses(machine, results):
    """The losses of 100 steps in each precision, on the same batches from the same weights."""
    curves = {}
    for precision in ("f32", "tf32", "bf16"):
        status, text, seconds = machine.binary([*STEP, precision, machine.device, "100", "--losses"], 90)
        curve = [float(total) for total in re.findall(r"^\d+,([^,]+),[^,]+,[^,]+$", text, re.MULTILINE)]
        if status == 0 and len(curve) == 100:
            curves[precision] = sum(curve[-20:]) / 20
            difference = abs(curves[precision] / curves.get("f32", curves[precision]) - 1)
            verdict = FAILED if not difference < 0.2 else NOTE if difference > 0.05 else PASSED
            results.check("losses", precision, verdict, f"mean of the last 20: {curves[precision]:.4f}", seconds)
        else:
            results.check("losses", precision, status_of(status) if status != 0 else FAILED, last_line(text), seconds)


def published_loop(machine, results):
    for case, target in [("published", 0.02), ("ideal", 0.1)]:
        status, text, seconds = machine.torch([case, "--steps", "4"], 120)
        results.check("published loop", case, MISSING if status is None else PASSED if status == 0 else NOTE, last_line(text), seconds)
        ours = results.value("step bf16", "ours")
        if status == 0 and ours is not None:
            ratio = ours / number(text, "s/step")
            results.figure("step bf16", f"ours over PyTorch, {case}", ratio, "", f"at most {target}", ratio <= target)


# In order of worth; the number is the call that they belong to.
SECTIONS = [
    (1, device_tests),
    (1, encoder_in_16_bits),
    (1, our_times),
    (1, golden_cases),
    (2, pytorch),
    (2, kernels_by_time),
    (2, sanitizer),
    (2, program),
    (2, losses),
    (2, published_loop),
]


def gpu_name(device):
    command = ["nvidia-smi", f"--id={device.split(':')[1]}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        sys.exit("gpu-check: nvidia-smi is not on the PATH or does not answer; this needs a machine with a GPU and NVIDIA's driver")
    if done.returncode != 0 or not done.stdout.strip():
        sys.exit(f"gpu-check: nvidia-smi finds no GPU for {device}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=3600, help="seconds for all of it")
    parser.add_argument("--call", type=int, choices=(1, 2), help="only the sections of this call")
    parser.add_argument("--binaries", type=Path, default=ROOT / "target-cuda/release")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit-scale", type=float, default=1.0, help="multiplies each command's limit, for a rehearsal")
    arguments = parser.parse_args()
    name = gpu_name(arguments.device)
    out = arguments.out or ROOT / "bench/results" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date.today()}"
    out.mkdir(parents=True, exist_ok=True)
    results, machine = Results(out, f"{name}, {date.today()}"), Machine(arguments, out)
    for call, section in SECTIONS:
        if arguments.call in (None, call):
            try:
                section(machine, results)
            except Exception as error:  # a section's own mistake hides no other
                results.check(section.__name__, "the section itself", FAILED, f"{type(error).__name__}: {error}")
            results.write()
    print((out / "summary.md").read_text())
    print(f"written to {out}, {max(machine.left(), 0):.0f} s left")
    sys.exit(1 if results.failed() else 0)


if __name__ == "__main__":
    main()

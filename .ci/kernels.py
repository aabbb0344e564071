#!/usr/bin/env python3
"""Assemble every CUDA kernel for each GPU that we support, and hold it against a committed table. Needs no GPU.

    .ci/kernels.py            compare with ops/kernels.csv; exit status 1 if a kernel got worse
    .ci/kernels.py --write    write the table anew

It needs the environment that `.ci/cuda-toolchain.sh` prints (nvcc and ptxas). A kernel fails if it spills registers, if it keeps local
memory that the table does not state, if it takes more registers or shared memory than the table states, or if it lacks the matrix
instruction or the 16-byte loads that the table promises.
"""

import csv
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "ops" / "kernels.csv"
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
# Registers and threads of a multiprocessor, by NVIDIA's table of compute capabilities.
REGISTERS = 65536
THREADS = {"80": 2048, "86": 1536, "89": 1536, "90": 2048, "100": 2048, "120": 1536}
# Threads of a block (`THREADS` in ops/src/device/launch_args.rs), unless the source bounds them.
BLOCK = 256
# The table: what must hold on every architecture, then the registers on each.
PROMISES = ["matrix", "wide_loads"]
LIMITS = ["local_bytes", "shared_bytes"] + [f"sm_{architecture}" for architecture in ARCHITECTURES]
COLUMNS = ["kernel"] + PROMISES + LIMITS


def compile_ptx(source, folder):
    """The PTX of an operation's kernels, as ops/build.rs compiles it."""
    out = folder / f"{source.parent.name}.ptx"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'ops' / 'src'}", "-arch=compute_80"]
    subprocess.run(["nvcc", "-ptx", *flags, "-o", out, source], check=True)
    return out


def instructions(ptx):
    """For each kernel of a PTX file: whether it has matrix instructions, and whether it loads 16 bytes at once."""
    found = {}
    for part in ptx.read_text().split(".entry ")[1:]:
        name = part[: part.index("(")]
        wide = re.search(r"ld\.global[.\w]*\.v4\.(?:u32|b32|f32|s32)|ld\.global[.\w]*\.v2\.(?:u64|b64|f64)|cp\.async", part)
        found[name] = ("mma.sync" in part or "wgmma" in part, wide is not None)
    return found


def assemble(ptx, architecture, folder):
    """Registers, stack, spills and shared memory of each kernel, as ptxas reports them."""
    command = ["ptxas", "-v", f"-arch=sm_{architecture}", "-o", folder / f"{ptx.stem}-{architecture}.cubin", ptx]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    kernels, name = {}, None
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
            kernels[name] = {"registers": 0, "local_bytes": 0, "shared_bytes": 0, "spills": 0}
        if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name]["local_bytes"] = int(found[1])
            kernels[name]["spills"] = int(found[2]) + int(found[3])
        if found := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name]["shared_bytes"] = int(shared[1]) if shared else 0
    return kernels


def occupancy(registers, architecture):
    """The share of a multiprocessor's threads that run at once, as far as registers bound it; a warp takes them in steps of 256."""
    per_warp = -(-registers * 32 // 256) * 256
    warps = REGISTERS // max(per_warp, 1) // (BLOCK // 32) * (BLOCK // 32)
    return min(1.0, warps * 32 / THREADS[architecture])


def measure():
    """One row per kernel, what is wrong whatever the table says, and the lowest occupancy with its kernel."""
    rows, failures, lowest = {}, [], (2.0, "")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        folder = pathlib.Path(folder)
        modules = list(pool.map(lambda source: compile_ptx(source, folder), sorted((ROOT / "ops" / "src").glob("*/kernel.cu"))))
        pairs = [(ptx, architecture) for ptx in modules for architecture in ARCHITECTURES]
        for (ptx, architecture), kernels in zip(pairs, pool.map(lambda pair: assemble(*pair, folder), pairs)):
            has = instructions(ptx)
            for name, found in sorted(kernels.items()):
                where = f"{name} on sm_{architecture}"
                if found["spills"]:
                    failures.append(f"{where} spills registers")
                if found["registers"] * BLOCK > REGISTERS:
                    failures.append(f"{where}: {found['registers']} registers for {BLOCK} threads are more than there are")
                row = rows.setdefault(name, {"kernel": name, **dict(zip(PROMISES, has[name])), "local_bytes": 0, "shared_bytes": 0})
                row[f"sm_{architecture}"] = found["registers"]
                for column in ["local_bytes", "shared_bytes"]:
                    row[column] = max(row[column], found[column])
                lowest = min(lowest, (occupancy(found["registers"], architecture), where))
    return list(rows.values()), failures, lowest


def compare(rows):
    with TABLE.open(newline="") as file:
        stated = {row["kernel"]: row for row in csv.DictReader(file)}
    failures = []
    for row in rows:
        name = row["kernel"]
        expected = stated.pop(name, None)
        if expected is None:
            failures.append(f"{name} is not in {TABLE.name}: add it with --write")
            continue
        for column in LIMITS:
            if row[column] > int(expected[column]):
                failures.append(f"{name}: {column} {row[column]}, the table has {expected[column]}")
        for column in PROMISES:
            if expected[column] == "True" and not row[column]:
                failures.append(f"{name}: no {column.replace('_', ' ')}, the table promises them")
    return failures + [f"{name} is in the table and no longer in the sources" for name in stated]


def main():
    rows, failures, lowest = measure()
    if "--write" in sys.argv[1:]:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    else:
        failures += compare(rows)
    for failure in failures:
        print(f"kernels: {failure}", file=sys.stderr)
    print(f"kernels: {len(rows)} kernels on {len(ARCHITECTURES)} architectures, {len(failures)} faults; lowest occupancy {lowest[0]:.2f}, {lowest[1]}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Assemble every CUDA kernel for each GPU that we support, and hold it against a committed table. Needs no GPU.

    .ci/kernels.py            compare with ops/kernels.csv; exit status 1 if a kernel got worse
    .ci/kernels.py gelu …     compare the kernels of these operations (folders of ops/src)
    .ci/kernels.py --write    write the table anew, or the rows of these operations

It needs the environment that `.ci/cuda-toolchain.sh` prints (nvcc, ptxas and nvdisasm). A kernel fails if it spills registers, if it keeps
local memory that the table does not state, or if it takes more registers or shared memory than the table states. It also fails if its
machine code falls behind what the table promises:

    matrix          True: an innermost loop has matrix instructions
    loop_load       bytes that a thread loads from device memory at once in its innermost loops: at least half of a loop's bytes come by loads
                    of this width; of several loops, the one with the widest loads (the others are remainders); 0 if none loads
    straight_load   the same of the code outside of loops, where a wide path and one for odd sizes lie next to each other
    widest_load     bytes of the widest load anywhere in the kernel
    narrow_loads    number of loads of less than 16 bytes; fewer are as good
"""

import csv
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "ops" / "kernels.csv"
ARCHITECTURES = ["80", "86", "89", "90", "100", "120"]
# Of these the machine code is read: one of each family (the others differ from it in no load).
DISASSEMBLED = {"80", "90", "120"}
# Registers and threads of a multiprocessor, by NVIDIA's table of compute capabilities.
REGISTERS = 65536
THREADS = {"80": 2048, "86": 1536, "89": 1536, "90": 2048, "100": 2048, "120": 1536}
# Threads of a block (`THREADS` in ops/src/device/launch_args.rs), unless the source bounds them.
BLOCK = 256
# The table: what must hold on every architecture, then the registers on each.
PROMISES = ["matrix", "loop_load", "straight_load", "widest_load"]
LIMITS = ["narrow_loads", "local_bytes", "shared_bytes"] + [f"sm_{architecture}" for architecture in ARCHITECTURES]
COLUMNS = ["kernel"] + PROMISES + LIMITS


def compile_ptx(source, folder):
    """The PTX of an operation's kernels, as ops/build.rs compiles it."""
    out = folder / f"{source.parent.name}.ptx"
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'ops' / 'src'}", "-arch=compute_80"]
    subprocess.run(["nvcc", "-ptx", *flags, "-o", out, source], check=True)
    return out


# A label, or a load from device memory, a matrix instruction or a branch with its target.
INSTRUCTION = re.compile(
    r"^(?P<label>\.L_\w+):|\*/ +(?:@\S+ +)?(?:(?P<load>LDG(?:STS)?\.[\w.]+)|(?P<matrix>(?:H|I|Q|O|D|B|HG|IG|QG|UTCH|UTCI|UTCQ|UTCO)MMA)\b"
    r"|BRA\b[^;\n]*`\((?P<target>\.L_\w+)\))",
    re.MULTILINE,
)
WIDTHS = [(".256", 32), (".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1)]


def load_bytes(instruction):
    return next((width for mark, width in WIDTHS if mark in instruction), 4)


def usual_load(widths):
    """The width of the loads that bring at least half of the bytes; 0 if there are none."""
    reached = 0
    for width in sorted(widths, reverse=True):
        reached += width
        if 2 * reached >= sum(widths):
            return width
    return 0


def within(at, ranges):
    return any(start <= at <= end for start, end in ranges)


def promises(code):
    """What the machine code of a kernel holds, by the names of PROMISES."""
    labels, loads, matrices, branches = {}, [], [], []
    for found in INSTRUCTION.finditer(code):
        if found["label"]:
            labels[found["label"]] = found.start()
        elif found["load"]:
            loads.append((found.start(), load_bytes(found["load"])))
        elif found["matrix"]:
            matrices.append(found.start())
        else:
            branches.append((found.start(), found["target"]))
    # A branch back is a loop's end. One to itself pads the end of the code; its label follows the code.
    loops = {(labels[target], at) for at, target in branches if labels.get(target, at) < at}
    loops = {(start, end) for start, end in loops if code.count("\n", start, end) > 1}
    inner = [loop for loop in loops if not any(loop != other and loop[0] <= other[0] and other[1] <= loop[1] for other in loops)]
    return {
        "matrix": any(within(at, inner) for at in matrices),
        "loop_load": max((usual_load([width for at, width in loads if start <= at <= end]) for start, end in inner), default=0),
        "straight_load": usual_load([width for at, width in loads if not within(at, loops)]),
        "widest_load": max((width for _, width in loads), default=0),
        "narrow_loads": sum(width < 16 for _, width in loads),
    }


def disassemble(cubin):
    """For each kernel of a cubin: what its machine code holds."""
    text = subprocess.run(["nvdisasm", "-c", cubin], check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]
    return {part[: part.index(",")]: promises(part) for part in parts}


def assemble(ptx, architecture, folder):
    """Registers, stack, spills and shared memory of each kernel, as ptxas reports them, and what its machine code holds."""
    cubin = folder / f"{ptx.stem}-{architecture}.cubin"
    command = ["ptxas", "-v", f"-arch=sm_{architecture}", "-o", cubin, ptx]
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
    if architecture in DISASSEMBLED:
        for name, held in disassemble(cubin).items():
            kernels[name].update(held)
    return kernels


def occupancy(registers, architecture):
    """The share of a multiprocessor's threads that run at once, as far as registers bound it; a warp takes them in steps of 256."""
    per_warp = -(-registers * 32 // 256) * 256
    warps = REGISTERS // max(per_warp, 1) // (BLOCK // 32) * (BLOCK // 32)
    return min(1.0, warps * 32 / THREADS[architecture])


def measure(sources):
    """One row per kernel, what is wrong whatever the table says, and the lowest occupancy with its kernel."""
    rows, failures, lowest = {}, [], (2.0, "")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = pathlib.Path(folder)
        modules = list(pool.map(lambda source: compile_ptx(source, folder), sources))
        pairs = [(ptx, architecture) for ptx in modules for architecture in ARCHITECTURES]
        for (ptx, architecture), kernels in zip(pairs, pool.map(lambda pair: assemble(*pair, folder), pairs)):
            for name, found in sorted(kernels.items()):
                where = f"{name} on sm_{architecture}"
                if found["spills"]:
                    failures.append(f"{where} spills registers")
                if found["registers"] * BLOCK > REGISTERS:
                    failures.append(f"{where}: {found['registers']} registers for {BLOCK} threads are more than there are")
                row = rows.setdefault(name, {"kernel": name, "narrow_loads": 0, "local_bytes": 0, "shared_bytes": 0})
                row[f"sm_{architecture}"] = found["registers"]
                # What the worst of the architectures holds, and which it is.
                for column in PROMISES if architecture in DISASSEMBLED else []:
                    if column not in row or found[column] < row[column]:
                        row[column], row[column, "on"] = found[column], f"sm_{architecture}"
                for column in ["narrow_loads", "local_bytes", "shared_bytes"]:
                    row[column] = max(row[column], found.get(column, 0))
                lowest = min(lowest, (occupancy(found["registers"], architecture), where))
    return list(rows.values()), failures, lowest


def broken_promise(column, expected, row):
    """What a kernel lacks of the table's promise, in words; empty if it keeps it."""
    if column == "matrix":
        return "no innermost loop has matrix instructions, the table promises them" if expected[column] == "True" and not row[column] else ""
    what = {
        "loop_load": "its innermost loops load mostly",
        "straight_load": "outside of loops it loads mostly",
        "widest_load": "it loads at most",
    }
    if row[column] < int(expected[column]):
        return f"{what[column]} {row[column]} bytes at once, the table promises {expected[column]} ({column})"
    return ""


def compare(rows, whole):
    """Where kernels are behind the table; if they are not all, kernels that the table alone has are left out."""
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
        failures += [f"{name} on {row[column, 'on']}: {broken}" for column in PROMISES if (broken := broken_promise(column, expected, row))]
    return failures + [f"{name} is in the table and no longer in the sources" for name in stated if whole]


def main():
    arguments = sys.argv[1:]
    every = sorted((ROOT / "ops" / "src").glob("*/kernel.cu"))
    sources = [source for source in every if source.parent.name in arguments] or every
    rows, failures, lowest = measure(sources)
    if "--write" in arguments:
        if sources != every:
            with TABLE.open(newline="") as file:
                # The rows of kernels that are gone stay until the whole table is written.
                rows = list(({row["kernel"]: row for row in csv.DictReader(file)} | {row["kernel"]: row for row in rows}).values())
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: row["kernel"]))
    else:
        failures += compare(rows, whole=sources == every)
    for failure in failures:
        print(f"kernels: {failure}", file=sys.stderr)
    print(f"kernels: {len(rows)} kernels on {len(ARCHITECTURES)} architectures, {len(failures)} faults; lowest occupancy {lowest[0]:.2f}, {lowest[1]}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()

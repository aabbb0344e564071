#!/usr/bin/env python3
"""Counts the calls of a training step and of an encoder pass, at their real sizes, on the host driver.

    tests/cuda_host/count.py EXAMPLES DRIVER OUT     folders: of gpu_step and gpu_encoder, of the host driver, for the lists

Nothing is computed (SAM_LADDER_CUDA_COMPUTE=no). Each list, OUT/<name>.csv, has one line per call of one step or pass, after those that choose
algorithms; tests/cuda_host/report.cpp says what its columns mean. Prints a table in Markdown.
"""

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

CASES = {
    "step-512-b24-f32": ("gpu_step", "512 24 f32 cuda:0 1"),
    "step-512-b24-bf16": ("gpu_step", "512 24 bf16 cuda:0 1"),
    "step-512-b24-bf16-graph": ("gpu_step", "512 24 bf16 cuda:0 1 --graph"),
    "encoder-vit_b-512-b16-f32": ("gpu_encoder", "vit_b 512 16 f32 cuda:0 1"),
    "encoder-vit_b-512-b16-bf16": ("gpu_encoder", "vit_b 512 16 bf16 cuda:0 1"),
}
KINDS = {
    "launches": ["launch"],
    "cuBLAS products": ["product"],
    "cuDNN convolutions": ["convolution"],
    "graph launches": ["graph"],
    "allocations": ["allocate"],
    "frees": ["free"],
    "copies between host and device": ["to_device", "to_host"],
    "copies within the device": ["within_device"],
    "fills": ["fill"],
}


def last_between_waits(calls):
    """The calls after the last but one wait that something was launched after; the last wait ends the step."""
    ends = [i for i, call in enumerate(calls) if call["kind"] == "wait"]
    for start, end in reversed(list(zip(ends, ends[1:]))):
        inside = calls[start + 1 : end]
        if any(call["kind"] in ("launch", "graph") for call in inside):
            return inside
    sys.exit("no step lies between two waits")


def most_memory(calls):
    """Bytes that are allocated at once at most, over the whole run."""
    held = most = 0
    for call in calls:
        held += {"allocate": 1, "free": -1}.get(call["kind"], 0) * int(call["bytes"])
        most = max(most, held)
    return most


def count(name, program, arguments, examples, driver, out):
    every = out / f"{name}.all.csv"
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(driver),
        "SAM_LADDER_CUDA_COMPUTE": "no",
        "SAM_LADDER_CUDA_CALLS": str(every),
        "SAM_LADDER_CUDA_MEMORY": str(80 << 30),
        "SAM_LADDER_CUDA_CARD": "h100",
    }
    subprocess.run([examples / program, *arguments.split()], env=environment, check=True, stdout=subprocess.DEVNULL)
    with every.open() as file:
        reader = csv.DictReader(file)
        calls = list(reader)
    most = most_memory(calls)
    calls = last_between_waits(calls)
    every.unlink()
    with (out / f"{name}.csv").open("w") as file:
        writer = csv.DictWriter(file, reader.fieldnames, lineterminator="\n")
        writer.writeheader()
        writer.writerows(calls)
    return Counter(call["kind"] for call in calls), most


def main():
    examples, driver, out = (Path(argument).resolve() for argument in sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    counts = {name: count(name, *case, examples, driver, out) for name, case in CASES.items()}
    print("| calls | " + " | ".join(counts) + " |")
    print("| --- |" + " --- |" * len(counts))
    for row, kinds in KINDS.items():
        print(f"| {row} | " + " | ".join(str(sum(of[kind] for kind in kinds)) for of, _ in counts.values()) + " |")
    print("| most memory at once, GiB | " + " | ".join(f"{most / 2**30:.2f}" for _, most in counts.values()) + " |")


main()

"""A calculation, not a measurement: the least time that a GPU can take for the calls of a training step or of an encoder pass.

    python3 bench/gpu/roofline.py calls.csv                 one table per card
    python3 bench/gpu/roofline.py calls.csv --card H100     one card
    python3 bench/gpu/roofline.py calls.csv --markdown      the summary of all cards, for docs/reference/gpu.md

`calls.csv` is the list of calls that the host's driver writes (SAM_LADDER_CUDA_CALLS; its columns stand in tests/cuda_host/report.cpp), of one step or
one pass. The floor of a call is the largest of: its bytes over the card's memory rate, its operations over the card's rate in their number format, and
LAUNCH seconds. Bytes that one call writes and the next one reads may stay in the card's cache, so a floor can be beaten; nothing else can.

What a call reads and writes is an upper bound (see report.cpp). Operations are counted for matrix products, convolutions and attention; every other
kernel is bound by memory.
"""

import argparse
import csv
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field

# Seconds from the start of a small kernel to the start of the next one, within a CUDA graph.
LAUNCH = 1.5e-6
# Bytes per second, and multiplications and additions per second. MEASURED are the rates that plain copies and products reached; the others are 0.9 of the
# memory rate and 0.8 of the dense matrix rate (with float32 sums) in NVIDIA's data sheets.
CARDS = {
    "A100 40 GB": {"memory": 0.9 * 1.555e12, "16": 0.8 * 312e12, "tf32": 0.8 * 156e12, "f32": 0.8 * 19.5e12},
    "RTX 3090": {"memory": 0.9 * 0.936e12, "16": 0.8 * 71e12, "tf32": 0.8 * 35.6e12, "f32": 0.8 * 35.6e12},
    "RTX 4090": {"memory": 0.9 * 1.008e12, "16": 0.8 * 165e12, "tf32": 0.8 * 82.6e12, "f32": 0.8 * 82.6e12},
    "H100": {"memory": 3.0e12, "16": 798e12, "tf32": 0.8 * 495e12, "f32": 0.8 * 67e12},
    "H200": {"memory": 4.3e12, "16": 790e12, "tf32": 0.8 * 495e12, "f32": 0.8 * 67e12},
}
MEASURED = {"H100": ["memory", "16"], "H200": ["memory", "16"]}
# Kinds of calls that take no time of the device of their own.
HOST = {"allocate", "free", "wait", "graph"}
BYTES = {"f32": 4, "bf16": 2, "f16": 2}


@dataclass
class Work:
    """Calls of one name."""

    calls: int = 0
    bytes: float = 0.0
    operations: dict = field(default_factory=lambda: defaultdict(float))  # by rate
    floor: dict = field(default_factory=lambda: defaultdict(float))  # seconds, by card


def numbers(shape):
    """`m=3 factors=bf16` as a dictionary."""
    return dict(pair.split("=", 1) for pair in shape.split())


def rate_of(factors):
    return "16" if factors in ("bf16", "f16") else "tf32" if factors == "tf32" else "f32"


def attention_operations(name, grid, shape):
    """Operations of an attention kernel of ours and their rate; None for any other kernel."""
    at = numbers(shape)
    if found := re.fullmatch(r"rel_pos_attention_(\d+)(?:_\d+)?_(\w+)", name):
        # The table of positions has 2·(2·side - 1) rows; the exact kernel's name has its width in sixteens.
        elements = int(at["p2"].lstrip("@")) // BYTES[found[2]]
        width = int(found[1]) * (16 if found[2] == "f32" else 1)
        side = (elements // (2 * width) + 1) // 2
        _, heads, windows = map(int, grid.split("x"))
        return 4.0 * windows * heads * side**4 * width, rate_of(found[2])
    if found := re.fullmatch(r"attention(_backward_queries|_backward_keys)?(?:_few_keys|_few_queries)?_(\d+)_(\w+)", name):
        # batch, heads, queries and keys are the last integers but the scale.
        sizes = [int(value) for value in list(at.values())[-5:-1]]
        products = {None: 2, "_backward_queries": 4, "_backward_keys": 4}[found[1]]
        # Without the matrix units.
        return 2.0 * products * int(found[2]) * sizes[0] * sizes[1] * sizes[2] * sizes[3], "f32"
    return None


def operations(row):
    """Multiplications and additions of a call, and the rate at which they run."""
    at = numbers(row["shape"]) if row["kind"] in ("product", "convolution") else {}
    if row["kind"] == "product":
        return 2.0 * int(at["m"]) * int(at["n"]) * int(at["k"]) * int(at.get("batch", 1)), rate_of(at["factors"])
    if row["kind"] == "convolution":
        kernel = [int(side) for side in at["kernel"].split("x")]
        area = kernel[0] * kernel[-1]
        outputs = int(at["batch"]) * int(at["out"]) * int(at["out_h"]) * int(at["out_w"])
        return 2.0 * outputs * int(at["in"]) * area, rate_of(at["factors"])
    return attention_operations(row["name"], row["grid"], row["shape"]) or (0.0, "f32")


def group_of(row):
    """What stands in one line: a kernel without its number format, products and convolutions by call."""
    return re.sub(r"_(f32|bf16|f16)$", "", row["name"])


def read(path):
    works, host = defaultdict(Work), defaultdict(int)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if row["kind"] in HOST:
                host[row["kind"]] += 1
                continue
            work = works[f"{row['kind']}: {group_of(row)}"]
            count, rate = operations(row)
            work.calls += 1
            work.bytes += int(row["bytes"])
            work.operations[rate] += count
            for card, rates in CARDS.items():
                work.floor[card] += max(int(row["bytes"]) / rates["memory"], count / rates[rate], LAUNCH)
    return works, host


def totals(works, card):
    """Floor of the calls as they are; of their operations only; of their bytes only; of the launches only. In seconds."""
    rates = CARDS[card]
    return (
        sum(work.floor[card] for work in works.values()),
        sum(count / rates[rate] for work in works.values() for rate, count in work.operations.items()),
        sum(work.bytes for work in works.values()) / rates["memory"],
        LAUNCH * sum(work.calls for work in works.values()),
    )


def print_card(works, card):
    total = totals(works, card)[0]
    print(f"\n{card}: at least {1e3 * total:.2f} ms (a calculation)\n")
    print(f"{'calls':>6} {'GB':>8} {'GFLOP':>9} {'ms':>8} {'share':>6}  work")
    for name, work in sorted(works.items(), key=lambda item: -item[1].floor[card]):
        floor = work.floor[card]
        print(f"{work.calls:6} {work.bytes / 1e9:8.3f} {sum(work.operations.values()) / 1e9:9.1f} {1e3 * floor:8.3f} {floor / total:6.1%}  {name}")


def print_markdown(works):
    print("| card | floor of the calls | of their products only | of their bytes only | of their launches only |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for card in CARDS:
        cells = " | ".join(f"{1e3 * seconds:.2f} ms" for seconds in totals(works, card))
        note = "" if card in MEASURED else " (data sheet)"
        print(f"| {card}{note} | {cells} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("calls", help="the list of calls, of one step or one pass")
    parser.add_argument("--card", choices=CARDS, help="one card")
    parser.add_argument("--markdown", action="store_true", help="the summary of all cards as a table")
    options = parser.parse_args()
    works, host = read(options.calls)
    if not works:
        sys.exit(f"{options.calls} lists no calls of the device")
    calls = sum(work.calls for work in works.values())
    moved = sum(work.bytes for work in works.values())
    others = ", ".join(f"{count} × {kind}" for kind, count in sorted(host.items())) or "none"
    if options.markdown:
        print_markdown(works)
        return
    print(f"{calls} calls of the device, at most {moved / 1e9:.2f} GB; calls of the host: {others}")
    for card in [options.card] if options.card else CARDS:
        print_card(works, card)


if __name__ == "__main__":
    main()

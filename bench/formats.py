"""`make bench-formats`: size, speed and error of each number format and compression of a store, as tables in Markdown.

    python bench/formats.py PROGRAM [--dice] [--only reading|contents] [--dtypes DTYPE …]

Bytes per slice and errors come from the demo's scans at 224 (ViT-B with random weights, float32 as reference, logits of a model trained on
the float32 store). Reading speed comes from a store at 512 in the page cache, in batches of 24 random variants, with zarr-python reading the
same batches and a plain read of as many bytes. `--dice` trains the demo on each format from three seeds (mean ± standard deviation). The tables
are printed to standard output.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "target/release/examples"
DTYPES, COMPRESSIONS = ("f32", "f16", "bf16", "q8"), ("none", "zstd")
BATCH = 24
SEEDS = (1, 2, 3)


def run(*command):
    return subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("c.*"))


def zarr_python_rate(store, rounds):
    """MB/s of random batches read by zarr-python."""
    group = zarr.open_group(str(store), mode="r")["train"]
    names = [name for name in ("embeddings", "images", "labels", "quantization") if name in group]
    arrays = [group[name] for name in names]
    generator = np.random.default_rng(1)
    rates = []
    for _ in range(rounds):
        slices, variants = (generator.integers(0, n, BATCH) for n in arrays[0].shape[:2])
        start = time.perf_counter()
        size = 0
        for array in arrays:
            for row, variant in zip(slices, variants):
                size += array[int(row), int(variant)].nbytes
        rates.append(size / (time.perf_counter() - start) / 1e6)
    return statistics.median(rates)


def tensorstore_rate(store, rounds):
    """MB/s of random batches read by TensorStore: all tensors of a batch are asked for at once."""
    import tensorstore

    group = zarr.open_group(str(store), mode="r")["train"]
    names = [name for name in ("embeddings", "images", "labels", "quantization") if name in group]
    open_one = lambda name: tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store}/train/{name}/"}}, read=True, open=True)
    arrays = [opened.result() for opened in [open_one(name) for name in names]]
    generator = np.random.default_rng(1)
    rates = []
    for _ in range(rounds):
        slices, variants = (generator.integers(0, n, BATCH) for n in arrays[0].shape[:2])
        start = time.perf_counter()
        asked = [array[int(row), int(variant)].read() for array in arrays for row, variant in zip(slices, variants)]
        size = sum(one.result().nbytes for one in asked)
        rates.append(size / (time.perf_counter() - start) / 1e6)
    return statistics.median(rates)


def formats(dtypes):
    return [(dtype, compression) for dtype in dtypes for compression in COMPRESSIONS]


def reading(folder, dtypes):
    print("| format | compression | MB per batch | ours, MB/s | plain read, MB/s | ratio | zarr-python, MB/s |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for dtype, compression in formats(dtypes):
        store = folder / f"loader-{dtype}-{compression}.zarr"
        run(EXAMPLES / "bench_loader", "make", store, dtype, compression)
        said = run(EXAMPLES / "bench_loader", "read", store, BATCH, 100)
        ours, plain, ratio = re.findall(r"([0-9.]+) MB/s.* ([0-9.]+) MB/s.*ratio ([0-9.]+)", said)[0]
        mb = BATCH * folder_bytes(store / "train") / 176 / 1e6
        print(f"| `{dtype}` | {compression} | {mb:.1f} | {ours} | {plain} | {ratio} | {zarr_python_rate(store, 5):.0f} |", flush=True)


def dice_of(program, store, trained, seed):
    """The demo's training on `store` into the run folder `trained`; → mean Dice, %."""
    options = ["--epochs", 15, "--batch-size", 8, "--warmup", 10, "--seed", seed]
    run(program, "train", "--store", store, "--run", trained, *options)
    run(program, "eval", "--store", store, "--run", trained, "--out", trained / "eval")
    return float(re.search(r"\| SAM-Ladder[^|]*\| *([0-9.]+)", (trained / "eval/table.md").read_text()).group(1))


def contents(program, folder, dice, dtypes):
    scans = folder / "scans"
    run(program, "phantom", "--out", scans, "--cases", 8, "--size", 128, "--depth", 16, "--seed", 1)
    reference, trained = folder / "f32-none.zarr", folder / "run-f32-1"
    print("\n| format | compression | KB per slice: embeddings | image | embeddings: largest, rms error | logits: largest, rms error | Dice |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    # The reference is made in any case.
    for dtype, compression in dict.fromkeys([("f32", "none"), *formats(dtypes)]):
        store = folder / f"{dtype}-{compression}.zarr"
        run(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 1, "--preset", "native224", "--augment", "none",
            "--dtype", dtype, "--compression", compression)  # fmt: skip
        score = ""
        if compression == "none" and dice and dtype in dtypes:
            scores = [dice_of(program, store, folder / f"run-{dtype}-{seed}", seed) for seed in SEEDS]
            score = f"{statistics.fmean(scores):.1f} ± {statistics.stdev(scores):.1f}"
        elif store == reference:
            dice_of(program, store, trained, 1)
        said = run(EXAMPLES / "compare_stores", reference, store, trained)
        errors = {name: (largest, rms) for name, largest, rms in re.findall(r"(\w+): largest (\S+), rms (\S+),", said)}
        slices = len(list((store / "train/labels").glob("c.*")))
        kb = [folder_bytes(store / f"train/{name}") / slices / 1e3 for name in ("embeddings", "images")]
        print(f"| `{dtype}` | {compression} | {kb[0]:.0f} | {kb[1]:.0f} | {', '.join(errors['embeddings'])} | {', '.join(errors['logits'])} | {score} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("--dice", action="store_true", help="train the demo on every format too")
    parser.add_argument("--only", choices=["reading", "contents"], help="one of the two tables")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="only these formats")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.only != "contents":
            reading(Path(temporary), arguments.dtypes)
        if arguments.only != "reading":
            contents(arguments.program.resolve(), Path(temporary), arguments.dice, arguments.dtypes)


if __name__ == "__main__":
    sys.exit(main())

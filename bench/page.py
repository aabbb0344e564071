"""Writes the tables and plots of `docs/reference/speed.md`, and the README's table, from the results of a machine.

    python bench/page.py bench/results/MACHINE

What stands between `<!-- NAME -->` and `<!-- /NAME -->` of the pages is replaced.
"""

import csv
import re
import sys
import textwrap
from pathlib import Path

import plot
from limits import encoder_operations


def read(folder, name):
    path = folder / name
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table(header, rows):
    if not rows:
        return "Not measured yet."
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def work_table(folder):
    header = ["work", "sam-ladder, s per image", "PyTorch", "fastest other", "its s per image", "ratio to it", "target, at most", "peak memory, MiB", "PyTorch's"]
    rows = read(folder, "bench.csv")
    if rows and "fastest" not in rows[0]:  # measured before there were others than PyTorch
        header[3:6] = ["ratio"]
    return table(header, [list(row.values()) for row in rows])


def others_table(folder):
    rows = [[row["work"], row["way"], row["s_per_image"], row["peak_mib"]] for row in read(folder, "others.csv")]
    return table(["work", "by", "s per image", "peak memory, MiB"], rows)


def reading_table(folder):
    header = ["work", "sam-ladder, MB/s", "plain `read`", "ratio", "target, at least", "zarr-python", "TensorStore"]
    rows = [list(row.values()) for row in read(folder, "reading.csv")]
    return table(header[: len(rows[0])] if rows else header, rows)  # older results lack TensorStore


def machine_table(folder):
    return table(["what", "threads", "rate", "unit"], [list(row.values()) for row in read(folder, "machine.csv")])


def bound_table(folder):
    """The encoder's operations at the peak rate of multiply-adds, next to the measured time."""
    peaks = {int(row["threads"]): float(row["rate"]) for row in read(folder, "machine.csv") if row["what"] == "fused multiply-add"}
    rows = []
    for row in read(folder, "bench.csv"):
        found = re.match(r"encoder ViT-B, (\d+), batch \d+$", row["work"])  # float32
        if found and peaks:
            operations, peak = encoder_operations("vit_b", int(found.group(1))) / 1e9, peaks[max(peaks)]
            ours, torch = float(row["sam_ladder_s_per_image"]), float(row["pytorch_s_per_image"])
            bound = operations / peak
            rows.append([row["work"], f"{operations:.1f}", f"{bound:.3f}", f"{bound / torch:.2f}", f"{ours:.3f}", f"{100 * bound / ours:.0f} %"])
    header = ["work", "GFLOP per image", "s at the peak", "ratio to PyTorch at the peak", "s measured", "share of the peak"]
    return table(header, rows)


def scaling_table(folder):
    rows = [[row["work"], row["axis"], row["value"], row["seconds"]] for row in read(folder, "scaling.csv")]
    return table(["work", "axis", "value", "s per call"], rows)


def plot_table(folder):
    """The plots, two in a row."""
    images = [f"![{title}, {y} by {x}](speed/{name}.svg)" for name, (title, x, y, _) in wanted_plots(folder).items()]
    if not images:
        return "Not measured yet."
    rows = [images[i : i + 2] for i in range(0, len(images), 2)]
    return "\n".join(["| | |", "| --- | --- |", *("| " + " | ".join((row + [""])[:2]) + " |" for row in rows)])


def summary(folder):
    """All tables of a machine."""
    about = (folder / "about.txt").read_text().strip()
    parts = [("", work_table), ("Each of the others", others_table), ("Reading a store", reading_table), ("What the machine can do", machine_table), ("Bound", bound_table)]
    return "\n\n".join([about + ".", *(f"{title}\n\n{make(folder)}".strip() for title, make in parts)]) + "\n"


def wanted_plots(folder):
    """Name of the file → title, names of both axes, series; only what was measured."""
    rows = read(folder, "scaling.csv")

    def points(work, axis, x=float):
        return [(x(row["value"]), float(row["seconds"])) for row in rows if (row["work"], row["axis"]) == (work, axis)]

    def tokens(size):
        return (int(size) // 16) ** 2

    wanted = {
        "batch-encoder": ("Encoder ViT-B, 224", "images in a batch", "s per batch", {"": points("encoder, 224", "batch")}),
        "batch-step": ("Stage-two step, 224", "images in a batch", "s per step", {"": points("step, 224", "batch")}),
        "size-encoder": ("Encoder ViT-B, one image", "tokens, (size / 16)²", "s", {"": points("encoder, batch 1", "image size", tokens)}),
        "size-step": ("Stage-two step, batch 8", "tokens, (size / 16)²", "s per step", {"": points("step, batch 8", "image size", tokens)}),
        "slices": (
            "Slices, 224",
            "slices",
            "s",
            {"precompute": points("precompute, 224", "slices"), "an epoch of train": points("epoch, 224", "slices")},
        ),
    }
    return {name: rest for name, rest in wanted.items() if all(rest[3].values())}


def write(folder, docs):
    """Replaces the pages' tables and plots."""
    blocks = {
        "about": lambda folder: textwrap.fill((folder / "about.txt").read_text().strip() + ".", 100),
        "work": work_table,
        "others": others_table,
        "reading": reading_table,
        "machine": machine_table,
        "bound": bound_table,
        "scaling": scaling_table,
        "plots": plot_table,
    }
    for path in (docs / "reference/speed.md", docs.parent / "README.md"):
        text = path.read_text()
        for name, make in blocks.items():
            block = f"<!-- {name} -->\n{make(folder)}\n<!-- /{name} -->"
            text = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)
        path.write_text(text)
    for name, parts in wanted_plots(folder).items():
        (docs / "reference/speed").mkdir(exist_ok=True)
        (docs / "reference/speed" / f"{name}.svg").write_text(plot.lines(*parts))


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(__file__).resolve().parent.parent / "docs")

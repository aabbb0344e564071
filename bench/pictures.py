"""`make pictures`: makes the pictures of README and docs, from `make demo` and `make sweep`: pictures.py PROGRAM DEMO CHROMIUM NIIVUE OUT

The report, a case's page and its view in three dimensions, the page of a folder of scans and the sweep's page as headless Chromium shows them, an overlay that `eval` wrote, and the terminal during a training run and a sweep
(a pseudo-terminal, drawn by pyte). Needs the demo's folder with its sweep.
"""

import fcntl
import html
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import pyte
from photograph_3d import photograph_3d
from PIL import Image

COLUMNS, ROWS = 136, 26
COLOURS = {
    "default": "#d6d9de", "black": "#4a4f57", "red": "#f07178", "green": "#a5d16d", "brown": "#e6c06a", "blue": "#82aaff", "magenta": "#c792ea",
    "cyan": "#7fd7e5", "white": "#ffffff",
}  # fmt: skip


def watch(command, until, seconds):
    """Runs a command in a terminal; returns the screen `seconds` after the pattern `until` appeared, or at the command's end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    seen = None
    while True:
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # the program has ended
                break
            if not data:
                break
            stream.feed(data)
        if seen is None and re.search(until, "\n".join(screen.display)):
            seen = time.monotonic()
        if seen is not None and time.monotonic() - seen > seconds:
            os.kill(pid, signal.SIGINT)
            break
    picture = [[(cell.data, cell.fg, cell.bold) for cell in (screen.buffer[y][x] for x in range(COLUMNS))] for y in range(ROWS)]
    shown = list(screen.display)
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        try:
            if select.select([terminal], [], [], 0.2)[0]:
                os.read(terminal, 65536)
        except OSError:
            pass
    if seen is None:
        sys.exit(f"{' '.join(command)}: never showed {until!r}, but\n" + "\n".join(shown))
    while picture and all(not character.strip() for character, _, _ in picture[-1]):
        picture.pop()
    return picture


def page(command, picture):
    """The command line with the screen below it, as HTML."""
    lines = [f'<span style="color:{COLOURS["green"]}">$</span> {html.escape(command)}']
    for row in picture:
        cells = (
            f'<span style="color:{COLOURS.get(fg, COLOURS["default"])}{";font-weight:bold" if bold else ""}">{html.escape(data)}</span>'
            for data, fg, bold in row
        )
        lines.append("".join(cells))
    style = "margin:0;padding:14px 18px;background:#1e2227;color:#d6d9de;font:14px/1.35 'DejaVu Sans Mono',monospace"
    return f'<!doctype html><meta charset="utf-8"><body style="margin:0;background:#1e2227"><pre style="{style}">' + "\n".join(lines) + "</pre>", len(lines)


def photograph(chromium, source, out, width, height, dark=False):
    """Saves a page as Chromium shows it, in all its colours: greys and scales would have bands in a palette."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                   "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]  # fmt: skip
        options += ["--force-dark-mode"] if dark else []
        shot = Path(profile) / "shot.png"
        subprocess.run([chromium, *options, f"--window-size={width},{max(height, 600)}", f"--screenshot={shot}", source.resolve().as_uri()], check=True, capture_output=True)
        # Chromium draws no window that is lower than its own frame.
        Image.open(shot).convert("RGB").crop((0, 0, width, height)).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size // 1024} KiB")


def only(source, sections, folder):
    """A copy of a page with only these of its sections, and without its header."""
    hidden = "".join(f":not([aria-labelledby={section}])" for section in sections)
    copy = Path(folder) / source.name
    copy.write_text(source.read_text().replace("</head>", f"<style>header, section{hidden} {{ display: none }} h2 {{ margin-top: 0 }}</style></head>"))
    return copy


def main():
    program, demo, chromium, viewer, out = str(Path(sys.argv[1]).resolve()), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        evaluation = folder / "eval"
        words = ["eval", "--store", demo / "store.zarr", "--run", demo / "run", "--out", evaluation, "--viewer", viewer]
        subprocess.run([program, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        report, case = evaluation / "report.html", sorted((evaluation / "cases").glob("*.html"))[1]
        photograph(chromium, report, out / "report.png", 1280, 1560)
        slices = only(report, ["slices"], folder)
        photograph(chromium, slices, out / "report-slices.png", 1280, 1300)
        photograph(chromium, slices, out / "report-slices-dark-700.png", 700, 1100, dark=True)
        cases = only(report, ["cases", "run"], folder)
        photograph(chromium, cases, out / "report-cases-dark.png", 1280, 1150, dark=True)
        photograph(chromium, case, out / "case.png", 1280, 900)
        photograph(chromium, case, out / "case-dark-700.png", 700, 640, dark=True)
        photograph_3d(chromium, case, out / "case-3d.png", 1280, 900)
        overlays = sorted((evaluation / "overlays").glob("*.png"))
        shutil.copy(overlays[len(overlays) // 2], out / "overlay.png")
        inspected = folder / "scans.html"
        words = ["inspect", "--scans", demo / "scans", "--voxels", "--out", inspected]
        subprocess.run([program, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        photograph(chromium, inspected, out / "inspect.png", 1280, 1500)
        photograph(chromium, inspected, out / "inspect-dark-700.png", 700, 1500, dark=True)
    photograph(chromium, demo / "sweep/sweep.html", out / "sweep.png", 1280, 2900)
    photograph(chromium, demo / "sweep/sweep.html", out / "sweep-dark-700.png", 700, 2000, dark=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store, config = demo / "store.zarr", Path(__file__).resolve().parent.parent / "docs/sweep.toml"
        terminals = [
            ("train", f"train --store {store} --run {folder / 'run'} --epochs 6 --batch-size 8 --warmup 10", r"epoch [3-6]/6", 1),
            ("sweep-terminal", f"sweep --store {store} --config {config} --out {folder / 'sweep'}", r"\bleft\b", 1),
        ]
        for name, words, until, seconds in terminals:
            picture = watch([program, *words.split()], until, seconds)
            told = words.replace(str(folder / "run"), "runs/first").replace(str(folder / "sweep"), "sweeps/first").replace(str(config), "sweep.toml")
            text, lines = page(f"sam-ladder {told.replace(str(store), 'synapse.zarr')}", picture)
            source = folder / f"{name}.html"
            source.write_text(text)
            photograph(chromium, source, out / f"{name}.png", 1200, 30 + 19 * lines)


if __name__ == "__main__":
    main()

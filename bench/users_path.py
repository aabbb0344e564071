"""`make users-path`: how long a user waits for each command to say something: users_path.py PROGRAM [FOLDER]

Takes phantom scans through inspect, precompute, verify, status, train, eval, audit, predict, export, sweep and doctor, each in a pseudo-terminal. Prints as Markdown when
each printed its first word, its longest silence, and its total time. Fails if a first word takes more than a second, or a silence more than two.
"""

import fcntl
import os
import pty
import select
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path

FIRST, SILENCE = 1.0, 2.0
SWEEP = """
[settings]
epochs = 2
batch_size = 8
lr = [5e-4, 1e-3]
[search]
method = "grid"
[validation]
fold = "1/3"
"""


def waits(command):
    """Seconds to the first output, seconds of the longest silence after it, and seconds to the end."""
    begun = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    first, last, silence, tail = None, begun, 0.0, b""
    while True:
        select.select([terminal], [], [])
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the program has ended
            data = b""
        now = time.monotonic()
        if first is None:
            first = now - begun
        else:
            silence = max(silence, now - last)
        if not data:
            break
        last, tail = now, (tail + data)[-2000:]
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit(f"{' '.join(command)} failed:\n{tail.decode(errors='replace')}")
    return first, silence, now - begun


def main():
    program = str(Path(sys.argv[1]).resolve())
    temporary = tempfile.TemporaryDirectory()
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(temporary.name)
    folder.mkdir(parents=True, exist_ok=True)
    scans, store, run, config = (folder / name for name in ("scans", "synapse.zarr", "run", "sweep.toml"))
    config.write_text(SWEEP)
    cases = {
        "doctor": "",
        "phantom": f"--out {scans} --cases 8 --size 256 --depth 24 --seed 3",
        "inspect": f"--scans {scans} --voxels --out {folder / 'scans.html'}",
        "precompute": f"--scans {scans} --store {store} --random-encoder 1 --preset native224 --augment none",
        "verify": f"--store {store}",
        "status": f"--store {store}",
        "train": f"--store {store} --run {run} --epochs 3 --batch-size 8 --warmup 10 --fold 1/4",
        "eval": f"--store {store} --run {run} --out {folder / 'eval'}",
        "audit": f"--store {store} --run {run} --out {folder / 'audit'}",
        "predict": f"--scan {scans}/RawData/Training/img --run {run} --out {folder / 'masks'}",
        "export": f"--run {run} --out {folder / 'model.onnx'} --with-encoder",
        "sweep": f"--store {store} --config {config} --out {folder / 'sweep'}",
    }
    print("| command | first output, s | longest silence after it, s | total, s |\n| --- | ---: | ---: | ---: |")
    late = []
    for name, options in cases.items():
        first, silence, whole = waits([program, name, *options.split()])
        print(f"| `{name}` | {first:.2f} | {silence:.2f} | {whole:.1f} |", flush=True)
        if first > FIRST or silence > SILENCE:
            late.append(name)
    if late:
        sys.exit(f"more than {FIRST} s to the first word, or more than {SILENCE} s of silence: {', '.join(late)}")


if __name__ == "__main__":
    main()

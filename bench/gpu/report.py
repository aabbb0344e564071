"""`make gpu-report`: collects in one file what we need to know if something fails on a GPU.

    python3 bench/gpu/report.py [--out gpu-report.tar.gz] [--binary sam-ladder] [--run RUN …] [--results FOLDER]

It holds what the machine says of its GPU and driver, which libraries the program finds, what `sam-ladder doctor` prints, the results of
`make gpu-check`, and of each run folder its log, settings and tables: no scans, no masks, no weights. A command that fails or hangs is part of
the report.
"""

import argparse
import io
import os
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# Of a run folder.
FILES = ["log.txt", "config.json", "epochs.parquet", "steps.parquet"]
# Whole values that say nothing of the user.
VARIABLES = ("CUDA", "LD_LIBRARY_PATH", "NVIDIA_", "SAM_LADDER_", "CUBLAS", "CUDNN", "SLURM_JOB_GPUS")
BINARIES = [ROOT / folder / "sam-ladder" for folder in ("bin", "target/release", "target-cuda/release")]
# Bytes of a file that are kept, from its end.
MOST = 4 << 20


def said(command, limit):
    """A command's output, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit)
    except subprocess.TimeoutExpired as error:
        return f"{(error.stdout or b'').decode(errors='replace')}\nended after {limit} s\n"
    except OSError as error:
        return f"does not start: {error}\n"
    return f"{done.stdout}{done.stderr}\nexit status {done.returncode}\n"


def commands(binary):
    return {
        "nvidia-smi.txt": ["nvidia-smi"],
        "nvidia-smi-q.txt": ["nvidia-smi", "-q"],
        "doctor.txt": [binary, "doctor", "--device", "cuda:0"],
        "version.txt": [binary, "--version"],
        "libraries.txt": ["ldd", binary],
        "loader.txt": ["ldconfig", "-p"],
        "nvcc.txt": ["nvcc", "--version"],
        "system.txt": ["uname", "-a"],
    }


def end_of(path):
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - MOST))
        return file.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-report.tar.gz"))
    parser.add_argument("--binary", help="default: that of this folder's build or of make gpu-pack")
    parser.add_argument("--limit", type=float, default=60, help="seconds for each command")
    parser.add_argument("--run", type=Path, nargs="*", default=[])
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    arguments = parser.parse_args()
    binary = arguments.binary or next((str(path) for path in BINARIES if path.exists()), "sam-ladder")
    parts = {name: said(command, arguments.limit).encode() for name, command in commands(binary).items()}
    variables = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    parts["environment.txt"] = "\n".join(variables).encode()
    for run in arguments.run:
        for name in FILES:
            if (run / name).is_file():
                parts[f"{run.name}/{name}"] = end_of(run / name)
    for checks in arguments.results.glob("*/checks.csv"):
        for path in checks.parent.iterdir():
            if path.is_file():
                parts[f"results/{checks.parent.name}/{path.name}"] = end_of(path)
    with tarfile.open(arguments.out, "w:gz") as archive:
        for name, content in parts.items():
            entry = tarfile.TarInfo(f"gpu-report/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    print(f"gpu-report: {arguments.out} with {len(parts)} files; look through it, then send it to us")


main()

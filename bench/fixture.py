"""What several benchmarks share: three phantoms of 512 × 512 × 100, two for training and one for testing; their store at 224, by a ViT-B with
random weights; and a model that was trained on it for some epochs."""

import subprocess

SLICES = 100
EPOCHS = 4


def run(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def make(program, folder):
    """Returns the store and the run."""
    scans, store, trained = folder / "scans", folder / "store.zarr", folder / "run"
    run(program, "phantom", "--out", scans, "--cases", 3, "--size", 512, "--depth", SLICES, "--seed", 1)
    run(program, "precompute", "--scans", scans, "--store", store, "--random-encoder", 1, "--preset", "native224", "--augment", "none")
    run(program, "train", "--store", store, "--run", trained, "--epochs", EPOCHS, "--batch-size", 8, "--warmup", 20, "--seed", 1)
    return store, trained

"""What the tests share: the program, and stores of a small phantom.

The environment has SAM_LADDER_PROGRAM (the program) and SAM_LADDER_LOGITS (its example `logits`, the program's own forward pass).
"""

import os
import subprocess

import pytest
from safetensors.numpy import load_file

# Random weights and small images: what is compared does not depend on them.
SMALL = ["--random-encoder", "0", "--image-size", "64", "--data-size", "64"]
CHOICES = [
    *(["--side-network", name] for name in ("resnet18", "resnet34", "resnet50", "vit-tiny")),
    *(["--gate", name] for name in ("channel", "pixel")),
    *(["--arm", name] for name in ("cnn-only", "sam-only")),
    ["--train-mask-tokens", "--train-hypernetworks"],
    ["--decoder", "skips"],
    ["--decoder", "skips", "--side-network", "resnet50", "--arm", "cnn-only"],
    ["--decoder", "skips-half", "--neighbours", "1"],
    ["--neighbours", "1"],
    ["--ladder", "gated", "--neighbours", "1"],
    ["--ladder", "gated", "--side-network", "vit-tiny"],
    ["--ladder", "gated", "--side-network", "resnet50", "--decoder", "skips"],
]


def ladder(*words):
    """Runs the program."""
    subprocess.run([os.environ["SAM_LADDER_PROGRAM"], *map(str, words)], check=True, capture_output=True)


def store_for(folder, choice):
    """The float32 store that a choice needs."""
    if "skips-half" in choice:
        return folder / "half.zarr"
    return folder / ("ladder.zarr" if "--ladder" in choice else "f32.zarr")


def train_briefly(store, run, choice):
    """A run of three steps, so that no tensor is at its initial value."""
    ladder("train", "--store", store, "--run", run, "--epochs", 1, "--max-steps", 3, "--warmup", 0, "--batch-size", 8, *choice)


def logits_of(run, store, out):
    """The program's logits of the store's test slices, [n, classes, s/4, s/4]."""
    subprocess.run([os.environ["SAM_LADDER_LOGITS"], run / "checkpoint.safetensors", store, out], check=True, capture_output=True)
    return load_file(out)["low_res_logits"]


def pytest_generate_tests(metafunc):
    if "choice" in metafunc.fixturenames:
        metafunc.parametrize("choice", CHOICES, ids=lambda words: "-".join(word.strip("-") for word in words))


@pytest.fixture(scope="session", params=["dinov2_vits14_reg", "dinov3_vitb16"])
def other_encoder(request, folder):
    """A store of the scans with another encoder than SAM's, in 8 bits and with a rung, and the channels of its embeddings."""
    path = folder / f"{request.param}.zarr"
    ladder("precompute", "--scans", folder / "scans", "--store", path, *SMALL, "--augment", "none", "--dtype", "q8", "--encoder", request.param,
           "--rungs", 3, "--rung-channels", 4)  # fmt: skip
    return path, {"dinov2_vits14_reg": 384, "dinov3_vitb16": 768}[request.param]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """`scans/`, and a store of them in each number format."""
    folder = tmp_path_factory.mktemp("package")
    ladder("phantom", "--out", folder / "scans", "--cases", 4, "--size", 64, "--depth", 6)
    for dtype in ("f32", "f16", "bf16", "q8"):
        ladder("precompute", "--scans", folder / "scans", "--store", folder / f"{dtype}.zarr", *SMALL, "--augment", "flips", "--dtype", dtype)
    ladder("precompute", "--scans", folder / "scans", "--store", folder / "ladder.zarr", *SMALL, "--augment", "none", "--dtype", "f32",
           "--rungs", "1,4,11", "--rung-channels", 8)  # fmt: skip
    ladder("precompute", "--scans", folder / "scans", "--store", folder / "half.zarr", *SMALL, "--augment", "none", "--dtype", "f32", "--half-labels")
    return folder

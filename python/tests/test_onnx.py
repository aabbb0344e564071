"""Models of `export --out model.onnx` in ONNX Runtime, against the program's own logits."""

import json
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest
import sam_ladder
from conftest import SMALL, ladder, logits_of, store_for, train_briefly

# Of the largest logit: float32, in another order of additions.
TOLERANCE = 3e-5


def session(path):
    onnx.checker.check_model(str(path), full_check=True)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def inputs_of(session, store, rows=slice(None)):
    """What a model takes, of a store's test slices."""
    test = sam_ladder.open_store(store).test
    images = test.images[rows, 0].reshape(-1, test.image_channels, *test.images.shape[-2:])
    around = any(entry.name == "embeddings" and len(entry.shape) == 5 for entry in session.get_inputs())
    dataset = sam_ladder.SliceDataset(store, "test", "identity", neighbours=int(around))
    embeddings = np.stack([dataset[row][1].numpy() for row in range(len(test))[rows]])
    known = {"images": images, "embeddings": embeddings}
    if test.rungs is not None:
        known["rungs"] = test.rungs[rows, 0]
    return {entry.name: known[entry.name] for entry in session.get_inputs()}


def check(path, store, expected):
    model = session(path)
    found = model.run(["low_res_logits"], inputs_of(model, store))[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
    return model


def test_a_model_has_the_programs_logits(folder, tmp_path, choice):
    store, run = store_for(folder, choice), tmp_path / "run"
    train_briefly(store, run, choice)
    expected = logits_of(run, store, tmp_path / "logits.safetensors")
    ladder("export", "--run", run, "--out", tmp_path / "m.onnx")
    model = check(tmp_path / "m.onnx", store, expected)
    arm = choice[choice.index("--arm") + 1] if "--arm" in choice else "full"
    names = {entry.name for entry in model.get_inputs()}
    rungs = {"rungs"} if "--ladder" in choice else set()
    assert names == {"full": {"images", "embeddings"}, "cnn-only": {"images"}, "sam-only": {"embeddings"}}[arm] | rungs
    # Batches of any size.
    one = model.run(None, inputs_of(model, store, slice(2, 3)))[0]
    assert np.abs(one[0] - expected[2]).max() <= TOLERANCE * np.abs(expected).max()
    assert json.loads(model.get_modelmeta().custom_metadata_map["class_names"]) == sam_ladder.open_store(store).class_names


@pytest.mark.parametrize("words", [[], ["--neighbours", "1"]], ids=["plain", "neighbours"])
def test_a_model_on_embeddings_of_another_encoder(other_encoder, tmp_path, words):
    store, _ = other_encoder
    train_briefly(store, tmp_path / "run", words)
    expected = logits_of(tmp_path / "run", store, tmp_path / "logits.safetensors")
    ladder("export", "--run", tmp_path / "run", "--out", tmp_path / "m.onnx")
    check(tmp_path / "m.onnx", store, expected)


@pytest.mark.parametrize("size, normalisation", [(64, "sam"), (224, "none"), (256, "none")])
def test_a_model_with_the_encoder_takes_images_only(tmp_path, size, normalisation):
    """Grids of 4, 14 and 16: windows larger than the grid, the whole grid, and windows that reach over its edge."""
    ladder("phantom", "--out", tmp_path / "scans", "--cases", 2, "--size", 48, "--depth", 2)
    store, run = tmp_path / "s.zarr", tmp_path / "run"
    ladder("precompute", "--scans", tmp_path / "scans", "--store", store, "--random-encoder", 5, "--image-size", size, "--data-size", 48,
           "--augment", "none", "--dtype", "f32", "--pixel-normalisation", normalisation)  # fmt: skip
    ladder("train", "--store", store, "--run", run, "--epochs", 1, "--batch-size", 2, "--warmup", 0)
    expected = logits_of(run, store, tmp_path / "logits.safetensors")
    ladder("export", "--run", run, "--out", tmp_path / "m.onnx", "--with-encoder")
    model = check(tmp_path / "m.onnx", store, expected)
    assert [entry.name for entry in model.get_inputs()] == ["images"]


@pytest.mark.parametrize("rungs", [["--rung-channels", "8"], ["--rung-projection", "none"]])
def test_the_encoder_of_a_model_with_a_ladder_makes_its_rungs(tmp_path, rungs):
    ladder("phantom", "--out", tmp_path / "scans", "--cases", 2, "--size", 48, "--depth", 2)
    store, run = tmp_path / "s.zarr", tmp_path / "run"
    ladder("precompute", "--scans", tmp_path / "scans", "--store", store, "--random-encoder", 5, "--image-size", 64, "--data-size", 48,
           "--augment", "none", "--dtype", "f32", "--rungs", "0,5,11", *rungs)  # fmt: skip
    ladder("train", "--store", store, "--run", run, "--epochs", 1, "--batch-size", 2, "--warmup", 0, "--ladder", "gated")
    expected = logits_of(run, store, tmp_path / "logits.safetensors")
    ladder("export", "--run", run, "--out", tmp_path / "m.onnx", "--with-encoder")
    model = check(tmp_path / "m.onnx", store, expected)
    assert [entry.name for entry in model.get_inputs()] == ["images"]


@pytest.mark.parametrize("channels", [2, 3])
def test_a_model_of_several_channels(tmp_path, channels):
    rng = np.random.default_rng(channels)
    nibabel = pytest.importorskip("nibabel")
    scans = tmp_path / "Dataset001_Several"
    for folder in ("imagesTr", "labelsTr"):
        (scans / folder).mkdir(parents=True)
    for case in ("a", "b", "c"):
        for channel in range(channels):
            image = nibabel.Nifti1Image(rng.normal(size=(32, 32, 3)).astype(np.float32), np.diag([-1.0, -1, 3, 1]))
            nibabel.save(image, scans / f"imagesTr/{case}_{channel:04}.nii.gz")
        label = (rng.random((32, 32, 3)) < 0.3).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, np.diag([-1.0, -1, 3, 1])), scans / f"labelsTr/{case}.nii.gz")
    (scans / "dataset.json").write_text(json.dumps({
        "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
        "labels": {"background": 0, "tumour": 1}, "numTraining": 3, "file_ending": ".nii.gz",
    }))  # fmt: skip
    store, run = tmp_path / "s.zarr", tmp_path / "run"
    ladder("precompute", "--scans", scans, "--store", store, *SMALL, "--augment", "none", "--dtype", "f32", "--test-cases", "c")
    train_briefly(store, run, [])
    expected = logits_of(run, store, tmp_path / "logits.safetensors")
    ladder("export", "--run", run, "--out", tmp_path / "m.onnx", "--with-encoder")
    check(tmp_path / "m.onnx", store, expected)


def test_only_our_exports_are_replaced(folder, tmp_path):
    train_briefly(folder / "f32.zarr", tmp_path / "run", [])
    out = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "theirs", [], []), producer_name="another"), out)
    theirs = out.read_bytes()
    with pytest.raises(subprocess.CalledProcessError):
        ladder("export", "--run", tmp_path / "run", "--out", out, "--force")
    assert out.read_bytes() == theirs

"""The package against what the program writes: `make test-python`."""

import pathlib
import shutil

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import sam_ladder
import torch
import zarr
from conftest import SMALL, ladder, logits_of, store_for, train_briefly

def test_number_formats_are_decoded(folder):
    exact = sam_ladder.open_store(folder / "f32.zarr")
    # Half a unit in the last place of 11 and 8 bits; half a step of 255.
    for dtype, tolerance in {"f16": 2.0**-11, "bf16": 2.0**-8, "q8": 0.5 / 255}.items():
        store = sam_ladder.open_store(folder / f"{dtype}.zarr")
        for name in ("embeddings", "images"):
            ours, theirs = getattr(store.train, name)[2:5], getattr(exact.train, name)[2:5]
            assert ours.dtype == np.float32 and ours.shape == theirs.shape
            axes = (-2, -1)
            scale = theirs.max(axes, keepdims=True) - theirs.min(axes, keepdims=True) if dtype == "q8" else np.abs(theirs)
            assert np.all(np.abs(ours - theirs) <= 1.001 * tolerance * scale + 1e-7), (dtype, name)
        assert np.array_equal(store.train.labels[:], exact.train.labels[:])


def test_rungs_are_read(folder):
    assert sam_ladder.open_store(folder / "f32.zarr").train.rungs is None and sam_ladder.open_store(folder / "f32.zarr").rung_blocks == []
    stores = {}
    for dtype in ("f32", "q8"):
        path = folder / f"rungs-{dtype}.zarr"
        ladder("precompute", "--scans", folder / "scans", "--store", path, *SMALL, "--augment", "none", "--dtype", dtype,
               "--rungs", "2,11", "--rung-channels", 8)  # fmt: skip
        stores[dtype] = sam_ladder.open_store(path)
    exact, codes = (stores[dtype].train.rungs for dtype in ("f32", "q8"))
    assert stores["q8"].rung_blocks == [2, 11] and exact.shape == codes.shape == (len(stores["q8"].train), 1, 2, 8, 4, 4)
    assert np.array_equal(exact[3, 0, 1], exact.zarr[3, 0, 1])
    spread = exact[:].max((-2, -1), keepdims=True) - exact[:].min((-2, -1), keepdims=True)
    assert np.all(np.abs(codes[:] - exact[:]) <= 1.01 * 0.5 / 255 * spread + 1e-6 * np.abs(exact[:]))
    # Principal components of the training tokens: around 0, with descending deviations.
    deviations = exact[:].std((0, 1, 4, 5))
    assert np.all(np.diff(deviations) < 0) and np.all(np.abs(exact[:].mean((0, 1, 4, 5))) < 1e-3 * deviations[:, :1])


def test_indices_choose_as_numpys_do(folder):
    store = sam_ladder.open_store(folder / "q8.zarr")
    for values in (store.train.embeddings, store.train.images, store.train.labels):
        whole = values[:]
        assert whole.shape == values.shape and np.asarray(values).shape == values.shape
        for index in (0, -1, slice(2, 9, 3), (3, 0), (-2, slice(None)), (3, 0, 5), (slice(1, 4), 0, slice(2, 5)), (..., 1), (2, ..., 3)):
            assert np.array_equal(values[index], whole[index]), index
        assert np.array_equal(values[[4, 1], [0, 3]], whole[[4, 1]][:, [0, 3]])
        assert np.array_equal(values[np.arange(len(values)) % 5 == 0, 0], whole[::5, 0])
        for index in (len(values), (0, 5), (0.5,), (0,) * 9, np.ones(3, bool)):
            with pytest.raises(IndexError):
                values[index]


def test_tables_cases_and_masks(folder):
    store = sam_ladder.open_store(folder / "f16.zarr")
    table = pyarrow.parquet.read_table(folder / "f16.zarr/train/slices.parquet").to_pydict()
    assert store.train.slices["case"].tolist() == table["case"]
    assert store.class_names[0] == "background" and len(store.class_names) == store.num_classes
    assert store.train.variant_names == store.variants["name"].tolist() and store.test.variant_names == ["identity"]
    for split in (store.train, store.test):
        assert list(split.masks) == split.cases
        for case in split.cases:
            rows = split.rows(case)
            assert [table["case"][row] for row in rows] == [case] * len(rows) if split is store.train else True
            assert split.masks[case].shape[0] == len(rows)
            counted = split.slices.set_index("row").loc[list(rows)]
            for label, organ in enumerate(store.class_names[1:], 1):
                assert (split.masks[case] == label).sum() == counted[f"voxels_{organ.replace(' ', '_')}"].sum()
    with pytest.raises(KeyError, match="no case 'nobody'"):
        store.train.rows("nobody")


def test_what_is_no_store_is_refused(folder, tmp_path):
    with pytest.raises(sam_ladder.StoreError, match="no store here"):
        sam_ladder.open_store(tmp_path / "nowhere.zarr")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    with pytest.raises(sam_ladder.StoreError, match="not a store"):
        sam_ladder.open_store(tmp_path / "other.zarr")
    for attribute, value, words in (("complete", False, "unfinished"), ("format_version", 3, "version 3")):
        shutil.copytree(folder / "f16.zarr", tmp_path / attribute)
        zarr.open_group(tmp_path / attribute, mode="r+").attrs[attribute] = value
        with pytest.raises(sam_ladder.StoreError, match=words):
            sam_ladder.open_store(tmp_path / attribute)


@pytest.mark.parametrize("dtype", ["f16", "f32", "bf16", "q8"])
def test_a_missing_chunk_is_not_taken_for_values(folder, tmp_path, dtype):
    shutil.copytree(folder / f"{dtype}.zarr", tmp_path / "store.zarr")
    for name, zeros in (("embeddings", ".0" * 4), ("labels", ".0" * 3)):
        (tmp_path / f"store.zarr/train/{name}/c.3{zeros}").unlink()
    train = sam_ladder.open_store(tmp_path / "store.zarr").train
    train.embeddings[2], train.labels[2]
    for values in (train.embeddings, train.labels):
        with pytest.raises(sam_ladder.StoreError, match="slice 3, variant 1"):
            values[2:5, 1]


def test_damage_is_an_error_with_its_place(folder, tmp_path):
    shutil.copytree(folder / "f16.zarr", tmp_path / "store.zarr")
    shard = tmp_path / "store.zarr/train/embeddings/c.3.0.0.0.0"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 4] ^= 1
    shard.write_bytes(damaged)
    train = sam_ladder.open_store(tmp_path / "store.zarr").train
    with pytest.raises(sam_ladder.StoreError, match="train/embeddings, slices 3: .*verify"):
        train.embeddings[3]


def test_a_dataset_draws_as_the_table_says(folder):
    store = sam_ladder.open_store(folder / "f16.zarr")
    every = sam_ladder.SliceDataset(store, variants="all")
    assert len(every) == len(store.train) * store.train.num_variants
    image, embedding, label = every[store.train.num_variants + 2]
    assert np.array_equal(image[0], store.train.images[1, 2]) and np.array_equal(embedding, store.train.embeddings[1, 2])
    assert label.dtype == torch.int64 and np.array_equal(label, store.train.labels[1, 2])
    case = store.train.cases[1]
    assert len(sam_ladder.SliceDataset(store, variants="identity", cases=[case])) == len(store.train.rows(case))
    drawing = sam_ladder.SliceDataset(store)
    torch.manual_seed(7)
    counts = np.zeros(store.train.num_variants)
    images = store.train.images[5]
    for _ in range(400):
        image = drawing[5][0][0]
        counts[[np.array_equal(image, one) for one in images].index(True)] += 1
    expected = 400 * store.variants["probability"].to_numpy()
    # Four standard deviations of a binomial count.
    assert np.all(np.abs(counts - expected) <= 4 * np.sqrt(expected * (1 - expected / 400)) + 1e-9)
    with pytest.raises(ValueError, match="at least one of"):
        sam_ladder.SliceDataset(store, cases=[])
    for words in ({"split": "val"}, {"variants": "rotated"}):
        with pytest.raises(ValueError, match="there are"):
            sam_ladder.SliceDataset(store, **words)


def test_neighbours_are_of_the_same_case(folder):
    store = sam_ladder.open_store(folder / "q8.zarr")
    dataset = sam_ladder.SliceDataset(store, variants="all", neighbours=1)
    for case in store.train.cases:
        rows = store.train.rows(case)
        for row in rows:
            expected = store.train.embeddings[[max(row - 1, rows[0]), row, min(row + 1, rows[-1])], 3]
            assert np.array_equal(dataset[row * store.train.num_variants + 3][1], expected)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_dataset_is_read_by_workers(folder, context):
    dataset = sam_ladder.SliceDataset(folder / "q8.zarr", variants="all")
    dataset[0]  # this process has used zarr's thread
    loader = torch.utils.data.DataLoader(dataset, batch_size=7, num_workers=2, multiprocessing_context=context)
    images = torch.cat([image for image, _, _ in loader])
    assert np.array_equal(images[:, 0], dataset.store.train.images[:].reshape(-1, 64, 64))


def test_a_run_is_read(folder):
    run = folder / "read"
    ladder("train", "--store", folder / "f16.zarr", "--run", run, "--epochs", 2, "--batch-size", 8, "--fold", "1/2")
    read = sam_ladder.read_run(run)
    assert read.cases is None and read.settings["batch_size"] == 8
    # Left out of the record, and filled in.
    assert read.settings["loss"] == "published" and "loss" not in read.config["config"]
    assert len(read.epochs) == 2 and len(read.steps) == read.epochs["steps"].iloc[-1]
    assert isinstance(read.steps, pandas.DataFrame) and np.allclose(read.steps["loss"], 0.2 * read.steps["ce"] + 0.8 * read.steps["dice"])
    ladder("eval", "--store", folder / "f16.zarr", "--run", run, "--out", run / "eval")
    read = sam_ladder.read_run(run)
    assert set(read.cases["case"]) == set(sam_ladder.open_store(folder / "f16.zarr").test.cases)
    assert "evaluated" in repr(read) and len(read.summary)
    with pytest.raises(sam_ladder.RunError, match="not a run folder"):
        sam_ladder.read_run(folder)
    with pytest.raises(sam_ladder.RunError, match="not an evaluation"):
        sam_ladder.read_run(run, evaluation=folder)


def test_a_model_computes_what_the_program_computes(folder, tmp_path, choice):
    store = store_for(folder, choice)
    train_briefly(store, tmp_path / "run", choice)
    expected = logits_of(tmp_path / "run", store, tmp_path / "logits.safetensors")
    model = sam_ladder.load_model(tmp_path / "run")
    neighbours, rungs = int("--neighbours" in choice), "--ladder" in choice
    dataset = sam_ladder.SliceDataset(store, "test", "identity", neighbours=neighbours, rungs=rungs)
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    with torch.inference_mode():
        found = torch.cat([model(*inputs) for *inputs, _ in loader]).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("words", [[], ["--neighbours", "1", "--gate", "pixel"], ["--arm", "cnn-only"]], ids=["plain", "neighbours", "cnn-only"])
def test_embeddings_of_another_encoder(other_encoder, tmp_path, words):
    path, channels = other_encoder
    store = sam_ladder.open_store(path)
    assert store.test.embeddings.shape == (len(store.test), 1, channels, 4, 4)
    # Channels of images and rungs come after those of the embeddings.
    assert 0.0 <= store.test.images[:].mean() <= 1.0 and store.test.rungs[0].shape == (1, 1, 4, 4, 4)
    train_briefly(path, tmp_path / "run", words)
    expected = logits_of(tmp_path / "run", path, tmp_path / "logits.safetensors")
    model = sam_ladder.load_model(tmp_path / "run")
    assert model.sam.embedding_projection.weight.shape == (256, channels, 1, 1)
    dataset = sam_ladder.SliceDataset(store, "test", "identity", neighbours=int("--neighbours" in words))
    with torch.inference_mode():
        items = (dataset[row] for row in range(len(dataset)))
        found = torch.cat([model(image[None], embedding[None]) for image, embedding, _ in items]).numpy()
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()


def test_labels_at_half_the_side_are_those_of_the_store(folder):
    with pytest.raises(ValueError, match="precompute --half-labels"):
        sam_ladder.SliceDataset(folder / "f32.zarr", half_labels=True)
    store = sam_ladder.open_store(folder / "half.zarr")
    *_, label = sam_ladder.SliceDataset(store, "test", "identity", half_labels=True)[1]
    assert label.shape == (32, 32) and label.any() and np.array_equal(label, store.test.half_labels[1, 0])
    assert sam_ladder.open_store(folder / "f32.zarr").test.half_labels is None and store.regions == {}


def test_rungs_and_ladder_go_together(folder, tmp_path):
    store = folder / "ladder.zarr"
    with pytest.raises(ValueError, match="precompute --rungs"):
        sam_ladder.SliceDataset(folder / "f32.zarr", rungs=True)
    image, embedding, rungs, _ = sam_ladder.SliceDataset(store, "test", "identity", rungs=True)[1]
    assert np.array_equal(rungs, sam_ladder.open_store(store).test.rungs[1, 0])
    model = sam_ladder.LadderSam(64, ladder={"blocks": [1, 4, 11], "channels": 8})
    for wrong in ((model, (image[None], embedding[None])), (sam_ladder.LadderSam(64), (image[None], embedding[None], rungs[None]))):
        with pytest.raises(ValueError, match="rungs"):
            wrong[0](*wrong[1])
    with pytest.raises(ValueError, match="arm full"):
        sam_ladder.LadderSam(64, arm="cnn-only", ladder={"blocks": [1], "channels": 8})
    train_briefly(store, tmp_path / "run", ["--ladder", "gated"])
    gates = [name for name in sam_ladder.read_run(tmp_path / "run").steps if name.startswith("gate_block_")]
    assert gates == ["gate_block_1", "gate_block_4", "gate_block_11"]


def test_models_that_are_not_ours_are_refused(folder, tmp_path):
    with pytest.raises(sam_ladder.RunError, match="no model here"):
        sam_ladder.load_model(tmp_path)
    with pytest.raises(sam_ladder.RunError, match="lacks the entry"):
        sam_ladder.load_model(folder / "f16.zarr/sam_decoder.safetensors")


def test_side_networks_are_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    images = torch.rand(2, 3, 64, 64)
    for kind in ("resnet18", "resnet34", "resnet50"):
        theirs = getattr(torchvision.models, kind)(weights=None).eval()
        ours = sam_ladder.LadderSam(64, side_network=kind).CNN_encoder.eval()
        missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
        assert set(missing) <= {"projection.weight", "projection.bias"} and all(name.startswith(("layer4.", "fc.")) for name in unexpected)
        with torch.inference_mode():
            x = theirs.layer3(theirs.layer2(theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images)))))))
            x = ours.projection(x) if hasattr(ours, "projection") else x
            assert torch.equal(ours(images), x)


def test_the_loss_is_that_of_a_run(folder, tmp_path):
    """The first step of a run without warm-up has the loss of its initial model, which a run of one step with lr → 0 keeps."""
    ladder("train", "--store", folder / "f32.zarr", "--run", tmp_path / "run", "--epochs", 1, "--max-steps", 1, "--warmup", 0, "--lr", "1e-12",
           "--weight-decay", 0, "--batch-size", 6, "--order", "sequential", "--augment", "none")  # fmt: skip
    step = sam_ladder.read_run(tmp_path / "run").steps.iloc[0]
    model = sam_ladder.load_model(tmp_path / "run").train()
    store = sam_ladder.open_store(folder / "f32.zarr")
    items = [sam_ladder.SliceDataset(store, variants="identity")[i] for i in range(6)]
    images, embeddings, labels = (torch.stack(parts) for parts in zip(*items))
    with torch.no_grad():
        loss = sam_ladder.ladder_loss(model(images, embeddings), labels)
    assert abs(loss.item() - step["loss"]) <= 1e-5


def test_every_export_is_typed_and_named():
    stub = (pathlib.Path(sam_ladder.__file__).with_name("__init__.pyi")).read_text()
    for name in sam_ladder.__all__:
        assert f"import {name} as {name}" in stub
        assert getattr(sam_ladder, name).__doc__
    with pytest.raises(AttributeError):
        sam_ladder.nothing

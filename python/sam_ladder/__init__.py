"""Stores and runs of the program `sam-ladder`, from Python.

    import sam_ladder

    store = sam_ladder.open_store("store.zarr")
    embedding = store.train.embeddings[3, 0]          # [256, grid, grid], float32
    run = sam_ladder.read_run("runs/first")
    run.steps.plot(x="step", y="loss")
    model = sam_ladder.load_model("runs/first")       # a torch.nn.Module

The program itself is installed beside this package, as the command `sam-ladder`. The package needs `pip install 'sam-ladder[python]'`, and for
models and datasets `pip install 'sam-ladder[torch]'`.
"""

import importlib

# Names of this package and where they are: imported when first used, since not everyone has every library.
_PLACES = {
    "open_store": "store",
    "Store": "store",
    "Split": "store",
    "StoreError": "errors",
    "read_run": "run",
    "Run": "run",
    "RunError": "errors",
    "SliceDataset": "dataset",
    "LadderSam": "model",
    "load_model": "model",
    "ladder_loss": "model",
}
_LIBRARIES = {"errors": "python", "store": "python", "run": "python", "dataset": "torch", "model": "torch"}

__all__ = list(_PLACES)


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f"module 'sam_ladder' has no attribute {name!r}")
    place = _PLACES[name]
    try:
        module = importlib.import_module(f"{__name__}.{place}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__name__):
            raise
        extra = _LIBRARIES[place]
        raise ImportError(f"sam_ladder.{name} needs {error.name}: pip install 'sam-ladder[{extra}]'") from error
    return getattr(module, name)


def __dir__():
    return sorted([*globals(), *_PLACES])

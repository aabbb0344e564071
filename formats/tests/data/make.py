"""Makes the small checkpoints that `formats/tests/checkpoints.rs` reads, as people save them with PyTorch.

    python formats/tests/data/make.py        (packages: bench/requirements.txt)

Each holds `a.weight` = [[0, 1, 2], [3, 4, 5]] and `a.bias` = [0.5, -1.5], under the names and next to the things that the file's name says.
`torch.load(weights_only=True)` reads all of them; this script checks it.
"""

import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def state(prefix="", **more):
    named = OrderedDict()
    named[prefix + "a.weight"] = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    named[prefix + "a.bias"] = torch.tensor([0.5, -1.5])
    named.update(more)
    return named


def save(name, value, **options):
    path = HERE / name
    torch.save(value, path, **options)
    torch.load(path, weights_only=True)


def optimizer():
    """The state of Adam after a step."""
    weight = torch.nn.Parameter(torch.ones(2, 3))
    adam = torch.optim.Adam([weight])
    weight.sum().backward()
    adam.step()
    return adam.state_dict()


def odd():
    """Tensors of types that are not read."""
    return {
        "freqs": torch.ones(2, dtype=torch.complex64),
        "scale": torch.ones(3).to(torch.float8_e4m3fn),
        "double": torch.ones(2, dtype=torch.complex128),
    }


def deflate(source, target):
    """The same archive, compressed; `torch.load` reads it, too."""
    with zipfile.ZipFile(HERE / source) as stored, zipfile.ZipFile(HERE / target, "w", zipfile.ZIP_DEFLATED) as deflated:
        for entry in stored.infolist():
            deflated.writestr(entry.filename.replace(Path(source).stem, Path(target).stem, 1), stored.read(entry))


def main():
    torch.manual_seed(0)
    random.seed(0)
    save("best_acc1.pth", {"epoch": 3, "arch": "vit", "state_dict": state(), "best_acc1": torch.tensor(77.5)})
    save("model_loss.pth", {"model": state(), "loss": torch.tensor(0.25), "scheduler": None})
    save("legacy_optimizer.pth", {"state_dict": state(), "optimizer": optimizer()}, _use_new_zipfile_serialization=False)
    rest = {"rng": torch.get_rng_state(), "freqs": torch.ones(2, dtype=torch.complex64), "half": torch.ones(3).half()}
    save("legacy_odd.pth", {"model": state(), "more": rest}, _use_new_zipfile_serialization=False)
    for key in ["model_state_dict", "net", "model_state", "ema"]:
        save(f"{key}.pth", {key: state(), "optimizer": optimizer(), "epoch": 1})
    save("model_and_ema.pth", {"ema": {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}, "model": state()})
    for prefix in ["module", "model", "_orig_mod", "backbone", "_orig_mod.module"]:
        save(f"prefix_{prefix}.pth", state(prefix + "."))
    save("backbone_and_head.pth", state("backbone.", **{"head.weight": torch.ones(1)}))
    save("expanded.pth", state(wide=torch.tensor([2.0]).expand(4, 3), rows=torch.tensor([[1.0, 2.0]]).expand(3, 2)))
    long = "x" * 70_000
    save(
        "passed_over.pth",
        {
            "log": long,
            "state_dict": state(count=torch.tensor([1, 40000], dtype=torch.uint16), **odd()),
            "rng": torch.get_rng_state(),
            "rngs": [torch.get_rng_state()],
            "python_rng": random.getstate(),
            "history": {"loss": [1.0, 0.5], "best": float("inf"), "done": True, "seen": 2**40, "sum": 2**80},
            "size": torch.Size([2, 3]),
            "type": torch.float16,
            "device": torch.device("cpu"),
        },
    )
    save("deflated_source.pth", {"state_dict": state()})
    deflate("deflated_source.pth", "deflated.pth")
    torch.load(HERE / "deflated.pth", weights_only=True)
    (HERE / "deflated_source.pth").unlink()
    # 46 bytes of an entry in the directory, 21 of the stem, 9 of `/data.pkl`.
    save("twenty_one_characters.pth", state())
    save("nan.pth", {"a.weight": torch.tensor([[0.0, 1, 2], [3, float("nan"), 5]]), "a.bias": torch.tensor([0.5, -1.5])})
    save("int8.pth", {"a.weight": torch.arange(6).reshape(2, 3).to(torch.int8), "a.bias": torch.tensor([0.5, -1.5])})
    save("zeros.pth", {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)})
    save("teacher.pth", {"student": state(), "teacher": state(), "epoch": 1})
    not_plain = {"sparse": torch.eye(2).to_sparse(), "meta": torch.ones(2, device="meta")}
    save("not_plain.pth", {"model": state(**not_plain)})
    save("parameters.pth", OrderedDict((name, torch.nn.Parameter(value)) for name, value in state().items()))


if __name__ == "__main__":
    main()

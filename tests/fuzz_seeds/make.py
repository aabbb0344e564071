"""Makes the small files that `tests/fuzz_parsers.rs` mutates and that only other programs write: HDF5 by h5py, checkpoints by PyTorch.

    python tests/fuzz_seeds/make.py        (packages: bench/requirements.txt)
"""

from pathlib import Path

import h5py
import numpy as np
import torch

HERE = Path(__file__).resolve().parent


def volume(name, libver, **storage):
    """A test volume of the published layout, `[2, 3, 4]`."""
    with h5py.File(HERE / name, "w", libver=libver) as file:
        image = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
        file.create_dataset("image", data=image, **storage)
        file.create_dataset("label", data=(np.arange(24) % 9).astype(np.float32).reshape(2, 3, 4), **storage)


def main():
    volume("contiguous.npy.h5", "earliest")
    volume("chunked.npy.h5", "earliest", chunks=(1, 3, 4), compression="gzip", shuffle=True)
    volume("newer.npy.h5", ("v108", "v110"), chunks=(1, 2, 4), compression="gzip")
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {"module.a.weight": base, "module.a.bias": base.t(), "half": torch.ones(5).half(), "count": torch.tensor(7)}
    torch.save(state, HERE / "zip.pth")
    torch.save({"state_dict": state}, HERE / "legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()

"""Times the published training loop in PyTorch on the CPU: time_published_loop.py SIZE BATCH [STEPS] → median seconds per image.

A step: one loader worker reads `.npz` slices and augments them with SciPy as the published code does (rot90 and flip, or a rotation); the
frozen encoder runs in float32 inside the loop; then forward, loss, backward and AdamW for the trained parts.
"""

import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch_encoder import ImageEncoder
from torch_ladder import LadderSam, ladder_loss


class Slices(torch.utils.data.Dataset):
    """Slices on disk, augmented as they are read."""

    def __init__(self, folder, size):
        self.paths, self.size = sorted(folder.glob("*.npz")), size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        data = np.load(self.paths[index])
        image, label = data["image"], data["label"]
        if random.random() > 0.5:
            k, axis = random.randint(0, 3), random.randint(0, 1)
            image, label = (np.flip(np.rot90(x, k), axis).copy() for x in (image, label))
        elif random.random() > 0.5:
            angle = random.randint(-20, 19)
            image, label = (ndimage.rotate(x, angle, order=0, reshape=False) for x in (image, label))
        side = image.shape[0]
        if side != self.size:
            image = ndimage.zoom(image, self.size / side, order=3)
            label = ndimage.zoom(label, self.size / side, order=0)
        low = ndimage.zoom(label, 1 / 4, order=0)
        return torch.from_numpy(image.astype(np.float32))[None], torch.from_numpy(low.astype(np.int64))


def write_slices(folder, count):
    """Writes slices at the published 224 pixels."""
    generator = np.random.default_rng(0)
    for index in range(count):
        image = ndimage.gaussian_filter(generator.random((224, 224), np.float32), 3)
        label = ndimage.zoom(generator.integers(0, 9, (14, 14)), 16, order=0).astype(np.float32)
        np.savez(folder / f"{index:04}.npz", image=image, label=label)


def main():
    size, batch = int(sys.argv[1]), int(sys.argv[2])
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(0)
    encoder = ImageEncoder("vit_b", size).eval()
    model = LadderSam(size).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    with tempfile.TemporaryDirectory() as temporary:
        write_slices(Path(temporary), batch * (steps + 1))
        loader = torch.utils.data.DataLoader(Slices(Path(temporary), size), batch, shuffle=True, num_workers=1)
        times, start = [], time.perf_counter()
        for images, labels in loader:
            with torch.no_grad():
                embeddings = encoder(images.expand(-1, 3, -1, -1))
            loss = ladder_loss(model(images, embeddings), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    print(f"{statistics.median(times[1:]) / batch:.5f} s/image")


if __name__ == "__main__":
    main()

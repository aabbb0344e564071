"""Times the evaluation of a store's test scans in PyTorch and MedPy: time_eval.py STORE RUN → seconds per slice.

The network, the arg-max of its bilinearly enlarged logits, order 0 to the scan's resolution by SciPy, then MedPy's Dice and HD95 of every organ
on the whole scan, as the published `test_single_volume` and `calculate_metric_percase` do. Embeddings, images and reference masks are
in memory before the clock starts. Also prints the scores, for comparison with ours.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import zarr
from medpy.metric import binary
from safetensors.torch import load_file
from scipy import ndimage
from torch_ladder import LadderSam

BATCH = 8


def percase(prediction, reference):
    if not prediction.any():
        return 0.0, 0.0
    if not reference.any():
        return 1.0, 0.0
    return binary.dc(prediction, reference), binary.hd95(prediction, reference)


store, run = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
root = zarr.open_group(str(store), mode="r")
config, test = root.attrs["config"], root["test"]
organs = config["class_names"]
model = LadderSam(config["image_size"], len(organs) + 1)
model.load_state_dict(load_file(run / "checkpoint.safetensors"), strict=True)
model.eval()
images, embeddings = (torch.from_numpy(test[name][:, 0].astype(np.float32)) for name in ("images", "embeddings"))
references = {name: array[:] for name, array in sorted(test["masks"].arrays())}
size = images.shape[-1]
network = metrics = 0.0
first = 0
for case, reference in references.items():
    start = time.perf_counter()
    prediction = np.zeros_like(reference)
    with torch.inference_mode():
        for at in range(0, len(reference), BATCH):
            rows = slice(first + at, first + min(at + BATCH, len(reference)))
            logits = model(images[rows][:, None], embeddings[rows])
            logits = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            classes = logits.argmax(1).numpy().astype(np.uint8)
            for index, plane in enumerate(classes, at):
                zoom = [wanted / size for wanted in reference.shape[1:]]
                prediction[index] = plane if plane.shape == reference.shape[1:] else ndimage.zoom(plane, zoom, order=0)
    middle = time.perf_counter()
    rows = [percase(prediction == label, reference == label) for label in range(1, len(organs) + 1)]
    network, metrics = network + middle - start, metrics + time.perf_counter() - middle
    first += len(reference)
    for organ, (dice, hd95) in zip(organs, rows):
        print(f"{case} {organ}: dice {dice:.6f}, hd95 {hd95:.4f}")
print(f"network and arg-max {network:.3f} s, Dice and HD95 {metrics:.3f} s")
print(f"{(network + metrics) / first:.6f} s/image")

"""Times SAM's image encoder in PyTorch on the CPU: time_encoder.py ARCH SIZE BATCH → prints the median seconds per image."""

import os
import statistics
import sys
import time

import torch
from torch_encoder import ImageEncoder

arch, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.manual_seed(0)
encoder = ImageEncoder(arch, size).eval()
images = torch.rand(batch, 3, size, size)
times = []
with torch.inference_mode():
    encoder(images)
    for _ in range(5):
        start = time.perf_counter()
        encoder(images)
        times.append(time.perf_counter() - start)
print(f"{statistics.median(times) / batch:.5f} s/image")

"""Times a stage-two training step in PyTorch on the CPU: time_step.py SIZE BATCH [STEPS] → prints the median seconds per image.

A step is forward, loss, backward and the AdamW update. Images and embeddings are already in memory.
"""

import os
import statistics
import sys
import time

import torch
from torch_ladder import Ladder, ladder_loss

size, batch = int(sys.argv[1]), int(sys.argv[2])
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 5
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.manual_seed(0)
model = Ladder(size).train()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
images, embeddings = torch.rand(batch, 1, size, size), torch.randn(batch, 256, size // 16, size // 16)
labels = torch.randint(0, 9, (batch, size // 4, size // 4))
times, parts = [], []
for _ in range(steps + 1):
    marks = [time.perf_counter()]
    loss = ladder_loss(model(images, embeddings), labels)
    marks.append(time.perf_counter())
    optimizer.zero_grad()
    loss.backward()
    marks.append(time.perf_counter())
    optimizer.step()
    marks.append(time.perf_counter())
    times.append(marks[-1] - marks[0])
    parts.append([b - a for a, b in zip(marks, marks[1:])])
forward, backward, update = (statistics.median(part[1:]) for part in zip(*parts))
print(f"forward {forward:.3f} s, backward {backward:.3f} s, optimizer {update:.3f} s")
print(f"{statistics.median(times[1:]):.3f} s/step, least {min(times[1:]):.3f}")
print(f"{statistics.median(times[1:]) / batch:.5f} s/image")

"""Times a stage-two training step in PyTorch on the CPU: time_step.py SIZE BATCH [STEPS [WAY]] → prints the median seconds per image.

A step is forward, loss, backward and the AdamW update. Images and embeddings are already in memory. WAY: pytorch (eager, the default), with any of
-bf16 (autocast), -channels_last, -compiled, in this order.
"""

import os
import statistics
import sys
import time

import torch
from torch_ladder import LadderSam, ladder_loss

WAYS = {f"pytorch{precision}{layout}{how}" for precision in ("", "-bf16") for layout in ("", "-channels_last") for how in ("", "-compiled")}


def main():
    size, batch = int(sys.argv[1]), int(sys.argv[2])
    steps = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    way = sys.argv[4] if len(sys.argv) > 4 else "pytorch"
    if way not in WAYS:
        sys.exit(__doc__)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    torch.manual_seed(0)
    model = LadderSam(size).train()
    images, embeddings = torch.rand(batch, 1, size, size), torch.randn(batch, 256, size // 16, size // 16)
    if "channels_last" in way:
        model = model.to(memory_format=torch.channels_last)
        images, embeddings = (tensor.to(memory_format=torch.channels_last) for tensor in (images, embeddings))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.1)
    labels = torch.randint(0, 9, (batch, size // 4, size // 4))

    def loss_of(images, embeddings, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in way):
            logits = model(images, embeddings)
        return ladder_loss(logits.float(), labels)

    if way.endswith("compiled"):
        loss_of = torch.compile(loss_of)
    times, parts = [], []
    for _ in range(steps + 1):
        marks = [time.perf_counter()]
        loss = loss_of(images, embeddings, labels)
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


if __name__ == "__main__":
    main()

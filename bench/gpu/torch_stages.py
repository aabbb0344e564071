"""PyTorch doing this project's work on a GPU, for comparison: torch_stages.py CASE [--size 512] [--batch 24] [--device cuda:0] [--steps N].

CASE is one of
  published   (a) the published loop: one loader worker with SciPy's zoom, the encoder in float32 inside the loop
  ideal       (b) the same model and precision, batches already on the device: what a loader that takes no time would give
  strongest   (c) two stages: embeddings in float16 resident on the device and gathered there, bfloat16 autocast, channels_last, fused AdamW
  encoder     stage one: the encoder in bfloat16 with scaled_dot_product_attention
  matrix      the card's bfloat16 matrix rate: products of 8192 × 8192 matrices; prints TFLOP/s

`--mode` says how `strongest` and `encoder` run: eager; captured (eager, the whole step recorded as one CUDA graph by hand); or a mode of
torch.compile, such as default, max-autotune-no-cudagraphs or max-autotune.

The last line is "<seconds> s/image"; on a GPU, peak memory is printed before it. With `--device cpu` the cases run uncompiled and small, to check
that they work.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from torch_encoder import Attention, ImageEncoder  # noqa: E402
from torch_ladder import LadderSam, ladder_loss  # noqa: E402


class FusedAttention(Attention):
    """The same attention, with the relative positions as a mask of scaled_dot_product_attention; parameters are the parent's."""

    def forward(self, x):
        n, side, _, width = x.shape
        dim = width // self.heads
        q, k, v = self.qkv(x).view(n, side * side, 3, self.heads, dim).permute(2, 0, 3, 1, 4)  # [n, heads, tokens, dim] each
        offset = (torch.arange(side, device=x.device)[:, None] - torch.arange(side, device=x.device)[None, :]) + side - 1
        grid = q.reshape(n, self.heads, side, side, dim)
        by_row = torch.einsum("nmhwd,hkd->nmhwk", grid, self.rel_pos_h[offset].to(q.dtype))
        by_column = torch.einsum("nmhwd,wkd->nmhwk", grid, self.rel_pos_w[offset].to(q.dtype))
        mask = (by_row[..., :, None] + by_column[..., None, :]).reshape(n, self.heads, side * side, side * side)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(n, side, side, width))


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device, step, steps):
    """Median seconds per step over three runs of `steps` steps; the host waits only at the end of each run."""
    for _ in range(3 if device.type == "cuda" else 1):
        step()
    runs = []
    for _ in range(3 if device.type == "cuda" else 1):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(device)
        runs.append((time.perf_counter() - start) / steps)
    return statistics.median(runs)


def compiled(function, arguments, device):
    """torch.compile in the mode asked for, if it is one of torch.compile's."""
    if device.type != "cuda" or arguments.mode in ("eager", "captured"):
        return function
    return torch.compile(function, mode=arguments.mode)


def captured(work, arguments, device):
    """The work as one CUDA graph, recorded after a few plain runs on a stream of its own, if that is asked for."""
    if device.type != "cuda" or arguments.mode != "captured":
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def published(arguments, device):
    """The encoder and SciPy in the loop."""
    from time_published_loop import Slices, write_slices

    encoder = ImageEncoder("vit_b", arguments.size).eval().to(device)
    model = LadderSam(arguments.size).train().to(device)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3, weight_decay=0.1)
    with tempfile.TemporaryDirectory() as temporary:
        write_slices(Path(temporary), arguments.batch * (arguments.steps + 2))
        loader = torch.utils.data.DataLoader(Slices(Path(temporary), arguments.size), arguments.batch, shuffle=True, num_workers=1)
        times, start = [], time.perf_counter()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                embeddings = encoder(images.expand(-1, 3, -1, -1))
            loss = ladder_loss(model(images, embeddings), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # the published loop logs each step
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
    return statistics.median(times[1:])


def ideal(arguments, device):
    """The published step without its loader."""
    encoder = ImageEncoder("vit_b", arguments.size).eval().to(device)
    model = LadderSam(arguments.size).train().to(device)
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-3, weight_decay=0.1)
    images = torch.rand(arguments.batch, 1, arguments.size, arguments.size, device=device)
    labels = torch.randint(0, 9, (arguments.batch, arguments.size // 4, arguments.size // 4), device=device)

    def step():
        with torch.no_grad():
            embeddings = encoder(images.expand(-1, 3, -1, -1))
        loss = ladder_loss(model(images, embeddings), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(device, step, arguments.steps)


def strongest(arguments, device):
    """Embeddings cached and resident, and everything that PyTorch offers to make the rest fast."""
    size, batch, items, gpu = arguments.size, arguments.batch, 4 * arguments.batch, device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model = LadderSam(size).train().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(trainable(model), lr=torch.tensor(1e-3, device=device), weight_decay=0.1, fused=gpu, capturable=gpu)
    images = torch.rand(items, 1, size, size, device=device).half()
    embeddings = torch.randn(items, 256, size // 16, size // 16, device=device).half()
    labels = torch.randint(0, 9, (items, size // 4, size // 4), device=device, dtype=torch.uint8)

    def forward_and_loss(image, embedding, label):
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(image.to(memory_format=torch.channels_last), embedding)
        return ladder_loss(logits.float(), label.long())

    forward_and_loss = compiled(forward_and_loss, arguments, device)
    generator = torch.Generator(device=device).manual_seed(0)
    picks = torch.zeros(batch, dtype=torch.long, device=device)

    def train():
        loss = forward_and_loss(images[picks].float(), embeddings[picks].float(), labels[picks])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    train = captured(train, arguments, device)

    def step():
        picks.copy_(torch.randint(0, items, (batch,), device=device, generator=generator))
        train()

    return timed(device, step, arguments.steps)


def encoder(arguments, device):
    """Stage one's encoder at its fastest."""
    model = ImageEncoder("vit_b", arguments.size).eval().to(device, torch.bfloat16)
    for block in model.blocks:
        block.attn.__class__ = FusedAttention
    images = torch.rand(arguments.batch, 3, arguments.size, arguments.size, device=device, dtype=torch.bfloat16)
    run = compiled(model, arguments, device)
    with torch.inference_mode():
        return timed(device, captured(lambda: run(images), arguments, device), arguments.steps)


def matrix(arguments, device):
    """Square products of bfloat16."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(device, lambda: a @ b, arguments.steps)
    print(f"{2 * side**3 / seconds / 1e12:.2f} TFLOP/s")
    return seconds


CASES = {"published": published, "ideal": ideal, "strongest": strongest, "encoder": encoder, "matrix": matrix}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", type=torch.device, default="cuda:0")
    parser.add_argument("--mode", default="max-autotune", help="eager, captured, or a mode of torch.compile")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    # float32 as in the published code: PyTorch's default shortens the factors of convolutions.
    if arguments.case in ("published", "ideal"):
        torch.backends.cudnn.allow_tf32 = False
    seconds = CASES[arguments.case](arguments, arguments.device)
    if arguments.device.type == "cuda":
        print(f"{torch.cuda.max_memory_reserved(arguments.device) / 2**30:.2f} GiB taken")
    print(f"{seconds:.6f} s/step")
    print(f"{seconds / arguments.batch:.7f} s/image")


if __name__ == "__main__":
    main()

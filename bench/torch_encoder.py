"""SAM's image encoder in plain PyTorch, written for these benchmarks and cross-checks: what `precompute` has to beat.

It pads windows and stores attention scores as the published code does, because that is the program our users run today.
"""

import torch
import torch.nn.functional as F
from torch import nn

ARCHITECTURES = {
    "vit_b": dict(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": dict(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": dict(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
}
WINDOW = 14


class ChannelNorm(nn.Module):
    """Layer norm over the channels of [b, c, h, w]."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        x = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class Attention(nn.Module):
    """Self-attention over a [n, side, side, width] grid with decomposed relative positions."""

    def __init__(self, width, heads, side):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x):
        n, side, _, width = x.shape
        dim = width // self.heads
        tokens = side * side
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, dim).permute(2, 0, 3, 1, 4).reshape(3, n * self.heads, tokens, dim)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q * dim**-0.5) @ k.transpose(1, 2)
        offset = torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1
        grid = q.view(-1, side, side, dim)
        by_row = torch.einsum("nhwd,hkd->nhwk", grid, self.rel_pos_h[offset])
        by_column = torch.einsum("nhwd,wkd->nhwk", grid, self.rel_pos_w[offset])
        scores = scores.view(-1, side, side, side, side) + by_row[..., :, None] + by_column[..., None, :]
        out = scores.view(-1, tokens, tokens).softmax(-1) @ v
        return self.proj(out.view(n, self.heads, side, side, dim).permute(0, 2, 3, 1, 4).reshape(n, side, side, width))


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width):
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; `window` 0 attends globally."""

    def __init__(self, width, heads, window, grid):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, window or grid)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def attend(self, x):
        if not self.window:
            return self.attn(x)
        b, grid, _, width = x.shape
        pad = -grid % self.window
        x = F.pad(x, (0, 0, 0, pad, 0, pad))
        per_side = (grid + pad) // self.window
        shape = (b, per_side, self.window, per_side, self.window, width)
        x = x.view(shape).permute(0, 1, 3, 2, 4, 5).reshape(-1, self.window, self.window, width)
        x = self.attn(x)
        x = x.view(b, per_side, per_side, self.window, self.window, width).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(b, grid + pad, grid + pad, width)[:, :grid, :grid]

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """16×16 patches to tokens, [b, 3, s, s] → [b, g, g, width]."""

    def __init__(self, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 16, 16)

    def forward(self, x):
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """[b, 3, s, s] → [b, 256, s/16, s/16], parameters under SAM's names without `image_encoder.`."""

    def __init__(self, arch, image_size):
        super().__init__()
        numbers = ARCHITECTURES[arch]
        width, grid = numbers["width"], image_size // 16
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, width))
        self.blocks = nn.ModuleList(
            Block(width, numbers["heads"], 0 if i in numbers["global_blocks"] else WINDOW, grid) for i in range(numbers["depth"])
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, 256, 1, bias=False), ChannelNorm(256), nn.Conv2d(256, 256, 3, padding=1, bias=False), ChannelNorm(256)
        )

    def forward(self, x):
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))

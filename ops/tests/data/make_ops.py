"""Writes ops_pytorch.safetensors: results and gradients of PyTorch's own operators in float64, rounded to float32, for `ops/tests/ops_pytorch.rs`
and for the loss's test in `train`.

    python ops/tests/data/make_ops.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(12)
tensors = {}


def record(name, inputs, function):
    """Keeps the inputs, the result, a gradient of the result and the inputs' gradients."""
    inputs = {key: value.float().double().requires_grad_() for key, value in inputs.items()}
    result = function(**inputs)
    grad = torch.randn_like(result).float().double()
    grads = torch.autograd.grad(result, list(inputs.values()), grad)
    tensors[f"{name}/result"], tensors[f"{name}/grad_result"] = result, grad
    for (key, value), gradient in zip(inputs.items(), grads):
        tensors[f"{name}/{key}"], tensors[f"{name}/grad_{key}"] = value, gradient


def channel_norm(x, weight, bias):
    """SAM's LayerNorm2d, by PyTorch's layer norm on the channels as the last axis."""
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-6).permute(0, 3, 1, 2)


def batch_norm(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)


record("linear", {"x": torch.randn(2, 5, 24), "weight": torch.randn(19, 24), "bias": torch.randn(19)}, F.linear)
record(
    "attention",
    {"q": torch.randn(2, 3, 7, 16), "k": torch.randn(2, 3, 21, 16), "v": torch.randn(2, 3, 21, 16)},
    lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3),
)
record(
    "layer_norm",
    {"x": torch.randn(3, 4, 37) * 2 + 1, "weight": torch.randn(37), "bias": torch.randn(37)},
    lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, 1e-5),
)
record("layer_norm_2d", {"x": torch.randn(2, 11, 5, 6) + 0.5, "weight": torch.randn(11), "bias": torch.randn(11)}, channel_norm)
record("gelu", {"x": torch.randn(4, 50) * 3}, F.gelu)
record("add_relu", {"a": torch.randn(2, 3, 5, 7), "b": torch.randn(2, 3, 5, 7)}, lambda a, b: F.relu(a + b))
norm = {"x": torch.randn(3, 5, 9, 12) * 2 + 1, "weight": torch.randn(5), "bias": torch.randn(5)}
record("norm_relu_pool", norm, lambda x, weight, bias: F.max_pool2d(F.relu(batch_norm(x, weight, bias)), 3, 2, 1))
record(
    "norm_add_relu",
    {**norm, "shortcut": torch.randn(3, 5, 9, 12)},
    lambda x, weight, bias, shortcut: F.relu(batch_norm(x, weight, bias) + shortcut),
)


def ladder_loss(logits):
    """The published loss at λ = 0.8, by PyTorch's cross-entropy and the definition of its Dice."""
    target = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2).double()
    p = logits.softmax(1)
    over = (0, 2, 3)
    dice = 1 - (2 * (p * target).sum(over) + 1e-5) / (p.square().sum(over) + target.sum(over) + 1e-5)
    return 0.2 * F.cross_entropy(logits, labels) + 0.8 * dice.mean()


# The last class never occurs.
labels = torch.randint(0, 4, (2, 6, 7))
record("loss", {"logits": torch.randn(2, 5, 6, 7) * 3}, ladder_loss)
tensors["loss/labels"] = labels

# Attention of an encoder block over 5 × 5 tokens in windows of 3, by the scores' definition: q·k/√d + q·R_h + q·R_w.
grid, side, heads, d = 5, 3, 2, 8
qkv = torch.randn(1, grid, grid, 3, heads, d).float().double()
bias, rel_pos_h, rel_pos_w = (torch.randn(*shape).float().double() for shape in ((3, heads, d), (2 * side - 1, d), (2 * side - 1, d)))
padded = bias.expand(1, 6, 6, 3, heads, d).clone()
padded[:, :grid, :grid] += qkv
windows = padded.view(1, 2, side, 2, side, 3, heads, d).permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, heads, side * side, d)
q, k, v = windows
offset = torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1
at = q.view(-1, heads, side, side, d)
by_row = torch.einsum("nhyxd,ykd->nhyxk", at, rel_pos_h[offset])
by_column = torch.einsum("nhyxd,xkd->nhyxk", at, rel_pos_w[offset])
mask = (by_row[..., :, None] + by_column[..., None, :]).reshape(-1, heads, side * side, side * side)
out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
out = out.view(1, 2, 2, heads, side, side, d).permute(0, 1, 4, 2, 5, 3, 6).reshape(1, 6, 6, heads * d)[:, :grid, :grid]
tensors |= {"rel_pos/qkv": qkv, "rel_pos/bias": bias, "rel_pos/rel_pos_h": rel_pos_h, "rel_pos/rel_pos_w": rel_pos_w, "rel_pos/result": out}

path = Path(__file__).with_name("ops_pytorch.safetensors")
keep = {key: value.detach() if key == "loss/labels" else value.detach().float() for key, value in tensors.items()}
save_file({key: value.contiguous() for key, value in keep.items()}, path)
print(path, path.stat().st_size, "bytes, PyTorch", torch.__version__)

"""Writes conv_pytorch.safetensors: results and gradients of PyTorch's own operators in float64, rounded to float32, for the test beside this folder.

    python ops/tests/data/make_conv.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(11)
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


for name, (b, ci, h, w, co, k, stride, padding) in {
    "conv_3x3": (1, 16, 9, 10, 16, 3, 1, 1),
    "conv_3x3_s2": (2, 4, 9, 8, 6, 3, 2, 1),
    "conv_7x7_s2": (1, 1, 15, 18, 8, 7, 2, 3),
    "conv_1x1_s2": (2, 8, 7, 6, 4, 1, 2, 0),
}.items():
    inputs = {"x": torch.randn(b, ci, h, w), "weight": torch.randn(co, ci, k, k)}
    record(name, inputs, lambda x, weight: F.conv2d(x, weight, stride=stride, padding=padding))

mean, var = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
record(
    "batch_norm",
    {"x": torch.randn(3, 5, 6, 7) * 2 + 1, "weight": torch.randn(5), "bias": torch.randn(5)},
    lambda x, weight, bias: F.relu(F.batch_norm(x, mean, var, weight, bias, training=True, momentum=1.0, eps=1e-5)),
)
tensors["batch_norm/mean"], tensors["batch_norm/var_unbiased"] = mean, var

# Rounded, so that most windows have more than one maximum.
record("max_pool", {"x": torch.randn(2, 3, 9, 12).mul(2).round()}, lambda x: F.max_pool2d(x, 3, 2, 1))
record(
    "conv_transpose",
    {"x": torch.randn(2, 6, 3, 4), "weight": torch.randn(6, 5, 2, 2), "bias": torch.randn(5)},
    lambda x, weight, bias: F.conv_transpose2d(x, weight, bias, stride=2),
)

path = Path(__file__).with_name("conv_pytorch.safetensors")
save_file({key: value.detach().float().contiguous() for key, value in tensors.items()}, path)
print(path, path.stat().st_size, "bytes, PyTorch", torch.__version__)

"""The rule that makes the golden data's inputs and weights (tests/golden/README.md), vectorised."""

import numpy as np

_MASK = (1 << 64) - 1


def values(name, count):
    """The first `count` values of the tensor called `name`, float32 in [-1, 1)."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & _MASK
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) / 2**23 - 1).astype(np.float32)


def image(name, size):
    """A [1, 1, size, size] image in [0, 1)."""
    return (values(name, size * size).reshape(1, 1, size, size) + 1) / 2


def weight(key, shape):
    """The weight tensor of a state-dict key, float32."""
    shape = tuple(shape)
    count = int(np.prod(shape)) if shape else 1
    u = values(key, count).reshape(shape)
    quarter = np.float32(0.25 if ".bn2." in key else 1)
    if key.endswith(("num_batches_tracked", "alpha")):
        return np.zeros(shape, np.int64 if key.endswith("tracked") else np.float32)
    if key.endswith("running_var"):
        return 1 + u / 4
    if key.endswith("running_mean"):
        return u / 8
    if "pos_embed" in key or "rel_pos" in key:
        return u / 4
    if key.endswith(("gaussian_matrix", "_token.weight", "_tokens.weight", "_embed.weight")) or "point_embeddings" in key:
        return u
    if len(shape) == 1:
        return (1 + u / 8) * quarter if key.endswith("weight") else u / 16 * quarter
    fan_in = shape[0] if "output_upscaling" in key else int(np.prod(shape[1:]))
    gain = 0.25 if "q_proj" in key or "k_proj" in key else 1.0
    return (gain * np.sqrt(3 / fan_in) * u.astype(np.float64)).astype(np.float32)

"""Writes dino.json beside this file: what timm makes of DINOv2 and DINOv3 with the rule's weights, for `tests/dino_encoders.rs`.

    PYTHONPATH=bench python tests/data/make_dino.py          needs torch, timm, numpy

Each case is a model of timm at its own width and depth, in float64, on one image of 4 × 4 or 3 × 3 patches (the positions are resized from 37 × 37 by
timm), and on two such images. Of each tensor the file has its norm and its products with four rule-made vectors, as `side_networks.json`. Layer
scales are ½ + u/4 by the rule's u, so that every block counts. The last cases are PyTorch's resizing of an image, bicubic with antialiasing.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import timm
import torch
from golden_rule import values, weight as golden_weight

PROJECTIONS = 4

# Our name, timm's, patches along the side of the image, blocks whose tokens are compared.
CASES = [
    ("dinov2_vits14", "vit_small_patch14_dinov2", 4, [0, 11]),
    ("dinov2_vitb14", "vit_base_patch14_dinov2", 3, []),
    ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2", 4, [5]),
    ("dinov2_vitl14_reg", "vit_large_patch14_reg4_dinov2", 3, []),
    ("dinov3_vits16", "vit_small_patch16_dinov3", 4, [0, 11]),
    ("dinov3_vits16_biased", "vit_small_patch16_dinov3_qkvb", 4, []),
    ("dinov3_vitb16", "vit_base_patch16_dinov3", 3, []),
    ("dinov3_vitl16", "vit_large_patch16_dinov3", 3, [23]),
]


def rule(name, count):
    """u(name, 1..count) of the rule, in float64."""
    return values(name, count).astype(np.float64)


def weight(name, shape):
    if name.endswith((".gamma", "gamma_1", "gamma_2")):
        return torch.from_numpy((0.5 + rule(name, math.prod(shape)) / 4).astype(np.float32)).reshape(shape)
    return torch.from_numpy(np.asarray(golden_weight(name, shape), np.float32))


def summary(name, tensor):
    flat = tensor.double().flatten().numpy()
    return [float(np.linalg.norm(flat)), *(float(flat @ rule(f"{name}.{i}", flat.size)) for i in range(PROJECTIONS))]


def model_of(timms, grid):
    """timm's model for images of `grid` patches, with the rule's weights at its own size, brought to these images as timm loads them."""
    own = timm.create_model(timms, num_classes=0)
    state = {name: weight(name, tuple(tensor.shape)) for name, tensor in own.state_dict().items()}
    model = timm.create_model(timms, num_classes=0, img_size=grid * own.patch_embed.patch_size[0])
    filtered = timm.models.vision_transformer.checkpoint_filter_fn if "dinov2" in timms else timm.models.eva.checkpoint_filter_fn
    model.load_state_dict(filtered(dict(state), model))
    return model.double().eval(), {name: list(tensor.shape) for name, tensor in state.items()}


def short(value):
    """Ten digits are beyond what float32 can be held to."""
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, list):
        return [short(item) for item in value]
    return {key: short(item) for key, item in value.items()} if isinstance(value, dict) else value


def main():
    cases = {}
    for name, timms, grid, blocks in CASES:
        model, shapes = model_of(timms, grid)
        side = grid * model.patch_embed.patch_size[0]
        images = torch.from_numpy((rule(f"{name}.images", 2 * 3 * side * side) + 1) / 2).float().double().reshape(2, 3, side, side)
        prefix, tokens = model.num_prefix_tokens, {}
        for block in blocks:
            model.blocks[block].register_forward_hook(lambda _m, _i, output, block=block: tokens.update({block: output[:, prefix:]}))
        with torch.inference_mode():
            features = model.forward_features(images)[:, prefix:]
            features = features.transpose(1, 2).reshape(2, -1, grid, grid)
        cases[name] = {
            "grid": grid,
            "embeddings": summary("embeddings", features),
            "tokens": {str(block): summary(f"tokens.{block}", found.reshape(-1, found.shape[2])) for block, found in tokens.items()},
            "names": {key: shape for key, shape in shapes.items() if not key.startswith("blocks.") or key.startswith("blocks.0.")},
        }
        print(name, cases[name]["embeddings"][0])
    resized = {}
    for size in (48, 64):
        image = torch.from_numpy(rule(f"resized.{size}", 2 * size * size)).float().reshape(1, 2, size, size)
        own = size // 16 * 14
        found = torch.nn.functional.interpolate(image.double(), (own, own), mode="bicubic", antialias=True, align_corners=False)
        resized[str(size)] = summary("resized", found)
    # One tensor a line.
    lines = json.dumps(short({"cases": cases, "resized": resized}), indent=1)
    lines = re.sub(r"\[\s+([^\]]*?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found.group(1)) + "]", lines)
    Path(__file__).with_name("dino.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()

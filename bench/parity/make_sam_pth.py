"""Makes a whole SAM ViT-B state dict at its native 1024 px by the golden rule and saves it with PyTorch's own torch.save.

    make_sam_pth.py OUT.pth [--legacy]

`--legacy` writes the layout from before PyTorch 1.6.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import golden_rule
from torch_encoder import ImageEncoder

MASK_TOKENS = 4


def layer(name, *shape):
    """Weight and bias of a layer whose first axis is its output."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def attention(name, inner):
    """The four projections of one of the decoder's attentions."""
    shapes = {}
    for projection in "qkv":
        shapes |= layer(f"{name}.{projection}_proj", inner, 256)
    return shapes | layer(f"{name}.out_proj", 256, inner)


def prompt_encoder():
    """Names without `prompt_encoder.` to shapes."""
    shapes = {"pe_layer.positional_encoding_gaussian_matrix": (2, 128)}
    shapes |= {f"point_embeddings.{i}.weight": (1, 256) for i in range(4)}
    shapes |= {"not_a_point_embed.weight": (1, 256), "no_mask_embed.weight": (1, 256)}
    for i, shape in [(0, (4, 1, 2, 2)), (1, (4,)), (3, (16, 4, 2, 2)), (4, (16,)), (6, (256, 16, 1, 1))]:
        shapes |= layer(f"mask_downscaling.{i}", *shape)
    return shapes


def mask_decoder():
    """Names without `mask_decoder.` to shapes."""
    shapes = {}
    for i in range(2):
        block = f"transformer.layers.{i}"
        shapes |= attention(f"{block}.self_attn", 256)
        shapes |= attention(f"{block}.cross_attn_token_to_image", 128) | attention(f"{block}.cross_attn_image_to_token", 128)
        for norm in range(1, 5):
            shapes |= layer(f"{block}.norm{norm}", 256)
        shapes |= layer(f"{block}.mlp.lin1", 2048, 256) | layer(f"{block}.mlp.lin2", 256, 2048)
    shapes |= attention("transformer.final_attn_token_to_image", 128) | layer("transformer.norm_final_attn", 256)
    shapes |= {"iou_token.weight": (1, 256), "mask_tokens.weight": (MASK_TOKENS, 256)}
    # transposed convolutions have their output on the second axis
    shapes |= {"output_upscaling.0.weight": (256, 64, 2, 2), "output_upscaling.0.bias": (64,)} | layer("output_upscaling.1", 64)
    shapes |= {"output_upscaling.3.weight": (64, 32, 2, 2), "output_upscaling.3.bias": (32,)}
    heads = [(f"output_hypernetworks_mlps.{i}", 32) for i in range(MASK_TOKENS)] + [("iou_prediction_head", MASK_TOKENS)]
    for head, outputs in heads:
        for i, width in enumerate([256, 256, outputs]):
            shapes |= layer(f"{head}.layers.{i}", width, 256)
    return shapes


def main():
    with torch.device("meta"):
        encoder = ImageEncoder("vit_b", 1024)
    shapes = {f"image_encoder.{name}": tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    shapes |= {f"prompt_encoder.{name}": shape for name, shape in prompt_encoder().items()}
    shapes |= {f"mask_decoder.{name}": shape for name, shape in mask_decoder().items()}
    state = {name: torch.from_numpy(golden_rule.weight(name, shape)) for name, shape in shapes.items()}
    torch.save(state, sys.argv[1], _use_new_zipfile_serialization="--legacy" not in sys.argv[2:])


if __name__ == "__main__":
    main()

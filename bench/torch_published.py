"""The whole published model in plain PyTorch, under the published state dict's names, for cross-checks: image encoder, ladder and decoder.

    published = Published("vit_b", size=512, classes=9)
    published.load_state_dict(torch.load("epoch_194.pth", weights_only=True), strict=True)   # after `module.` is removed from the names
"""

import torch
from torch import nn
from torchvision.models import resnet18

from torch_encoder import ImageEncoder
from torch_ladder import Ladder, LayerNorm2d, MaskDecoder


class PositionEncoding(nn.Module):
    """The random frequencies of the positional encoding."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, 128))


class PromptEncoder(nn.Module):
    """What checkpoints hold of the prompt encoder; without prompts, only its positional encoding and `no_mask_embed` are used."""

    def __init__(self):
        super().__init__()
        self.pe_layer = PositionEncoding()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, 256) for _ in range(4))
        self.not_a_point_embed, self.no_mask_embed = nn.Embedding(1, 256), nn.Embedding(1, 256)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2), LayerNorm2d(4), nn.GELU(), nn.Conv2d(4, 16, 2, 2), LayerNorm2d(16), nn.GELU(), nn.Conv2d(16, 256, 1)
        )


class Sam(nn.Module):
    """SAM as in the published code: with the gate's parameter."""

    def __init__(self, arch, size, classes):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
        self.image_encoder = ImageEncoder(arch, size)
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder(classes)


class Published(nn.Module):
    """[b, 3, s, s] → logits [b, classes, s/4, s/4]."""

    cnn_embeddings = Ladder.cnn_embeddings

    def __init__(self, arch, size, classes):
        super().__init__()
        self.sam, self.CNN_encoder = Sam(arch, size, classes), resnet18(weights=None)
        self.sam_encoder = self.sam.image_encoder
        self.grid = size // 16

    @property
    def gaussian_matrix(self):
        return self.sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix

    image_pe = Ladder.image_pe

    def forward(self, images):
        gate = self.sam.alpha.sigmoid()
        x = gate * self.sam_encoder(images) + (1 - gate) * self.cnn_embeddings(images)
        return self.sam.mask_decoder(x, self.image_pe(), self.sam.prompt_encoder.no_mask_embed.weight)


def without_module(state):
    """A state dict without the prefix that `DataParallel` puts before every name."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}

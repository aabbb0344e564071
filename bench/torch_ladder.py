"""The stage-two model in plain PyTorch, for benchmarks and cross-checks: the same arithmetic, names and shapes as `train/src/model`."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the tokens'."""

    def __init__(self, inner, heads=8, dim=256):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q, k, v):
        def split(x):  # (B, N, C) -> (B, heads, N, C / heads)
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Tokens among themselves, tokens to image, perceptron, image to tokens."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.self_attn = Attention(256)
        self.cross_attn_token_to_image = Attention(128)
        self.cross_attn_image_to_token = Attention(128)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(256) for _ in range(4))
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(256, 2048), "lin2": nn.Linear(2048, 256)})

    def forward(self, queries, keys, query_pe, key_pe):
        if self.first:
            queries = self.norm1(self.self_attn(queries, queries, queries))
        else:
            q = queries + query_pe
            queries = self.norm1(queries + self.self_attn(q, q, queries))
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys))
        queries = self.norm3(queries + self.mlp["lin2"](self.mlp["lin1"](queries).relu()))
        keys = self.norm4(keys + self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries))
        return queries, keys


class Transformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(True), Block(False)])
        self.final_attn_token_to_image = Attention(128)
        self.norm_final_attn = nn.LayerNorm(256)

    def forward(self, image, image_pe, tokens):
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe)
        queries = queries + self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries), keys


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        var = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / (var + 1e-6).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class Mlp(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, out):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, out)])

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """One mask a class, without prompts."""

    def __init__(self, classes):
        super().__init__()
        self.transformer = Transformer()
        self.iou_token, self.mask_tokens = nn.Embedding(1, 256), nn.Embedding(classes, 256)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(256, 64, 2, 2), LayerNorm2d(64), nn.GELU(), nn.ConvTranspose2d(64, 32, 2, 2), nn.GELU()
        )
        self.output_hypernetworks_mlps = nn.ModuleList([Mlp(32) for _ in range(classes)])
        self.iou_prediction_head = Mlp(classes)

    def forward(self, x, image_pe, no_mask_embed):
        b, c, h, w = x.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(b, -1, -1)
        image = (x + no_mask_embed.reshape(1, c, 1, 1)).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, image_pe.flatten(2).transpose(1, 2).expand(b, -1, -1), tokens)
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(b, c, h, w))
        hyper = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        return (hyper @ upscaled.flatten(2)).reshape(b, -1, 4 * h, 4 * w)


class Ladder(nn.Module):
    """ResNet-18 to layer3, the gate, the mask decoder; `trainable` says what is trained."""

    def __init__(self, size, classes=9):
        super().__init__()
        cnn = resnet18(weights=None)
        del cnn.layer4, cnn.fc, cnn.avgpool
        self.CNN_encoder, self.mask_decoder = cnn, MaskDecoder(classes)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.register_buffer("gaussian_matrix", torch.randn(2, 128))
        self.register_buffer("no_mask_embed", torch.randn(1, 256))
        self.grid = size // 16
        for name, parameter in self.mask_decoder.named_parameters():
            parameter.requires_grad = "output_upscaling" in name

    def image_pe(self):
        centre = (torch.arange(self.grid, dtype=self.gaussian_matrix.dtype) + 0.5) / self.grid * 2 - 1
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        angles = 2 * math.pi * torch.stack([x, y], -1) @ self.gaussian_matrix
        return torch.cat([angles.sin(), angles.cos()], -1).permute(2, 0, 1)[None]

    def cnn_embeddings(self, images):
        net = self.CNN_encoder
        x = net.maxpool(net.relu(net.bn1(net.conv1(images.expand(-1, 3, -1, -1)))))
        return net.layer3(net.layer2(net.layer1(x)))

    def forward(self, images, embeddings):
        gate = self.alpha.sigmoid()
        x = gate * embeddings + (1 - gate) * self.cnn_embeddings(images)
        return self.mask_decoder(x, self.image_pe(), self.no_mask_embed)


def load_published(model, state):
    """Takes a state dict of torch tensors in the published code's names, as `export` and a run's checkpoint have them."""
    names = {name: name if name.startswith("CNN_encoder.") else f"sam.{name}" for name in model.state_dict()}
    names |= {
        "gaussian_matrix": "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "no_mask_embed": "sam.prompt_encoder.no_mask_embed.weight",
    }
    model.load_state_dict({name: state[key] for name, key in names.items()}, strict=True)


def ladder_loss(logits, labels, dice_weight=0.8):
    """Cross-entropy and Dice per class over the batch, with squared denominators; logits (B, C, H, W), labels (B, H, W)."""
    classes = logits.shape[1]
    target = F.one_hot(labels, classes).permute(0, 3, 1, 2).float()
    p = logits.softmax(1)
    over = (0, 2, 3)
    dice = 1 - (2 * (p * target).sum(over) + 1e-5) / (p.square().sum(over) + target.sum(over) + 1e-5)
    return (1 - dice_weight) * F.cross_entropy(logits, labels) + dice_weight * dice.mean()

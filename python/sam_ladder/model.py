"""The stage-two model in plain PyTorch: the same arithmetic, and the tensors' published names, as `train/src/model` of the program.

Side networks have the names of torchvision (ResNets) and timm (vit-tiny), behind `CNN_encoder.`; the rest those of SAM, behind `sam.`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import RunError

PATCH = 16
WIDTH = 256
SIDE_NETWORKS = ("resnet18", "resnet34", "resnet50", "vit-tiny")
GATES = ("scalar", "channel", "pixel")
DECODERS = ("plain", "skips", "skips-half")
ARMS = ("full", "cnn-only", "sam-only")


def load_model(path: str | Path) -> LadderSam:
    """The model of a run, for inference: `model(images, embeddings)`, or with a ladder `model(images, embeddings, rungs)`.

    `path` is a run folder (then the best model on its validation cases if it had any, otherwise the last) or one of its `.safetensors` files.
    Every tensor must be there and none may be left over. Raises RunError if the file was not written by `sam-ladder train`.
    """
    from safetensors import safe_open

    path = Path(path)
    if path.is_dir():
        best = path / "best.safetensors"
        path = best if best.exists() else path / "checkpoint.safetensors"
    if not path.is_file():
        raise RunError(f"{path}: there is no model here")
    with safe_open(path, "pt") as file:
        info = (file.metadata() or {}).get("sam_ladder")
        state = {name: file.get_tensor(name) for name in file.keys()}
    if info is None:
        raise RunError(f"{path}: not a model that `sam-ladder train` wrote: its metadata lacks the entry sam_ladder")
    info = json.loads(info)
    names = ("arm", "side_network", "gate", "decoder", "neighbours", "embed_channels", "ladder")
    choices = {name: info[name] for name in names if name in info}
    model = LadderSam(info["image_size"], info["num_classes"], **choices)
    model.load_state_dict(state, strict=True)
    return model.eval()


def ladder_loss(logits: Tensor, labels: Tensor, dice_weight: float = 0.8) -> Tensor:
    """(1 - λ)·cross-entropy + λ·Dice of logits [b, c, h, w] and labels [b, h, w]; Dice per class over the batch, with squared denominators."""
    classes = logits.shape[1]
    target = F.one_hot(labels, classes).permute(0, 3, 1, 2).to(logits.dtype)
    p = logits.softmax(1)
    over = (0, 2, 3)
    dice = 1 - (2 * (p * target).sum(over) + 1e-5) / (p.square().sum(over) + target.sum(over) + 1e-5)
    return (1 - dice_weight) * F.cross_entropy(logits, labels) + dice_weight * dice.mean()


class LadderSam(nn.Module):
    """A side network, the gate, and SAM's mask decoder without prompts.

    `model(images, embeddings)`: images [b, 1 to 3, s, s] in [0, 1] and SAM's embeddings [b, 256, s/16, s/16] to logits [b, classes, s/4, s/4],
    with decoder="skips-half" [b, classes, s/2, s/2].
    With `neighbours=1` the embeddings are those of the slices before, at and after, [b, 3, 256, s/16, s/16] (`SliceDataset(neighbours=1)`).
    Embeddings of another encoder than SAM's have `embed_channels` channels, and are brought to 256 by a trained projection.
    With `ladder={"blocks": [2, 5, 8, 11], "channels": 64}` it also takes a store's rungs, [b, rung, channels, s/16, s/16]
    (`SliceDataset(rungs=True)`). `requires_grad` is set as in the published training: side network, gate and `output_upscaling`, and the skips and
    third stage of other decoders than "plain".
    """

    def __init__(
        self,
        image_size: int,
        num_classes: int = 9,
        arm: str = "full",
        side_network: str = "resnet18",
        gate: str = "scalar",
        decoder: str = "plain",
        neighbours: int = 0,
        embed_channels: int = WIDTH,
        ladder: dict | None = None,
    ):
        super().__init__()
        choices = (("arm", arm, ARMS), ("side_network", side_network, SIDE_NETWORKS), ("gate", gate, GATES), ("decoder", decoder, DECODERS))
        for what, value, known in choices:
            if value not in known:
                raise ValueError(f"{what}: {value!r}; this version of the package knows {', '.join(known)}")
        if decoder != "plain" and (side_network == "vit-tiny" or arm == "sam-only"):
            raise ValueError("decoder: skips need a ResNet as side network, in an arm that uses it")
        if neighbours not in (0, 1) or (neighbours and arm == "cnn-only"):
            raise ValueError(f"neighbours: {neighbours}; there may be 0 or 1 on each side, in an arm that uses SAM's embeddings")
        if ladder is not None and arm != "full":
            raise ValueError("ladder: it mixes SAM's rungs into the side network, in the arm full")
        self.arm, self.grid = arm, image_size // PATCH
        self.CNN_encoder = VitTiny(self.grid) if side_network == "vit-tiny" else ResNet(side_network)
        if ladder is not None:
            self.CNN_encoder.ladder = Ladder(ladder["blocks"], ladder["channels"], *self.CNN_encoder.ladder_stage)
        self.sam = Sam(num_classes, gate, None if decoder == "plain" else self.CNN_encoder.stage_channels, decoder == "skips-half")
        if neighbours:
            self.sam.neighbours = DepthMix(embed_channels)
        if embed_channels != WIDTH:
            self.sam.embedding_projection = nn.Conv2d(embed_channels, WIDTH, 1)
        for name, parameter in self.sam.named_parameters():
            trained = ("output_upscaling", "conv_s0", "conv_s1", "conv_stem", "neighbours", "embedding_projection")
            parameter.requires_grad = name.startswith("alpha") or any(part in name for part in trained)

    def image_pe(self) -> Tensor:
        """SAM's positional encoding of the grid's cells, [1, 256, grid, grid]."""
        frequencies = self.sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        centre = (torch.arange(self.grid, dtype=frequencies.dtype, device=frequencies.device) + 0.5) / self.grid * 2 - 1
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        angles = 2 * math.pi * torch.stack([x, y], -1) @ frequencies
        return torch.cat([angles.sin(), angles.cos()], -1).permute(2, 0, 1)[None]

    def cnn_embeddings(self, images: Tensor, rungs: Tensor | None = None) -> Tensor:
        """The side network's output, [b, 256, grid, grid]. One channel is repeated to three; of two, the third is zero."""
        return self.CNN_encoder(_three_channels(images), rungs)

    def cnn_stages(self, images: Tensor, rungs: Tensor | None = None) -> tuple[Tensor, ...]:
        """The side network's output as `cnn_embeddings`, and of a ResNet layer1 [b, c1, s/4, s/4], layer2 [b, c2, s/8, s/8] and the stem [b, 64, s/2, s/2]."""
        return self.CNN_encoder.stages(_three_channels(images), rungs)

    def mix(self, embeddings: Tensor, cnn: Tensor) -> Tensor:
        """Equation (3) of the paper: g·x_sam + (1 - g)·x_cnn."""
        alpha = self.sam.alpha
        gate = alpha(torch.cat([embeddings, cnn], 1)).sigmoid() if isinstance(alpha, nn.Module) else alpha.sigmoid()
        return gate * embeddings + (1 - gate) * cnn

    def forward(self, images: Tensor, embeddings: Tensor, rungs: Tensor | None = None) -> Tensor:
        stages = None
        if (rungs is not None) != hasattr(self.CNN_encoder, "ladder"):
            raise ValueError("rungs: a model with a ladder needs them, and no other takes them")
        if hasattr(self.sam, "neighbours"):
            embeddings = self.sam.neighbours(embeddings)
        if hasattr(self.sam, "embedding_projection") and self.arm != "cnn-only":
            embeddings = self.sam.embedding_projection(embeddings)
        if self.arm == "sam-only":
            x = embeddings
        else:
            if hasattr(self.sam.mask_decoder, "conv_s0"):
                x, *stages = self.cnn_stages(images, rungs)
            else:
                x = self.cnn_embeddings(images, rungs)
            if self.arm == "full":
                x = self.mix(embeddings, x)
        return self.sam.mask_decoder(x, self.image_pe(), self.sam.prompt_encoder.no_mask_embed.weight, stages)


def _three_channels(images: Tensor) -> Tensor:
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    return torch.cat([images, torch.zeros_like(images[:, :1])], 1) if channels == 2 else images


class Sam(nn.Module):
    """SAM without its image encoder, and the gate's parameter, which the published code has here. With `stages`, channels of skips."""

    def __init__(self, num_classes: int, gate: str = "scalar", stages: tuple[int, int] | None = None, half: bool = False):
        super().__init__()
        if gate == "pixel":
            self.alpha = nn.Conv2d(2 * WIDTH, 1, 1)
            nn.init.zeros_(self.alpha.weight)
            nn.init.zeros_(self.alpha.bias)
        else:
            self.alpha = nn.Parameter(torch.zeros(1) if gate == "scalar" else torch.zeros(WIDTH, 1, 1))
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder(num_classes, stages, half)


class DepthMix(nn.Module):
    """A channel's sum over the slices before, at and after, [b, 3, c, g, g] to [b, c, g, g]; it starts as the slice itself."""

    def __init__(self, channels: int = WIDTH):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]).repeat(channels, 1))

    def forward(self, embeddings: Tensor) -> Tensor:
        return (embeddings * self.weight.T[None, :, :, None, None]).sum(1)


class Rung(nn.Module):
    """The gate of one rung, σ(alpha), and its 1×1 convolution where its width is not the side network's."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
        if channels != width:
            self.projection = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, rung: Tensor) -> Tensor:
        rung = self.projection(rung) if hasattr(self, "projection") else rung
        if x.dim() == 3:  # tokens
            rung = rung.flatten(2).transpose(1, 2)
        gate = self.alpha.sigmoid()
        return gate * rung + (1 - gate) * x


class Ladder(nn.ModuleDict):
    """Rungs by the block of the encoder after which they were taken, spread in order over the `depth` blocks of a side network's stage."""

    def __init__(self, blocks: list[int], channels: int, width: int, depth: int):
        super().__init__({str(block): Rung(channels, width) for block in sorted(blocks)})
        self.places = [at * depth // len(blocks) for at in range(len(blocks))]

    def mix(self, block: int, x: Tensor, rungs: Tensor) -> Tensor:
        """The output of a block of the stage, [b, width, g, g] or [b, g·g, width], with its rungs."""
        for at, (place, rung) in enumerate(zip(self.places, self.values())):
            if place == block:
                x = rung(x, rungs[:, at])
        return x


class PositionEncoding(nn.Module):
    """The random frequencies of the positional encoding."""

    def __init__(self):
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, WIDTH // 2))


class PromptEncoder(nn.Module):
    """What checkpoints hold of the prompt encoder. Without prompts, only the positional encoding and `no_mask_embed` are used."""

    def __init__(self):
        super().__init__()
        self.pe_layer = PositionEncoding()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, WIDTH) for _ in range(4))
        self.not_a_point_embed, self.no_mask_embed = nn.Embedding(1, WIDTH), nn.Embedding(1, WIDTH)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2), LayerNorm2d(4), nn.GELU(), nn.Conv2d(4, 16, 2, 2), LayerNorm2d(16), nn.GELU(), nn.Conv2d(16, WIDTH, 1)
        )


class MaskDecoder(nn.Module):
    """One mask per class. With `stages`, the channels of a side network's layer1 and layer2, these join `output_upscaling`, as in SAM 2; with `half`,
    its first convolution joins a third stage, and the masks have half the image's side."""

    def __init__(self, num_classes: int, stages: tuple[int, int] | None = None, half: bool = False):
        super().__init__()
        self.transformer = Transformer()
        self.iou_token, self.mask_tokens = nn.Embedding(1, WIDTH), nn.Embedding(num_classes, WIDTH)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, 64, 2, 2), LayerNorm2d(64), nn.GELU(), nn.ConvTranspose2d(64, 32, 2, 2), nn.GELU()
        )
        self.output_hypernetworks_mlps = nn.ModuleList([Mlp(32) for _ in range(num_classes)])
        # In checkpoints, and not used.
        self.iou_prediction_head = Mlp(num_classes)
        if stages is not None:
            self.conv_s0, self.conv_s1 = nn.Conv2d(stages[0], 32, 1, bias=False), nn.Conv2d(stages[1], 64, 1, bias=False)
            nn.init.zeros_(self.conv_s0.weight)
            nn.init.zeros_(self.conv_s1.weight)
        if half:
            self.conv_stem, self.output_upscaling_half = nn.Conv2d(64, 32, 1, bias=False), nn.ConvTranspose2d(32, 32, 2, 2)
            for parameter in (self.conv_stem.weight, *self.output_upscaling_half.parameters()):
                nn.init.zeros_(parameter)

    def upscale(self, image: Tensor, stages: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """[b, 256, g, g] to [b, 32, 4g, 4g] or, with a third stage, [b, 32, 8g, 8g]; layer1, layer2 and the stem are added before norm and GELU."""
        if stages is None:
            return self.output_upscaling(image)
        dc1, ln1, act1, dc2, act2 = self.output_upscaling
        layer1, layer2, stem = stages
        x = act2(dc2(act1(ln1(dc1(image) + self.conv_s1(layer2)))) + self.conv_s0(layer1))
        if not hasattr(self, "conv_stem"):
            return x
        return F.interpolate(x, scale_factor=2.0, mode="nearest") + F.gelu(self.output_upscaling_half(x) + self.conv_stem(stem))

    def forward(self, x: Tensor, image_pe: Tensor, no_mask_embed: Tensor, stages: tuple[Tensor, ...] | None = None) -> Tensor:
        b, c, h, w = x.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(b, -1, -1)
        image = (x + no_mask_embed.reshape(1, c, 1, 1)).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, image_pe.flatten(2).transpose(1, 2).expand(b, -1, -1), tokens)
        upscaled = self.upscale(image.transpose(1, 2).reshape(b, c, h, w), stages)
        hyper = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        return (hyper @ upscaled.flatten(2)).reshape(b, -1, *upscaled.shape[2:])


class Transformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([TwoWayBlock(True), TwoWayBlock(False)])
        self.final_attn_token_to_image = Attention(128)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe)
        queries = queries + self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries), keys


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, perceptron, image to tokens."""

    def __init__(self, first: bool):
        super().__init__()
        self.first = first
        self.self_attn = Attention(WIDTH)
        self.cross_attn_token_to_image = Attention(128)
        self.cross_attn_image_to_token = Attention(128)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(WIDTH) for _ in range(4))
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(WIDTH, 2048), "lin2": nn.Linear(2048, WIDTH)})

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            queries = self.norm1(self.self_attn(queries, queries, queries))
        else:
            q = queries + query_pe
            queries = self.norm1(queries + self.self_attn(q, q, queries))
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys))
        queries = self.norm3(queries + self.mlp["lin2"](self.mlp["lin1"](queries).relu()))
        keys = self.norm4(keys + self.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries))
        return queries, keys


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the tokens'."""

    def __init__(self, inner: int, heads: int = 8):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, WIDTH)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(x):  # [b, n, c] → [b, heads, n, c/heads]
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [b, c, h, w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / (var + 1e-6).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class Mlp(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, out: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, out)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class ResNet(nn.Module):
    """A ResNet up to layer3, under torchvision's names; ResNet-50 with a trained 1×1 convolution to SAM's 256 channels."""

    def __init__(self, kind: str):
        super().__init__()
        depths = (2, 2, 2) if kind == "resnet18" else (3, 4, 6)
        block = Bottleneck if kind == "resnet50" else BasicBlock
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, (depth, width) in enumerate(zip(depths, (64, 128, 256)), 1):
            blocks = [block(channels if i == 0 else width * block.expansion, width, 2 if i == 0 and number > 1 else 1) for i in range(depth)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            channels = width * block.expansion
        self.stage_channels = (64 * block.expansion, 128 * block.expansion)
        self.ladder_stage = (channels, depths[2])
        if channels != WIDTH:
            self.projection = nn.Conv2d(channels, WIDTH, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is None:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor, rungs: Tensor | None = None) -> Tensor:
        return self.stages(images, rungs)[0]

    def stages(self, images: Tensor, rungs: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The output, layer1, layer2 and the first convolution after norm and ReLU."""
        stem = self.relu(self.bn1(self.conv1(images)))
        layer1 = self.layer1(self.maxpool(stem))
        x = layer2 = self.layer2(layer1)
        for number, block in enumerate(self.layer3):
            x = block(x)
            if rungs is not None:
                x = self.ladder.mix(number, x, rungs)
        return (self.projection(x) if hasattr(self, "projection") else x), layer1, layer2, stem


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1×1, 3×3 with the stride, and 1×1 to four times the width."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))
        return self.relu(x + shortcut)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    """A 1×1 convolution where a block changes channels or resolution."""
    if channels == out and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class VitTiny(nn.Module):
    """vit_tiny_patch16_224 under timm's names, without its classifier and class token, and a trained 1×1 convolution to 256 channels."""

    width, heads, depth = 192, 3, 12

    def __init__(self, grid: int):
        super().__init__()
        width = self.width
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + grid * grid, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.Sequential(*[VitBlock(width, self.heads) for _ in range(self.depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.projection = nn.Conv2d(width, WIDTH, 1)
        self.ladder_stage = (width, self.depth)

    def forward(self, images: Tensor, rungs: Tensor | None = None) -> Tensor:
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        for number, block in enumerate(self.blocks):
            x = block(x)
            if rungs is not None:
                x = torch.cat([x[:, :1], self.ladder.mix(number, x[:, 1:], rungs)], 1)
        x = self.norm(x)[:, 1:]
        return self.projection(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)))


class VitBlock(nn.Module):
    """Attention, then a perceptron, each behind a layer norm and with a shortcut."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))

"""Writes side_networks.json beside this file: what PyTorch, torchvision and timm make of each choice beyond the paper, for
`tests/side_networks.rs`.

    PYTHONPATH=bench python tests/data/make_side_networks.py          needs torch, torchvision, timm, numpy

The models are made of the rule's weights (`tests/golden/README.md`), at 48 pixels with a batch of two, and computed in float64. Of each tensor
the file has its norm and its products with four rule-made vectors: two tensors whose four products agree to a fraction of the norm
agree, but for that fraction, in every element. The name of each case's images is chosen so that no ReLU's input lies within float32 rounding
of zero, where the gradient of two right programs may differ.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from torch import nn
from timm.layers import resample_abs_pos_embed
from torch_ladder import LadderSam, ladder_loss

SIZE, BATCH, CLASSES, PROJECTIONS = 48, 2, 9, 4
# Least distance of a ReLU's input from zero, in units of float32's rounding of numbers around one: a few dozen of them.
CLEARANCE = 2.5e-6


def rule(name, count):
    """u(name, 1..count) of the rule."""
    with np.errstate(over="ignore"):
        h = np.uint64(0xCBF29CE484222325)
        for byte in name.encode():
            h = (h ^ np.uint64(byte)) * np.uint64(0x100000001B3)
        z = h + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def rule_weight(key, shape):
    """The rule's table, in float32 as the program has it."""
    count = math.prod(shape)
    bn2 = 0.25 if ".bn2." in key else 1.0
    if key.endswith(("num_batches_tracked", "alpha")):
        scale, offset = 0.0, 0.0
    elif key.endswith("running_var"):
        scale, offset = 0.25, 1.0
    elif key.endswith("running_mean"):
        scale, offset = 0.125, 0.0
    elif "pos_embed" in key or "rel_pos" in key:
        scale, offset = 0.25, 0.0
    elif key.endswith(("gaussian_matrix", "_token.weight", "_tokens.weight", "_embed.weight")) or "point_embeddings" in key:
        scale, offset = 1.0, 0.0
    elif len(shape) == 1 and key.endswith("weight"):
        scale, offset = 0.125 * bn2, bn2
    elif len(shape) == 1:
        scale, offset = bn2 / 16, 0.0
    else:
        fan_in = shape[0] if "output_upscaling" in key else math.prod(shape[1:])
        scale, offset = (0.25 if "q_proj" in key or "k_proj" in key else 1.0) * math.sqrt(3 / fan_in), 0.0
    return torch.from_numpy((rule(key, count) * scale + offset).astype(np.float32).astype(np.float64)).reshape(shape)


# For four rungs.
RUNG_PLACES = {
    "resnet18": ([0, 0, 1, 1], 256),
    "resnet34": ([0, 1, 3, 4], 256),
    "resnet50": ([0, 1, 3, 4], 1024),
    "vit-tiny": ([0, 3, 6, 9], 192),
}


def rung(channels, width):
    """The gate and, if needed, the 1×1 convolution of a rung."""
    module = nn.Module()
    module.alpha = nn.Parameter(torch.zeros(1))
    if channels != width:
        module.projection = nn.Conv2d(channels, width, 1)
    return module


class Model(LadderSam):
    """The package's model with torchvision's or timm's side network, and more that trains."""

    def __init__(
        self,
        side_network="resnet18",
        gate="scalar",
        tokens=False,
        hypernetworks=False,
        decoder="plain",
        arm="full",
        neighbours=0,
        embed_channels=256,
        ladder=None,
    ):
        super().__init__(SIZE, CLASSES, arm, side_network, gate, decoder, neighbours, embed_channels)
        self.vit = side_network == "vit-tiny"
        if self.vit:
            self.CNN_encoder = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=0)
        else:
            cnn = getattr(torchvision.models, side_network)(weights=None)
            del cnn.layer4, cnn.fc, cnn.avgpool
            self.CNN_encoder = cnn
        if side_network in ("resnet50", "vit-tiny"):
            self.CNN_encoder.projection = nn.Conv2d(192 if self.vit else 1024, 256, 1)
        # The block of the side network's stage after which each rung is mixed in, written down, and the stage's width.
        self.places, width = RUNG_PLACES[side_network]
        if ladder:
            self.CNN_encoder.ladder = nn.ModuleDict({str(block): rung(ladder["channels"], width) for block in ladder["blocks"]})
        for name, parameter in self.sam.mask_decoder.named_parameters():
            if (tokens and name == "mask_tokens.weight") or (hypernetworks and "output_hypernetworks_mlps" in name):
                parameter.requires_grad = True

    def climb(self, number, x, rungs):
        """LST's mixture, μ·rung + (1 - μ)·h, of a block's output [b, c, g, g]."""
        for at, (place, rung) in enumerate(zip(self.places, self.CNN_encoder.ladder.values())):
            if place == number:
                mu = torch.sigmoid(rung.alpha)
                projected = rung.projection(rungs[:, at]) if hasattr(rung, "projection") else rungs[:, at]
                x = mu * projected + (1 - mu) * x
        return x

    def cnn_stages(self, images, rungs=None):
        net, images = self.CNN_encoder, images.expand(-1, 3, -1, -1)
        if self.vit:
            hooks = []
            for number, block in enumerate(net.blocks if rungs is not None else []):

                def mixed(block, inputs, x, number=number):
                    patches = self.climb(number, x[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid)), rungs)
                    return torch.cat([x[:, :1], patches.flatten(2).transpose(1, 2)], 1)

                hooks.append(block.register_forward_hook(mixed))
            x = net.forward_features(images)[:, 1:]
            for hook in hooks:
                hook.remove()
            x, stages = x.transpose(1, 2).unflatten(2, (self.grid, self.grid)), []
        else:
            stem = nn.functional.relu(net.bn1(net.conv1(images)))
            layer1 = net.layer1(net.maxpool(stem))
            x = layer2 = net.layer2(layer1)
            stages = [layer1, layer2, stem]
            for number, block in enumerate(net.layer3):
                x = block(x) if rungs is None else self.climb(number, block(x), rungs)
        return [net.projection(x) if hasattr(net, "projection") else x, *stages]

    def forward(self, images, embeddings, rungs=None):
        cnn, *stages = self.cnn_stages(images, rungs)
        decoder = self.sam.mask_decoder
        if hasattr(self.sam, "neighbours"):
            embeddings = self.sam.neighbours(embeddings)
        if hasattr(self.sam, "embedding_projection"):
            embeddings = self.sam.embedding_projection(embeddings)
        x = self.mix(embeddings, cnn) if self.arm == "full" else cnn
        no_mask = self.sam.prompt_encoder.no_mask_embed.weight
        return decoder(x, self.image_pe(), no_mask, stages if hasattr(decoder, "conv_s0") else None), cnn


def own(named):
    """Names as `tests/side_networks.rs` has them: SAM's without a prefix."""
    return [(name.removeprefix("sam."), tensor) for name, tensor in named]


def load_rule(model):
    """The rule's weights, and what `tests/side_networks.rs` has otherwise, too."""
    with torch.no_grad():
        for key, tensor in own([*model.named_parameters(), *model.named_buffers()]):
            # The rule has one α, 0: a gate of channels needs some that differ.
            if key == "alpha" and tensor.dim() == 3:
                value = torch.from_numpy(rule("gate.alpha", 256)).reshape(256, 1, 1)
            else:
                value = rule_weight(key, tuple(tensor.shape))
            # Gates of rungs that differ, so that they cannot be taken for one another.
            if key.startswith("CNN_encoder.ladder.") and key.endswith(".alpha"):
                value = torch.from_numpy(2 * rule(key, 1).astype(np.float32).astype(np.float64))
            # A bottleneck's last norm, as the rule has a basic block's: a quarter, so that rounding does not grow from block to block.
            if ".bn3." in key and key.endswith(("weight", "bias")):
                value = value / 4
            tensor.copy_(value)


def summary(name, tensor):
    flat = tensor.detach().double().flatten().numpy()
    products = [float(flat @ rule(f"{name}.{i}", flat.size)) for i in range(PROJECTIONS)]
    return [float(np.linalg.norm(flat)), *products]


def batch(name, neighbours, channels, ladder=None, decoder="plain"):
    images = torch.from_numpy((rule(f"{name}.images", BATCH * SIZE * SIZE) + 1) / 2).float().double()
    grid = SIZE // 16
    slices = [3] if neighbours else []
    embeddings = torch.from_numpy(rule(f"{name}.embeddings", BATCH * math.prod(slices) * channels * grid * grid))
    labels = np.floor((rule(f"{name}.labels", BATCH * grid * grid) + 1) / 2 * CLASSES).astype(np.int64)
    labels = torch.from_numpy(labels).reshape(BATCH, grid, grid)
    times = 8 if decoder == "skips-half" else 4
    labels = labels.repeat_interleave(times, 1).repeat_interleave(times, 2)
    inputs = [images.reshape(BATCH, 1, SIZE, SIZE), embeddings.reshape(BATCH, *slices, channels, grid, grid)]
    if ladder:
        shape = (BATCH, len(ladder["blocks"]), ladder["channels"], grid, grid)
        inputs.append(torch.from_numpy(rule(f"{name}.rungs", math.prod(shape))).reshape(shape))
    return inputs, labels


def clearance(model, inputs):
    """The least distance from zero of any ReLU's input in a training pass."""
    least, relu = [math.inf], torch.Tensor.relu

    def watched(x):
        least[0] = min(least[0], x.detach().abs().min().item())
        return relu(x)

    functional = nn.functional.relu
    nn.functional.relu = lambda x, inplace=False: watched(x)
    torch.Tensor.relu = watched
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        nn.functional.relu, torch.Tensor.relu = functional, relu
    return least[0]


def case(name, **choice):
    model = Model(**choice).double().train()
    tries = 0
    while True:
        load_rule(model)
        inputs_name = f"side_networks.{name}.{tries}"
        inputs, labels = batch(inputs_name, choice.get("neighbours", 0), choice.get("embed_channels", 256), choice.get("ladder"), choice.get("decoder", "plain"))
        if (distance := clearance(model, inputs)) > CLEARANCE:
            break
        tries += 1
    load_rule(model)
    model.eval()
    with torch.no_grad():
        evaluated, _ = model(*inputs)
    model.train()
    logits, cnn = model(*inputs)
    loss = ladder_loss(logits, labels)
    loss.backward()
    gradients = {key: value.grad for key, value in own(model.named_parameters()) if value.grad is not None}
    single = Model(**choice).train()
    load_rule(single)
    single_logits, single_cnn = single(*(part.float() for part in inputs))
    ladder_loss(single_logits, labels).backward()
    singles = dict(own(single.named_parameters()))
    off = [((a - b).norm() / b.norm()).item() for a, b in [(single_cnn, cnn), (single_logits, logits)]]
    worst = max(((singles[key].grad - grad).norm() / grad.norm()).item() for key, grad in gradients.items())
    print(f"{name}: {inputs_name}, ReLUs at least {distance:.1e} from zero; PyTorch's float32 is off by {off} and {worst:.1e} (gradients)")
    gradients = {key: summary(key, grad) for key, grad in gradients.items()}
    buffers = {key: value for key, value in model.named_buffers() if "running_" in key}
    return {
        "inputs": inputs_name,
        "choice": choice,
        "loss": loss.item(),
        "cnn_embeddings": summary("cnn_embeddings", cnn),
        "low_res_logits": summary("low_res_logits", logits),
        "evaluated": summary("evaluated", evaluated),
        "gradients": gradients,
        "after": {key: summary(key, value) for key, value in buffers.items()},
    }


def positions(side):
    table = torch.from_numpy(rule("pos_embed", 197 * 192).astype(np.float32)).reshape(1, 197, 192)
    return summary("resized", resample_abs_pos_embed(table, [side, side]))


torch.manual_seed(0)
cases = {
    "channel": case("channel", gate="channel"),
    "pixel": case("pixel", gate="pixel"),
    "tokens": case("tokens", tokens=True),
    "hypernetworks": case("hypernetworks", tokens=True, hypernetworks=True),
    "resnet34": case("resnet34", side_network="resnet34"),
    "resnet50": case("resnet50", side_network="resnet50"),
    "vit-tiny": case("vit-tiny", side_network="vit-tiny"),
    "skips": case("skips", decoder="skips"),
    "neighbours": case("neighbours", neighbours=1),
    "wide": case("wide", embed_channels=384),
    "wide-neighbours": case("wide-neighbours", embed_channels=1024, neighbours=1, gate="pixel"),
    # Rungs that are narrower than their stage, and as wide; more of them than it has blocks, and fewer.
    "ladder": case("ladder", ladder={"blocks": [2, 5, 8, 11], "channels": 24}),
    "ladder-wide": case("ladder-wide", ladder={"blocks": [0, 1, 7, 9], "channels": 256}, side_network="resnet34"),
    "ladder-resnet50": case(
        "ladder-resnet50", ladder={"blocks": [5, 11, 17, 23], "channels": 16}, side_network="resnet50", decoder="skips", neighbours=1
    ),
    "ladder-vit-tiny": case("ladder-vit-tiny", ladder={"blocks": [2, 5, 8, 11], "channels": 24}, side_network="vit-tiny"),
    "skips-half": case("skips-half", decoder="skips-half"),
    "skips-half-resnet50": case("skips-half-resnet50", decoder="skips-half", side_network="resnet50", neighbours=1, gate="channel"),
    "skips-resnet50": case("skips-resnet50", decoder="skips", side_network="resnet50", arm="cnn-only"),
}
out = {"positions": {str(side): positions(side) for side in [32, 14, 10, 3]}, "cases": cases}


def short(value):
    """Ten digits are beyond what float32 can be held to."""
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, list):
        return [short(item) for item in value]
    return {key: short(item) for key, item in value.items()} if isinstance(value, dict) else value


# One tensor a line.
lines = json.dumps(short(out), indent=1)
lines = re.sub(r"\[\s+([^\]]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", lines)
Path(__file__).with_name("side_networks.json").write_text(lines + "\n")
print("torch", torch.__version__, "torchvision", torchvision.__version__, "timm", timm.__version__)

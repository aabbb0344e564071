"""Writes losses_pytorch.safetensors: values and gradients of the losses of `ops/src/segmentation_loss` by PyTorch in float64, rounded to float32.

    python ops/tests/data/make_losses.py

Cross-entropy is PyTorch's own. Focal loss is MONAI's `softmax_focal_loss`; its mean is over pixels by their classes' weights, as PyTorch's
cross-entropy has it. Tversky loss and generalised Dice are MONAI's `TverskyLoss` and `GeneralizedDiceLoss` (1.6.1) over the whole batch. Dice is the
published `DiceLoss`, written out. Pixels that do not count have probabilities and labels of 0.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from monai.losses import GeneralizedDiceLoss, TverskyLoss
from monai.losses.focal_loss import softmax_focal_loss
from safetensors.torch import save_file

SMOOTH = 1e-5
IGNORE = 255
CLASSES = 4


def pixel_term(logits, labels, weights, gamma, ignore):
    if gamma == 0:
        return F.cross_entropy(logits, labels, weights, ignore_index=ignore)
    _, t = parts(logits, labels, ignore)
    w = t * weights.view(1, -1, 1, 1)
    return (softmax_focal_loss(logits, t, gamma) * w).sum() / w.sum()


def parts(logits, labels, ignore):
    counts = (labels != ignore).unsqueeze(1)
    t = F.one_hot(labels.where(labels != ignore, 0), CLASSES).permute(0, 3, 1, 2) * counts
    return logits.softmax(1) * counts, t.double()


def per_class(x):
    return x.sum((0, 2, 3))


def dice(p, t):
    return (1 - (2 * per_class(p * t) + SMOOTH) / (per_class(p * p) + per_class(t * t) + SMOOTH)).mean()


tversky = TverskyLoss(alpha=0.3, beta=0.7, batch=True)
generalised_dice = GeneralizedDiceLoss(batch=True)


def united(loss):
    """The loss of unions of classes: background, all that is not, and each class from the second with those after it."""
    unions = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.float64)

    def of_unions(p, t):
        return loss(*(torch.einsum("uc,bchw->buhw", unions, x) for x in (p, t)))

    return of_unions


def main():
    torch.manual_seed(22)
    logits = (2 * torch.randn(2, CLASSES, 5, 6)).double()
    labels = torch.randint(0, CLASSES, (2, 5, 6))
    # In the labels without pixels that do not count, the last class never occurs.
    ignored = labels.clone()
    ignored[torch.rand(2, 5, 6) < 0.2] = IGNORE
    labels[labels == CLASSES - 1] = 0
    weighed = torch.tensor([0.25 + c for c in range(CLASSES)], dtype=torch.float64)
    ones = torch.ones(CLASSES, dtype=torch.float64)
    cases = {
        "dice": (0.8, 0, dice, ones, labels),
        "weighed": (0.3, 0, dice, weighed, ignored),
        "focal": (0.0, 2, dice, ones, labels),
        "focal_weighed": (0.2, 0.5, dice, weighed, ignored),
        "tversky": (1.0, 0, tversky, ones, ignored),
        "tversky_mixed": (0.6, 1.5, tversky, weighed, labels),
        "generalised": (1.0, 0, generalised_dice, ones, labels),
        "generalised_ignored": (0.7, 0, generalised_dice, weighed, ignored),
        "united": (0.8, 0, united(dice), ones, labels),
        "united_focal": (0.4, 2, united(dice), weighed, ignored),
        "united_tversky": (0.6, 0, united(tversky), weighed, ignored),
        "united_generalised": (0.7, 0, united(generalised_dice), ones, labels),
    }
    tensors = {"logits": logits, "labels": labels, "labels_ignored": ignored}
    for name, (mix, gamma, region, weights, target) in cases.items():
        x = logits.clone().requires_grad_()
        a = pixel_term(x, target, weights, gamma, IGNORE)
        b = region(*parts(x, target, IGNORE))
        total = (1 - mix) * a + mix * b
        (gradient,) = torch.autograd.grad(total, x)
        tensors[f"{name}/numbers"] = torch.stack([total, a, b]).detach()
        tensors[f"{name}/gradient"] = gradient
    out = Path(__file__).with_name("losses_pytorch.safetensors")
    save_file({name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main()

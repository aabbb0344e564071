"""The whole published model in plain PyTorch, under the published state dict's names, for cross-checks: image encoder, ladder and decoder.

    published = Published("vit_b", size=512, classes=9)
    published.load_state_dict(torch.load("epoch_194.pth", weights_only=True), strict=True)   # after `module.` is removed from the names
"""

from torchvision.models import resnet18

from torch_encoder import ImageEncoder
from torch_ladder import LadderSam


class Published(LadderSam):
    """[b, 3, s, s] → logits [b, classes, s/4, s/4]."""

    def __init__(self, arch, size, classes):
        super().__init__(size, classes)
        # torchvision's, with the layers that are there and not used
        self.CNN_encoder = resnet18(weights=None)
        self.sam.image_encoder = ImageEncoder(arch, size)
        self.sam_encoder = self.sam.image_encoder

    def cnn_embeddings(self, images, rungs=None):
        net = self.CNN_encoder
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer3(net.layer2(net.layer1(x)))

    def forward(self, images):
        return super().forward(images, self.sam_encoder(images))


def without_module(state):
    """A state dict without the prefix that `DataParallel` puts before every name."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}

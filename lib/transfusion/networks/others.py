"""Networks that torchvision builds, by their names, or that are built of its parts."""

from __future__ import annotations

from torch import nn
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

from transfusion import terms

Blocks = dict[str, tuple[str, ...]]
AUXILIARY = ("googlenet", "inception_v3")  # have classifiers beside the last, unless told not to
RESNET_BLOCKS = {
    "conv1": ("conv1", "bn1", "relu"),
    **{f"block{i}": (f"layer{i}",) for i in range(1, 5)},
}


def names() -> list[str]:
    return [terms.SLIM, *models.list_models(module=models)]


def build(name: str, outputs: int) -> tuple[nn.Module, Blocks, str]:
    """The network, its ordered blocks with their modules' names, and its classifier's name."""
    if name == terms.SLIM:
        return _Slim(outputs), RESNET_BLOCKS, "fc"
    extra = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    net = models.get_model(name, weights=None, num_classes=outputs, **extra)
    head = [n for n, module in net.named_modules() if isinstance(module, nn.Linear)][-1]
    if isinstance(net, ResNet):
        return net, RESNET_BLOCKS, head
    children = [n for n, child in net.named_children() if any(True for _ in child.parameters())]
    return net, {n: (n,) for n in children if not head.startswith(n)}, head


class _Slim(ResNet):
    """ResNet-50 whose last two blocks have half the channels (paper, section 5.2).

    How much slimmer the paper's was is not confirmed; half gives 7.1 million parameters.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=outputs)
        self.inplanes = 512  # as after layer2
        self.layer3 = self._make_layer(Bottleneck, 128, 6, stride=2)
        self.layer4 = self._make_layer(Bottleneck, 256, 3, stride=2)
        self.fc = nn.Linear(1024, outputs)
        for module in (*self.layer3.modules(), *self.layer4.modules()):
            if isinstance(module, nn.Conv2d):  # as ResNet's own
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

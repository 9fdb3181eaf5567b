"""Networks of the paper's time, of torchvision, cut into blocks as the paper cuts them: ResNets,
the Inceptions, SqueezeNets, and a slim ResNet-50."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

from transfusion import terms
from transfusion.networks import parts

RESNET: parts.Blocks = {
    "conv1": ("conv1", "bn1", "relu"),
    **{f"block{i}": (f"layer{i}",) for i in range(1, 5)},
}


def _fires(*ends: int) -> list[tuple[str, ...]]:
    """SqueezeNet's numbered layers, cut before each end."""
    starts = (0, *ends)
    return [tuple(f"features.{i}" for i in range(*cut)) for cut in zip(starts, ends, strict=False)]


# conv1, then block1 and so on. Cut where they halve the map, as ResNets are, so that a block means
# the same depth in all.
CUTS: dict[str, list[tuple[str, ...]]] = {
    "inception_v3": [
        ("Conv2d_1a_3x3",),
        ("Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        ("Mixed_5b", "Mixed_5c", "Mixed_5d"),
        ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    ],
    "googlenet": [
        ("conv1",),
        ("conv2", "conv3"),
        ("inception3a", "inception3b"),
        ("inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
        ("inception5a", "inception5b"),
    ],
    "squeezenet1_0": _fires(2, 6, 11, 13),
    "squeezenet1_1": _fires(2, 5, 8, 13),
}
# Their published weights see pixels at mean and deviation 0.5, to which they then bring ours; their
# classifiers beside the last are left out.
OPTIONS = dict.fromkeys(
    ("inception_v3", "googlenet"),
    {"aux_logits": False, "init_weights": True, "transform_input": True},
)


def names() -> list[str]:
    resnets = [n for n in models.list_models(module=models) if _is_resnet(n)]
    return [terms.SLIM, *resnets, *CUTS]


def _is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def build(name: str, outputs: int) -> nn.Module:
    """The network with its plan."""
    if name == terms.SLIM:
        return parts.named(_Slim(outputs), parts.Plan(RESNET, ("fc",)))
    net = models.get_model(name, weights=None, num_classes=outputs, **OPTIONS.get(name, {}))
    head = "classifier.1" if name.startswith("squeezenet") else "fc"
    if _is_resnet(name):
        return parts.named(net, parts.Plan(RESNET, (head,)))
    first, *rest = CUTS[name]
    blocks = {"conv1": first, **{f"block{i}": part for i, part in enumerate(rest, start=1)}}
    return parts.named(net, parts.Plan(blocks, (head,)))


def download(name: str) -> dict[str, Tensor]:
    """The default weights that torchvision publishes; of a slim network there are none."""
    return models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)


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

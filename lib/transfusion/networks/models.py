"""The networks: the paper's CBR family, and others by name, each naming its ordered blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from transfusion import config


@dataclass(frozen=True)
class CBR:
    """Widths and kernel of a Conv-BatchNorm-ReLU network (paper, section 3)."""

    kernel: int
    widths: tuple[int, ...]
    last_pool: bool = True  # LargeT has no pooling after its fifth block


# Tiny follows the printed parameter count (1,076,480); the widths in the paper's text, 64-128-256-
# 512, would make it four times as large, larger than Small.
CBRS = {
    "cbr_large_t": CBR(7, (32, 64, 128, 256, 512), last_pool=False),
    "cbr_large_w": CBR(7, (64, 128, 256, 512)),
    "cbr_small": CBR(7, (32, 64, 128, 256)),
    "cbr_tiny": CBR(5, (32, 64, 128, 256)),
}
PLAN = "_blocks_and_head"  # the attribute in which a network keeps them
SMALL_MAP = 4  # pixels; up to here a bfloat16 convolution is faster as a product, measured


def names() -> list[str]:
    """What `build` knows: the CBR family, the slim ResNet-50, torchvision's classifiers."""
    from transfusion.networks import others

    return [*CBRS, *others.names()]


def build(name: str, *, outputs: int, channels: int = 3, seed: int = 0) -> nn.Module:
    """A freshly initialised network (N, channels, H, W) -> (N, outputs).

    The weights depend on `seed` alone, not on the global generator. Its parts are told by
    `blocks` and by `head`, which alone depends on `outputs`.
    Raises ValueError for an unknown name.
    """
    if name not in CBRS:
        config.one_of(name, names(), "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _cbr(CBRS[name], outputs, channels) if name in CBRS else _other(name, outputs)
    if channels != 3 and name not in CBRS:
        raise ValueError(f"{name} takes 3 channels, got channels={channels}")
    for module in net.modules():
        if type(module) is nn.Conv2d and _is_plain(module):
            module.__class__ = Convolution  # the same tensors under the same names
    return net


class Convolution(nn.Conv2d):
    """A convolution that is a matrix product where this is faster: on the CPU, 1x1 or a small map.

    There oneDNN's gradient of the weights fills its tiles with little but padding: a training step
    of ResNet-50 takes 0.6 of the time at 32 px, 0.8 at 64 px. The same function to rounding.
    """

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        size, reduced = images.shape[2:], torch.is_autocast_enabled("cpu")
        small = reduced and size.numel() <= SMALL_MAP
        if images.is_cuda or (kernel > 1 and not small):
            return super().forward(images)
        if kernel == 1:
            patches = images[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
        else:
            patches = F.unfold(images, kernel, padding=padding, stride=stride).mT
        height, width = ((pixels + 2 * padding - kernel) // stride + 1 for pixels in size)
        rows, weight = patches.flatten(0, -2), self.weight.flatten(1)
        product = F.linear(rows, weight) if reduced else _float_product(rows, weight)
        return product.reshape(-1, height, width, len(weight)).permute(0, 3, 1, 2)


def _float_product(rows: Tensor, weight: Tensor) -> Tensor:
    """rows (N, in) times weight (out, in) as one long 1x1 convolution: `linear` would leave oneDNN
    for MKL, which is slow on the processors of others than its maker."""
    line = rows.view(1, 1, *rows.shape).permute(0, 3, 1, 2)  # one image in channels_last
    return F.conv2d(line, weight[:, :, None, None]).permute(0, 2, 3, 1)


def _is_plain(conv: nn.Conv2d) -> bool:
    """Square, undilated, ungrouped, padded with zeros by less than its kernel, without a bias."""
    square = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    padded = not isinstance(conv.padding, str) and conv.padding[0] < conv.kernel_size[0]
    return square and plain and padded and conv.bias is None


def _cbr(form: CBR, outputs: int, channels: int) -> nn.Module:
    net = nn.Sequential()
    last = len(form.widths)
    for i, width in enumerate(form.widths, start=1):
        pool = i < last or form.last_pool
        net.add_module(f"block{i}", _block(channels, width, form.kernel, pool))
        channels = width
    net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.add_module("head", nn.Linear(channels, outputs))
    return _named(net, {f"block{i}": (f"block{i}",) for i in range(1, last + 1)}, "head")


def _other(name: str, outputs: int) -> nn.Module:
    from transfusion.networks import others  # torchvision, as slow as torch; CBRs need none

    return _named(*others.build(name, outputs))


def _block(channels: int, width: int, kernel: int, pool: bool) -> nn.Sequential:
    """conv, batch norm, ReLU, 3x3 max-pool of stride 2; padded, so that small images fit."""
    conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    # As torchvision's ResNets, so that "random" means the same in every model.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    parts = [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*parts, *([nn.MaxPool2d(3, stride=2, padding=1)] if pool else []))


def _named(net: nn.Module, blocks: dict[str, tuple[str, ...]], head: str) -> nn.Module:
    # torch claims every other way to set one, and some networks have `blocks` of their own.
    net.__dict__[PLAN] = dict(blocks), head
    return net


def blocks(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """The ordered blocks of a network of `build`, each with its modules' names; the last of these
    holds the block's output."""
    return net.__dict__[PLAN][0]


def head(net: nn.Module) -> str:
    """The name of the classifier."""
    return net.__dict__[PLAN][1]


def upto(net: nn.Module, block: str) -> list[str]:
    """The blocks up to and including one of them, in order; raises ValueError for an unknown one.

    `conv1` names the first block of every network: that of a CBR network is its first convolution.
    """
    names = list(blocks(net))
    name = names[0] if block == "conv1" else config.one_of(block, names, "block")
    return names[: names.index(name) + 1]


def tensors(net: nn.Module, chosen: Iterable[str]) -> set[str]:
    """Names of the state's tensors in these blocks, batch-norm statistics included.

    What lies in no block, as VGG's first linear layers do, goes with the last, but no classifier.
    """
    block_of, chosen = _block_of(net), set(chosen)
    return {n for n in net.state_dict() if not in_head(net, n) and block_of(n) in chosen}


def _block_of(net: nn.Module) -> Callable[[str], str]:
    """The block of a tensor or module by its name."""
    place = {module: block for block, parts in blocks(net).items() for module in parts}
    last = list(blocks(net))[-1]
    return lambda name: place.get(name.split(".")[0], last)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm that keeps to its statistics while the rest of a network trains."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


def freeze(net: nn.Module, chosen: Iterable[str]) -> None:
    """Keep these blocks as they are in training: batch-norm statistics too, and nothing in them is
    left to chance, so that an image has the same features in every pass."""
    chosen = set(chosen)
    names, block_of = tensors(net, chosen), _block_of(net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in names)
    for name, module in net.named_modules():
        if type(module) is nn.BatchNorm2d and f"{name}.running_mean" in names:
            module.__class__ = FrozenBatchNorm
            module.train()
        elif _is_random(module) and block_of(name) in chosen:
            module.p = 0.0


def _is_random(module: nn.Module) -> bool:
    """Dropout, or torchvision's stochastic depth."""
    dropout = nn.modules.dropout._DropoutNd
    return isinstance(module, dropout) or type(module).__name__ == "StochasticDepth"


def in_head(net: nn.Module, tensor: str) -> bool:
    """Whether a tensor of the state dict belongs to the classifier."""
    return tensor.rpartition(".")[0] == head(net)


def parameters(name: str) -> int:
    """Trainable parameters of a network with five outputs."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in build(name, outputs=5).parameters())


@cache
def flops(name: str, size: int) -> int:
    """Floating-point operations of one forward pass on one image, two a multiply-add."""
    with torch.device("meta"):
        net = build(name, outputs=5).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def memory(name: str, size: int) -> int:
    """Bytes that the backward pass of one image needs kept from the forward pass, in float32."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1 and tensor.shape[0] == 2:  # of images, not of weights
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        net = build(name, outputs=5)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = net(torch.empty(2, 3, size, size))
    del output
    return sum(tensor.nbytes for tensor in kept.values()) // 2


def normalise(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> float32 with ImageNet's mean and deviation, as the weights expect."""
    mean, deviation = _channels(images.device)
    return (images.float() / 255 - mean) / deviation


@cache
def _channels(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation, made once a device: a CUDA graph cannot bring them from the CPU."""
    of_channels = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    mean, deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in of_channels)
    return mean, deviation

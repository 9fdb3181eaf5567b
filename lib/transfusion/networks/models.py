"""The networks: the paper's CBR family, and others by name, each naming its ordered blocks."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from transfusion import terms
from transfusion.networks import convolution, parts

# A network's parts are told where it is built.
from transfusion.networks.parts import blocks, in_head, tensors, upto

__all__ = [
    "CBRS", "blocks", "build", "check", "flops", "in_head", "memory", "names", "normalise",
    "parameters", "tensors", "upto",
]  # fmt: skip


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


def names() -> list[str]:
    """What `build` knows: our own, and all of timm's."""
    from transfusion.networks import others

    return [*ours(), *others.names()]


def ours() -> list[str]:
    """Networks with the paper's blocks: the CBR family, and torchvision's of the paper's time."""
    from transfusion.networks import classics

    return [*CBRS, *classics.names()]


def build(
    name: str, *, outputs: int, channels: int = 3, seed: int = 0, size: int | None = None
) -> nn.Module:
    """A freshly initialised network (N, channels, H, W) -> (N, outputs).

    The weights depend on `seed` alone, not on the global generator. Its parts are told by
    `blocks` and by its classifier, which alone depends on `outputs`. `size` in pixels is for
    networks that are made for one, as transformers are (default: that of their own weights).
    Raises ValueError for an unknown name, and where it cannot be built so.
    """
    name = terms.spelt(name)
    _check_known(name)
    if channels != 3 and name not in CBRS:
        raise ValueError(f"{name} takes 3 channels, got channels={channels}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _cbr(CBRS[name], outputs, channels) if name in CBRS else _other(name, outputs, size)
    return convolution.quicken(net)


def _cbr(form: CBR, outputs: int, channels: int) -> nn.Module:
    net = nn.Sequential()
    last = len(form.widths)
    for i, width in enumerate(form.widths, start=1):
        pool = i < last or form.last_pool
        net.add_module(f"block{i}", _block(channels, width, form.kernel, pool))
        channels = width
    net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.add_module("head", nn.Linear(channels, outputs))
    blocks: parts.Blocks = {f"block{i}": (f"block{i}",) for i in range(1, last + 1)}
    return parts.named(net, parts.Plan(blocks, ("head",)))


def _other(name: str, outputs: int, size: int | None) -> nn.Module:
    from transfusion.networks import classics, others  # slow to load, and CBRs need neither

    if name in classics.names():
        return classics.build(name, outputs)
    return others.build(name, outputs, size)


def _check_known(name: str) -> None:
    if name in CBRS or name in ours():
        return
    from transfusion.networks import others

    if not others.known(name):
        small = name.strip().lower()
        near = others.longer(small) or difflib.get_close_matches(small, names(), n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        possible = f"{', '.join(ours())}, and timm's by their names"
        raise ValueError(f"unknown model {name!r}; possible: {possible}.{hint}")


def check(name: str, size: int) -> None:
    """Raise ValueError, saying why and what would work, for a network that cannot take images of
    `size` pixels, or whose blocks cannot be read."""
    _check_known(terms.spelt(name))
    why = _refusal(terms.spelt(name), size)
    if why:
        sizes = [str(s) for s in SIZES if s != size and not _refusal(terms.spelt(name), s)]
        takes = f"such as {', '.join(sizes)} px" if sizes else "none"
        instead = next(other for other in INSTEAD if not _refusal(other, size))
        raise ValueError(
            f"{name} takes no images of {size} px ({why}); sizes that it takes: {takes}; "
            f"a network that takes {size} px: {instead}"
        )


# Tried where one is refused: usual sizes, and networks that take small images.
SIZES = (32, 64, 96, 224, 256, 299)
INSTEAD = ("resnet50", "cbr_tiny", "cbr_large_t")


@cache
def _refusal(name: str, size: int) -> str:
    """Why a network takes no images of this size; empty if it does. Shapes alone are computed."""
    try:
        with torch.device("meta"):
            net = build(name, outputs=5, size=size).eval()
            net.to(memory_format=torch.channels_last)
            found = parts.outputs(net, torch.empty(2, 3, size, size))
        first: Any = net.get_submodule(parts.first_convolution(net))
    except Exception as error:  # of whatever network: it is told, not raised
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    empty = [block for block, maps in found.items() if not maps.numel()]
    if empty:
        return f"nothing is left of them in {empty[0]}"
    patch = first.kernel_size[0]
    if first.stride == first.kernel_size and not any(first.padding) and size % patch:
        return f"in patches of {patch} px a rim of {size % patch} px would be left out"
    return ""


def _block(channels: int, width: int, kernel: int, pool: bool) -> nn.Sequential:
    """conv, batch norm, ReLU, 3x3 max-pool of stride 2; padded, so that small images fit."""
    conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    # As torchvision's ResNets, so that "random" means the same in every model.
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    layers = [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(3, stride=2, padding=1)] if pool else []))


def parameters(name: str) -> int:
    """Trainable parameters of a network with five outputs."""
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in build(name, outputs=5).parameters())


@cache
def flops(name: str, size: int) -> int:
    """Floating-point operations of one forward pass on one image, two a multiply-add.

    Raises ValueError as `check` does.
    """
    check(name, size)
    with torch.device("meta"):
        net = build(name, outputs=5, size=size).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def memory(name: str, size: int) -> int:
    """Bytes that the backward pass of one image needs kept from the forward pass, in float32.

    Raises ValueError as `check` does.
    """
    check(name, size)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dim() > 1 and tensor.shape[0] == 2:  # of images, not of weights
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        net = build(name, outputs=5, size=size)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = net(torch.empty(2, 3, size, size))
    del output
    return sum(tensor.nbytes for tensor in kept.values()) // 2


def normalise(images: Tensor, net: nn.Module | None = None) -> Tensor:
    """(N, 3, H, W) uint8 -> float32 with the mean and deviation that the weights of a network of
    `build` expect, else with ImageNet's."""
    plan = getattr(net, parts.PLAN, None)
    mean, deviation = _channels(plan.colours if plan else parts.IMAGENET, images.device)
    return (images.float() / 255 - mean) / deviation


@cache
def _channels(colours: tuple[parts.Colours, parts.Colours], device: torch.device) -> list[Tensor]:
    """Mean and deviation, made once a device: a CUDA graph cannot bring them from the CPU."""
    return [torch.tensor(values, device=device).view(3, 1, 1) for values in colours]

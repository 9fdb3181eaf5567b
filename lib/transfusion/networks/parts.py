"""The parts of a network: its ordered blocks, what they put out, and its classifier."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from transfusion import config

State = dict[str, Tensor]  # tensors by name, as a network's state dict has them
Blocks = dict[str, tuple[str, ...]]
Colours = tuple[float, float, float]
IMAGENET: tuple[Colours, Colours] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Plan:
    """What is told of a network beside its layers."""

    blocks: Blocks  # in order, each with its modules' names; the last of them holds its output
    head: tuple[str, ...]  # the classifier; some transformers have two, and average them
    channels: dict[str, int] = field(default_factory=dict)  # of outputs, where known beforehand
    prefix: int = 0  # tokens before those of places: class, registers
    channels_last: bool = False  # where the shape of a map does not tell
    colours: tuple[Colours, Colours] = IMAGENET  # mean and deviation that its weights expect


PLAN = "_plan"  # the attribute in which a network keeps it


def named(net: nn.Module, plan: Plan) -> nn.Module:
    """The network with its plan."""
    net.__dict__[PLAN] = plan  # torch claims every other way to set one
    return net


def plan(net: nn.Module) -> Plan:
    return net.__dict__[PLAN]


def blocks(net: nn.Module) -> Blocks:
    """The ordered blocks of a network of `models.build`, each with its modules' names; the last of
    these holds the block's output."""
    return plan(net).blocks


def upto(net: nn.Module, block: str) -> list[str]:
    """The blocks up to and including one of them, in order; raises ValueError for an unknown one.

    `conv1` names the first block of every network: that of a CBR network is its first convolution.
    """
    names = list(blocks(net))
    name = names[0] if block == "conv1" else config.one_of(block, names, "block")
    return names[: names.index(name) + 1]


def in_head(net: nn.Module, tensor: str) -> bool:
    """Whether a tensor of the state dict belongs to the classifier."""
    return tensor.rpartition(".")[0] in plan(net).head


def tensors(net: nn.Module, chosen: Iterable[str]) -> set[str]:
    """Names of the state's tensors in these blocks, batch-norm statistics included.

    What lies in no block, as VGG's first linear layers do, goes with the last, but no classifier.
    """
    block_of, chosen = place(net), set(chosen)
    return {n for n in net.state_dict() if not in_head(net, n) and block_of(n) in chosen}


def place(net: nn.Module) -> Callable[[str], str]:
    """The block of a tensor or module by its name."""
    of = {part: block for block, parts in blocks(net).items() for part in parts}
    last = list(blocks(net))[-1]

    def found(name: str) -> str:
        while name and name not in of:
            name = name.rpartition(".")[0]
        return of.get(name, last)

    return found


def first_convolution(net: nn.Module) -> str:
    """Of images; raises ValueError where the first layer is none."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            return name
    raise ValueError("this network has no first convolution")


# --- what blocks put out ---------------------------------------------------------------------


def outputs(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """{block: maps (N, channels, y, x)} of images (N, 3, y, x), by one forward pass.

    Maps that have their channels last are turned. Tokens are put in their places in the image;
    those of no place, as class tokens, are left out. Raises ValueError for what is neither.
    """
    found: dict[str, Any] = {}
    with contextlib.ExitStack() as hooks:
        for block, modules in blocks(net).items():
            last = net.get_submodule(modules[-1])
            hooks.callback(last.register_forward_hook(partial(_keep, found, block)).remove)
        net(images)
    maps: dict[str, Tensor] = {}
    for block, output in found.items():
        places = next(iter(maps.values())).shape[2:].numel() if maps else None
        maps[block] = _as_map(plan(net), block, output, places)
    return maps


def _keep(found: dict[str, Any], block: str, module: nn.Module, _: Any, output: Any) -> None:
    """A copy, since what comes next may overwrite it, as torchvision's ReLUs do."""
    found[block] = output.clone() if isinstance(output, Tensor) else output


def _as_map(plan: Plan, block: str, output: Any, places: int | None) -> Tensor:
    """`places`: those of the first block, which as many tokens later on have too."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    channels = plan.channels.get(block)
    if len(shape) == 2:
        return output[:, :, None, None]  # a vector is a map of one position
    if len(shape) == 4 and channels in (None, shape[1], shape[3]):
        turned = channels is not None and _is_last(plan, channels, shape)
        return output.permute(0, 3, 1, 2) if turned else output
    if len(shape) == 3 and channels in (None, shape[2]):
        among = shape[1] - plan.prefix == places  # tokens of no place are among them
        for before in (plan.prefix,) if among else (0, plan.prefix):
            side = math.isqrt(shape[1] - before)
            if side**2 == shape[1] - before:
                return output[:, before:].mT.unflatten(2, (side, side))
    what = f"a tensor of shape {shape}" if shape else f"a {type(output).__name__}"
    raise ValueError(f"{block} puts out {what}, which is no map and no square of tokens")


def _is_last(plan: Plan, channels: int, shape: tuple[int, ...]) -> bool:
    if shape[1] == shape[3]:
        return plan.channels_last
    return channels == shape[3]

"""Networks by timm's names, cut into blocks where timm groups and taps their layers."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import timm
from timm.models import group_parameters
from torch import nn

from transfusion.networks import parts

BLOCKS = 4  # after the first layers, as a ResNet has
FIRST = 9  # weights that a stem has at most; with more it is a network of its own


def names() -> list[str]:
    return timm.list_models()


def build(name: str, outputs: int, size: int | None) -> nn.Module:
    """The network with its plan, for images of `size` where it is made for one.

    Raises ValueError for a network that has no classifier or that timm does not cut.
    """
    net = _made(name, outputs, size)
    told = net.pretrained_cfg
    head = _head(name, told["classifier"])
    blocks, channels = _blocks(name, net, head)
    plan = parts.Plan(
        blocks=blocks,
        head=head,
        channels=channels,
        prefix=getattr(net, "num_prefix_tokens", 0),
        channels_last=getattr(net, "output_fmt", "NCHW") == "NHWC",
        colours=(tuple(told["mean"]), tuple(told["std"])),
    )
    return parts.named(net, plan)


def download(name: str) -> parts.State:
    """The weights that timm publishes under this name."""
    return timm.create_model(name, pretrained=True).state_dict()


def known(name: str) -> bool:
    """Whether timm has it, with a tag of its weights or without."""
    architecture, dot, _ = name.partition(".")
    told = timm.get_pretrained_cfg(architecture) if timm.is_model(architecture) else None
    return told is not None and (not dot or name in timm.list_pretrained())


def longer(name: str) -> list[str]:
    """At most five of timm's names that begin so, or are of this network with another tag."""
    architecture, dot, _ = name.partition(".")
    if dot or not name:
        return timm.list_pretrained(f"{architecture}.*")[:5] if name else []
    return (timm.list_models(f"{name}_*") or timm.list_models(f"{name}*"))[:5]


# How timm lets a network that is made for one size take others, by kind.
ANY_SIZE: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}]


def _made(name: str, outputs: int, size: int | None) -> Any:
    own: Any = timm.get_pretrained_cfg(name)
    if not own.fixed_input_size:
        return timm.create_model(name, num_classes=outputs)
    if size:
        return timm.create_model(name, num_classes=outputs, img_size=size)
    for options in ANY_SIZE:
        with contextlib.suppress(TypeError):  # of an option that the network has not
            return timm.create_model(name, num_classes=outputs, **options)
    return timm.create_model(name, num_classes=outputs)


def _head(name: str, told: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if not told:
        raise ValueError(f"{name} has no classifier")
    return (told,) if isinstance(told, str) else tuple(told)


UNORDERED = ("hiera",)  # against timm's own reading of some 300 networks, one of each kind


class Tap(NamedTuple):
    """Where timm reads a network's features."""

    group: int  # the last that it takes in of timm's groups of parameters, which are in order
    module: str
    channels: int
    reduction: int  # of the image's sides


def _blocks(name: str, net: Any, head: tuple[str, ...]) -> tuple[parts.Blocks, dict[str, int]]:
    """The blocks, and how many channels each puts out: conv1, then up to a tap each."""
    if name.startswith(UNORDERED):
        raise ValueError(f"tokens of {name} are not in the order of their places")
    if not hasattr(net, "group_matcher") or not getattr(net, "feature_info", None):
        raise ValueError(f"timm tells no ordered blocks of {name}")
    groups = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    groups = {n: g for n, g in groups.items() if n.rpartition(".")[0] not in head}
    taps = _taps(net, groups)
    if not taps:
        raise ValueError(f"timm tells no ordered blocks of {name}")
    weights = [n for n in groups if n.endswith("weight") and net.get_parameter(n).dim() > 1]
    # Where timm cuts before the first norm and activation, as in VGG, its first tap is after them.
    alone = sum(groups[n] <= taps[0].group for n in weights) == 1
    end = taps[0].group if alone else 0
    first = [n for n in weights if groups[n] <= end]
    if not 0 < len(first) <= FIRST:
        raise ValueError(f"timm's first group of layers of {name} has {len(first)} weights")
    plain = Tap(end, "", net.get_parameter(first[-1]).shape[0], 0)
    stem = next((tap for tap in taps if tap.group <= end), plain)
    stages = [stem._replace(group=end), *_stages([tap for tap in taps if tap.group > end])]
    if len(stages) < BLOCKS:
        raise ValueError(f"timm tells only {len(stages)} blocks of {name}")
    cut = _cut(net, groups, [stage.group for stage in stages])
    names = ["conv1", *(f"block{i}" for i in range(1, len(stages)))]
    blocks = {n: _ending(part, s.module) for n, part, s in zip(names, cut, stages, strict=True)}
    return blocks, {n: stage.channels for n, stage in zip(names, stages, strict=True)}


def _taps(net: Any, groups: dict[str, int]) -> list[Tap]:
    """In order; of a module without parameters the group is that of those before it."""
    reached, of = 0, dict[str, int]()
    for name, module in net.named_modules():
        own = [f"{name}.{n}".lstrip(".") for n, _ in module.named_parameters(recurse=False)]
        reached = max((groups[n] for n in own if n in groups), default=reached)
        within = (g for n, g in groups.items() if n.startswith(f"{name}."))
        of[name] = max(within, default=reached)
    told = [net.feature_info[i] for i in range(len(net.feature_info))]
    return [
        Tap(of[t["module"]], t["module"], t["num_chs"], t["reduction"])
        for t in told
        if t["module"] in of  # of HRNet's parallel branches they are no modules
    ]


def _stages(taps: list[Tap]) -> list[Tap]:
    """Of taps at several resolutions the last at each, but none above a quarter of the image's if
    four remain, so that block1 ends there as it does in a ResNet; of one resolution four quarters
    of the depth."""
    taps = list({tap.group: tap for tap in taps}.values())
    last = list({tap.reduction: tap for tap in taps}.values())
    if len(last) == 1:
        ends = [math.ceil(len(taps) * i / BLOCKS) - 1 for i in range(1, BLOCKS + 1)]
        return [taps[end] for end in dict.fromkeys(ends)]
    lower = [tap for tap in last if tap.reduction > 2]
    return lower if len(lower) >= BLOCKS else last


def _cut(net: Any, groups: dict[str, int], ends: list[int]) -> list[list[str]]:
    """Of each block the largest modules that lie in it; what follows the last end goes with it."""
    block_of = {n: sum(group > end for end in ends[:-1]) for n, group in groups.items()}
    inside: dict[str, set[int]] = {}
    for name, block in block_of.items():
        for i in range(1, name.count(".") + 2):
            inside.setdefault(".".join(name.split(".")[:i]), set()).add(block)
    cut: list[list[str]] = [[] for _ in ends]
    for name in block_of:
        prefixes = (".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 2))
        largest = next(p for p in prefixes if len(inside[p]) == 1)
        if largest not in cut[block_of[name]]:
            cut[block_of[name]].append(largest)
    return cut


def _ending(part: list[str], module: str) -> tuple[str, ...]:
    """The parts of a block, that whose output is the block's last."""
    return tuple([*(p for p in part if p != module), module] if module else part)

"""Weights under other names than a network's, and what else must be done to make them fit it."""

from __future__ import annotations

import inspect
import math
import re
import sys
import warnings

import torch
from torch import nn

from transfusion import terms
from transfusion.networks import models, parts

WRAPPED = ("module.", "model.", "backbone.", "net.", "network.")
# Two networks that are the same function differ by this share of their outputs, in float32, at
# most. Most that are gave the same bits; MobileNetV3, which differs in a constant, 7e-5 and more.
SAME = 1e-5


def adapted(net: nn.Module, model: str, state: parts.State, told: list[str]) -> parts.State:
    """A state under the names of the network, that of `model`: prefixes of what wrapped it, other
    spellings, and a first layer for grey images are made to fit, and that is told.

    Raises ValueError for torchvision's weights of what is another function in timm.
    """
    state = _respelt(_without_prefix(net, state, told), told)
    return _renamed(net, model, _coloured(net, state, told), told)


def _coloured(net: nn.Module, state: parts.State, told: list[str]) -> parts.State:
    first = f"{parts.first_convolution(net)}.weight"
    given, expected = state.get(first), net.state_dict()[first].shape
    if given is None or given.ndim != 4 or (given.shape[1], expected[1]) != (1, 3):
        return state
    told.append(f"{first} is for grey images: each of three colours gets a third of it")
    return state | {first: given.expand(-1, 3, -1, -1) / 3}


def _without_prefix(net: nn.Module, state: parts.State, told: list[str]) -> parts.State:
    """What lies under the prefix with which most of the network is there, if it is not without; or
    without that of WRAPPED which all names have, if the network has other names."""
    wanted = {n for n in net.state_dict() if not models.in_head(net, n)}
    first = next(n for n in net.state_dict() if n in wanted)
    prefixes = {name.removesuffix(first) for name in state if name.endswith(f".{first}")}
    if first in state:
        return state
    prefixes = prefixes or {p for p in WRAPPED if all(name.startswith(p) for name in state)}
    if not prefixes:
        return state
    there = {p: sum(f"{p}{name}" in state for name in wanted) for p in sorted(prefixes)}
    prefix = max(there, key=there.__getitem__)
    told.append(f"names without their prefix {prefix!r}")
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def _respelt(state: parts.State, told: list[str]) -> parts.State:
    """DenseNets as torchvision published them: `norm.1` is now `norm1`."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    if not any(old.search(name) for name in state):
        return state
    told.append("names of layers as DenseNets have them now: norm1 for norm.1")
    return {old.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def _renamed(net: nn.Module, model: str, state: parts.State, told: list[str]) -> parts.State:
    """A state of a timm network under timm's names, where it has those of torchvision, or of the
    places where such networks were first published."""
    wanted = {n for n in net.state_dict() if not models.in_head(net, n)}
    if model in models.ours() or wanted <= state.keys():
        return state
    theirs = _torchvisions(model, state)
    if theirs is not None:
        return _same_function(model, *theirs, told)
    published = filtered(net, state)
    if published is None or not wanted <= published.keys():
        return state
    told.append("names as timm has them")
    return published


def _same_function(
    model: str, theirs: nn.Module, expects: parts.Plan, told: list[str]
) -> parts.State:
    """The state under timm's names with which its network is the same function of pixels as
    torchvision's, `theirs`: tensors of one shape come in one order, or timm renames them itself.

    Raises ValueError where neither is, as where the two differ in a constant.
    """
    last = [weight for weight in theirs.parameters() if weight.dim() > 1][-1]
    generator = torch.Generator().manual_seed(0)
    # One that lets every feature through: that of the file may be zeros.
    nn.init.normal_(last, std=0.1, generator=generator)
    ours = models.build(model, outputs=len(last)).eval()
    # torchvision's windows fit this size.
    pixels = torch.randint(256, (2, 3, 224, 224), generator=generator, dtype=torch.uint8)
    state, differences = theirs.state_dict(), list[float]()
    for found in (_in_order(state, ours.state_dict()), filtered(ours, state)):
        if found is None or not _fits(ours, found):
            continue
        found = _recoloured(ours, found, expects.colours)
        ours.load_state_dict({name: found[name] for name in ours.state_dict()})
        with torch.no_grad():
            expected = theirs(models.normalise(pixels, parts.named(theirs, expects)))
            got = ours(models.normalise(pixels, ours))
        differences.append(float((got - expected).abs().max() / expected.abs().max()))
        if differences[-1] <= SAME:
            told.append("names as timm has them, for torchvision's: the same outputs of images")
            return found
    raise ValueError(
        f"torchvision's weights make another function of timm's {model}: outputs differ by "
        f"{min(differences, default=math.nan):.1g} of their size"
    )


def _recoloured(
    net: nn.Module, state: parts.State, given: tuple[parts.Colours, parts.Colours]
) -> parts.State:
    """The state whose first layer does with pixels as `net` has them normalised what it did with
    those of the `given` mean and deviation; unchanged where it has no bias to take that up."""
    own, first = parts.plan(net).colours, parts.first_convolution(net)
    if own == given or f"{first}.bias" not in state:
        return state
    (mean, deviation), (given_mean, given_deviation) = (
        [torch.tensor(values).view(3, 1, 1) for values in each] for each in (own, given)
    )
    weight, bias = state[f"{first}.weight"], state[f"{first}.bias"]
    shift = (weight * ((mean - given_mean) / given_deviation)).sum((1, 2, 3))
    scaled = {"weight": weight * (deviation / given_deviation), "bias": bias + shift}
    return state | {f"{first}.{name}": tensor for name, tensor in scaled.items()}


def _fits(net: nn.Module, state: parts.State) -> bool:
    return all(n in state and state[n].shape == t.shape for n, t in net.state_dict().items())


def _in_order(theirs: parts.State, ours: parts.State) -> parts.State | None:
    """Each of our tensors from the first of theirs that is left and has its shape."""
    left, found = dict(theirs), parts.State()
    for name, tensor in ours.items():
        shape = tensor.squeeze().shape
        other = next((n for n, t in left.items() if t.squeeze().shape == shape), None)
        if other is None:
            return None
        found[name] = left.pop(other).reshape(tensor.shape)
    return found


def filtered(net: nn.Module, state: parts.State) -> parts.State | None:
    """A state as timm reads it into one of its networks: names of the places where networks were
    first published are renamed, embeddings of positions and windows interpolated to this one's.

    None where timm has no such reader, or it cannot read this state. Kernels of another size, which
    timm would interpolate too, are left as they are: they are of another network.
    """
    module = sys.modules[type(net).__module__]
    reader = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    if reader is None or not module.__name__.startswith("timm."):
        return None
    arguments = (net,) if "model" in inspect.signature(reader).parameters else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm's own use of torch
        try:
            found = dict(reader(dict(state), *arguments))
        except Exception:  # each reader fails in its own way on what is not for it
            return None
    kernels = {n: t for n, t in state.items() if n in found and n.endswith("weight")}
    return found | {n: t for n, t in kernels.items() if t.shape != found[n].shape}


def _torchvisions(name: str, state: parts.State) -> tuple[nn.Module, parts.Plan] | None:
    """The network with this state as torchvision builds it, and the pixels that it expects, if it
    is a state of torchvision's."""
    import torchvision  # slow to load, and only needed here

    outputs = [len(tensor) for tensor in state.values() if tensor.dim() > 1]
    for theirs in torchvision.models.list_models(module=torchvision.models):
        if terms.spelt(theirs) != name or not outputs:
            continue
        net = torchvision.models.get_model(theirs, weights=None, num_classes=outputs[-1])
        shapes = {n: tensor.shape for n, tensor in net.state_dict().items()}
        if shapes == {n: tensor.shape for n, tensor in state.items()}:
            net.load_state_dict(state)
            told = torchvision.models.get_model_weights(theirs).DEFAULT.transforms()
            colours = (tuple(told.mean), tuple(told.std))
            return net.eval(), parts.Plan({}, (), colours=colours)
    return None

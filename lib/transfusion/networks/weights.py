"""Pretrained weights: read from people's files, checked against the network, kept by content."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from transfusion import config, store, terms
from transfusion.networks import models, parts

State = dict[str, Tensor]


# Where people keep a state among other things, in the order of preference.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "teacher", "student"),
    *("ema", "backbone"),
)
# Two nets that are the same function differ by this share of their outputs, in float32, at most.
SAME = 1e-5
WRAPPED = ("module.", "model.", "backbone.", "net.", "network.")
# Classifiers beside the last one, by which GoogLeNet and Inception-v3 were trained.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


def fit_source(net: nn.Module, source: State, wanted: set[str] | None = None) -> State:
    """The wanted tensors of a source; None: all but the classifier, and it may have no others.

    Raises ValueError listing what is missing or has another shape.
    """
    state, surplus = net.state_dict(), list[str]()
    source = _resized(net, source)
    if wanted is None:
        wanted = {n for n in state if not models.in_head(net, n)}
        apart = (*(f"{head}." for head in parts.plan(net).head), *AUXILIARY)
        surplus = [n for n in source if n not in state and not n.startswith(apart)]
    absent = {n for n in wanted - source.keys() if not n.endswith("batches_tracked")}
    given = sorted(wanted & source.keys())
    problems = [f"missing: {name}" for name in sorted(absent)]
    problems += [f"not in the network: {name}" for name in surplus]
    problems += [
        f"{name}: expected {tuple(state[name].shape)}, got {tuple(source[name].shape)}"
        for name in given
        if state[name].shape != source[name].shape
    ]
    if problems:
        raise ValueError(_misfit(net, source, problems))
    return {name: source[name] for name in given}


def _resized(net: nn.Module, source: State) -> State:
    """Embeddings of positions and of windows for another size of images, interpolated as timm does
    it; of a network that is not timm's nothing changes."""
    state = net.state_dict()
    if all(state[n].shape == t.shape for n, t in source.items() if n in state):
        return source
    from transfusion.networks import others

    return others.filtered(net, source) or source


def _misfit(net: nn.Module, source: State, problems: list[str]) -> str:
    """What does not fit, and names of both sides."""
    more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
    listed = "\n  ".join(problems[:10])
    ours, theirs = (", ".join([*names][:3]) for names in (net.state_dict(), source))
    return (
        f"weights do not fit the network in {len(problems)} tensors "
        f"(the classifier {' and '.join(parts.plan(net).head)} may differ):\n  {listed}{more}\n"
        f"The network has {ours}, ...; the weights have {theirs}, ..."
    )


def import_weights(
    model: str, path: Path | None, name: str = "imagenet", told: list[str] | None = None
) -> str:
    """Check and keep pretrained weights in the cache; returns their full name `name@digest`.

    `path` is a local file (see `read_weights`); None downloads torchvision's or timm's own. What
    was done to make them fit is added to `told`. Raises ValueError where they do not fit the model,
    or hold what is no number.
    """
    told = [] if told is None else told
    config.plain(name)
    model = terms.spelt(model)
    net = models.build(model, outputs=1)
    state = read_weights(path, told) if path else _download(model)
    fitting = _renamed(net, model, adapted(net, state, told), told)
    colours = parts.plan(net).colours
    if path and colours != parts.IMAGENET:
        told.append(
            "pixels are normalised by means {} and deviations {}, as the network's published "
            "weights expect them; to others belongs another name of timm's".format(*colours)
        )
    body = {n: tensor.contiguous() for n, tensor in fit_source(net, fitting).items()}
    _check_finite(body)
    raw = save(body)
    full = f"{name}@{hashlib.sha256(raw).hexdigest()[:12]}"
    with store.atomic(store.weights_file(full)) as temporary:
        temporary.write_bytes(raw)
    return full


def adapted(net: nn.Module, state: State, told: list[str]) -> State:
    """A state under the network's names: old spellings, prefixes of what wrapped it, and a first
    layer for grey images are made to fit, and that is told."""
    state = _respelt(_without_prefix(net, state, told), told)
    first = f"{parts.first_convolution(net)}.weight"
    given, expected = state.get(first), net.state_dict()[first].shape
    if given is None or given.ndim != 4 or (given.shape[1], expected[1]) != (1, 3):
        return state
    told.append(f"{first} is for grey images: each of three colours gets a third of it")
    return state | {first: given.expand(-1, 3, -1, -1) / 3}


def _without_prefix(net: nn.Module, state: State, told: list[str]) -> State:
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


def _respelt(state: State, told: list[str]) -> State:
    """DenseNets as torchvision published them: `norm.1` is now `norm1`."""
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    if not any(old.search(name) for name in state):
        return state
    told.append("names of layers as DenseNets have them now: norm1 for norm.1")
    return {old.sub(r"\1\2", name): tensor for name, tensor in state.items()}


def _renamed(net: nn.Module, model: str, state: State, told: list[str]) -> State:
    """A state of a timm network under timm's names, where it has those of torchvision, or of the
    places where such networks were first published."""
    wanted = {n for n in net.state_dict() if not models.in_head(net, n)}
    if model in models.ours() or wanted <= state.keys():
        return state
    from transfusion.networks import others

    theirs = others.torchvisions(model, state)
    if theirs is not None:
        return _same_function(model, *theirs, told)
    published = others.filtered(net, state)
    if published is None or not wanted <= published.keys():
        return state
    told.append("names as timm has them")
    return published


def _same_function(model: str, theirs: nn.Module, expects: parts.Plan, told: list[str]) -> State:
    """The state under timm's names with which its network is the same function of pixels as
    torchvision's, `theirs`: tensors of one shape come in one order, or timm renames them itself.

    Raises ValueError where neither is, as where the two differ in a constant.
    """
    from transfusion.networks import others

    last = [weight for weight in theirs.parameters() if weight.dim() > 1][-1]
    generator = torch.Generator().manual_seed(0)
    # One that lets every feature through: that of the file may be zeros.
    nn.init.normal_(last, std=0.1, generator=generator)
    ours = models.build(model, outputs=len(last)).eval()
    # torchvision's windows fit this size.
    pixels = torch.randint(256, (2, 3, 224, 224), generator=generator, dtype=torch.uint8)
    state, differences = theirs.state_dict(), list[float]()
    for found in (_in_order(state, ours.state_dict()), others.filtered(ours, state)):
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


def _recoloured(net: nn.Module, state: State, given: tuple[parts.Colours, parts.Colours]) -> State:
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


def _fits(net: nn.Module, state: State) -> bool:
    return all(n in state and state[n].shape == t.shape for n, t in net.state_dict().items())


def _in_order(theirs: State, ours: State) -> State | None:
    """Each of our tensors from the first of theirs that is left and has its shape."""
    left, found = dict(theirs), State()
    for name, tensor in ours.items():
        shape = tensor.squeeze().shape
        other = next((n for n, t in left.items() if t.squeeze().shape == shape), None)
        if other is None:
            return None
        found[name] = left.pop(other).reshape(tensor.shape)
    return found


def _check_finite(state: State) -> None:
    bad = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"weights that are no numbers (NaN, infinite): {', '.join(bad[:5])}{more}")


def _download(model: str) -> State:
    from transfusion.networks import classics, others

    if model in classics.names():
        return classics.download(model)
    return others.download(model)


def named_weights(full: str) -> State:
    """Weights kept by `import_weights`; raises ValueError saying how to get missing ones."""
    path = store.weights_file(full)
    known = sorted(p.name.removesuffix(".safetensors") for p in path.parent.glob("*.safetensors"))
    if not path.exists():
        raise ValueError(
            f"no pretrained weights {full!r} in the cache; there: {', '.join(known) or 'none'}. "
            "Import them: transfusion weights MODEL [--from FILE]"
        )
    store.verify_weights(path)
    return read_weights(path)


def read_weights(path: Path, told: list[str] | None = None) -> State:
    """Weights from .pth, .pt, .ckpt or .bin (weights only), .safetensors, its index of several
    files (.safetensors.index.json), or .npz; float32 where floating.

    Of a checkpoint that holds more, the state that WRAPPERS name is taken, which is `told`. Raises
    FileNotFoundError, or ValueError for another ending, an unreadable file, or one without weights.
    """
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    reader = config.one_of(path.suffix, READERS, "weights format")
    try:
        held = READERS[reader](path)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable {reader} file: {error}") from error
    state = _state(held, path, [] if told is None else told)
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _state(held: Any, path: Path, told: list[str]) -> State:
    """The tensors by name, from within whatever was saved around them."""
    place = ""
    while isinstance(held, Mapping) and not any(isinstance(v, Tensor) for v in held.values()):
        inner = {k: v for k, v in held.items() if isinstance(v, Mapping) and k != "optimizer"}
        name = next((n for n in [*WRAPPERS, *inner] if n in inner), None)
        if name is None:
            break
        held, place = inner[name], f"{place}[{name!r}]"
    if not isinstance(held, Mapping):
        raise ValueError(f"{path} holds no weights by name, but a {type(held).__name__}")
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(map(repr, held)) or "nothing"
        raise ValueError(f"{path} holds no weights by name; it has {keys}")
    if place:
        told.append(f"the weights are those under {place}")
    return tensors


def _read_npz(path: Path) -> State:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_index(path: Path) -> State:
    """The files that an index of safetensors names, beside it."""
    names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    parts = [load_file(path.with_name(name)) for name in names]
    return {name: tensor for part in parts for name, tensor in part.items()}


READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin"), _read_torch),
    ".safetensors": load_file,
    ".npz": _read_npz,
    ".json": _read_index,
}

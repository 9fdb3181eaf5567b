"""Pretrained weights: read from people's files, checked against the network, kept by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from transfusion import config, store, terms
from transfusion.networks import models, parts, renaming

# Where people keep a state among other things, in the order of preference.
WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "teacher", "student"),
    *("ema", "backbone"),
)
# Classifiers beside the last one, by which GoogLeNet and Inception-v3 were trained.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


def fit_source(net: nn.Module, source: parts.State, wanted: set[str] | None = None) -> parts.State:
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


def _resized(net: nn.Module, source: parts.State) -> parts.State:
    """Embeddings of positions and of windows for another size of images, interpolated as timm does
    it; of a network that is not timm's nothing changes."""
    state = net.state_dict()
    if all(state[n].shape == t.shape for n, t in source.items() if n in state):
        return source
    return renaming.filtered(net, source) or source


def _misfit(net: nn.Module, source: parts.State, problems: list[str]) -> str:
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
    fitting = renaming.adapted(net, model, state, told)
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


def _check_finite(state: parts.State) -> None:
    bad = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"weights that are no numbers (NaN, infinite): {', '.join(bad[:5])}{more}")


def _download(model: str) -> parts.State:
    from transfusion.networks import classics, others

    if model in classics.names():
        return classics.download(model)
    return others.download(model)


def named_weights(full: str) -> parts.State:
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


def read_weights(path: Path, told: list[str] | None = None) -> parts.State:
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


def _state(held: Any, path: Path, told: list[str]) -> parts.State:
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


def _read_npz(path: Path) -> parts.State:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_index(path: Path) -> parts.State:
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

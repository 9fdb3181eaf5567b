"""Pretrained weights: read from people's files, checked against the network, kept by content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from transfusion import config, store
from transfusion.networks import models

State = dict[str, Tensor]


def fit_source(net: nn.Module, source: State, wanted: set[str] | None = None) -> State:
    """The wanted tensors of a source; None: all but the classifier, and it may have no others.

    Raises ValueError listing what is missing or has another shape.
    """
    state = net.state_dict()
    surplus: list[str] = []
    if wanted is None:
        wanted = {n for n in state if not models.in_head(net, n)}
        surplus = [n for n in source if n not in state and not models.in_head(net, n)]
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
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        listed = "\n  ".join(problems[:10])
        raise ValueError(
            f"weights do not fit the network in {len(problems)} tensors "
            f"(the classifier {models.head(net)!r} may differ):\n  {listed}{more}"
        )
    return {name: source[name] for name in given}


def import_weights(model: str, path: Path | None, name: str = "imagenet") -> str:
    """Check and keep pretrained weights in the cache; returns their full name `name@digest`.

    `path` is a local file (see `read_weights`); None downloads torchvision's default weights.
    Raises ValueError where they do not fit the model.
    """
    net = models.build(model, outputs=1)
    state = read_weights(path) if path else _download(model)
    body = {n: tensor.contiguous() for n, tensor in fit_source(net, state).items()}
    raw = save(body)
    full = f"{name}@{hashlib.sha256(raw).hexdigest()[:12]}"
    with store.atomic(store.weights_file(full)) as temporary:
        temporary.write_bytes(raw)
    return full


def _download(model: str) -> State:
    from torchvision.models import get_model_weights

    weights = get_model_weights(model).DEFAULT
    return weights.get_state_dict(check_hash=True)


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


def read_weights(path: Path) -> State:
    """Weights from .pth or .pt (weights only), .safetensors or .npz; float32 where floating.

    Raises FileNotFoundError, or ValueError for another ending or an unreadable file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    reader = config.one_of(path.suffix, READERS, "weights format")
    try:
        state = READERS[reader](path)
    except Exception as error:
        raise ValueError(f"{path} is not a readable {reader} file: {error}") from error
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _read_npz(path: Path) -> State:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _read_torch(path: Path) -> State:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


READERS: dict[str, Callable[[Path], State]] = {
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".safetensors": load_file,
    ".npz": _read_npz,
}

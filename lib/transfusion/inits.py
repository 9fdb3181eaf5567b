"""How a network starts: the paper's initialisations in one file.

Each is a function of (fresh network, source state, generator) that changes the network in place
and returns, for every tensor of its state, whether it was `copied`, `redrawn` or `kept` as built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import load_file, save
from torch import Tensor, nn

from transfusion import config, models, store

State = dict[str, Tensor]
Record = dict[str, str]


def apply(name: str, net: nn.Module, *, source: State | None = None, seed: int = 0) -> Record:
    """Initialise `net` in place by name; returns what became of each tensor.

    Raises ValueError for an unknown name, a missing source, or a source that does not fit (the
    classifier alone may differ).
    """
    config.one_of(name, INITS, "init")
    if name != "random":
        if source is None:
            raise ValueError(f"init {name!r} needs pretrained weights, got no source")
        source = fit_source(net, source)
    generator = torch.Generator().manual_seed(seed)
    record = {tensor: "kept" for tensor in net.state_dict()}
    with torch.no_grad():
        return record | INITS[name](net, source or {}, generator)


def random(net: nn.Module, source: State, generator: torch.Generator) -> Record:
    """He-normal convolutions, batch norm at (1, 0): the network as built."""
    return {}


def transfer(net: nn.Module, source: State, generator: torch.Generator) -> Record:
    """Every pretrained tensor, batch-norm statistics included; a new classifier (section 3)."""
    for name, tensor in net.state_dict().items():
        if name in source:
            tensor.copy_(source[name])
    return dict.fromkeys(source, "copied")


def mean_var(net: nn.Module, source: State, generator: torch.Generator) -> Record:
    """Mean Var (section 5): i.i.d. normal weights with each pretrained tensor's mean and deviation.

    Scale is kept, features are destroyed. Convolution and linear weights and biases are redrawn;
    batch norm starts at (1, 0), the reading of Matsoukas et al. 2022, since the paper's own
    handling was not recovered.
    """
    names = [name for name in _weight_names(net) if name in source]
    state = net.state_dict()
    for name in names:
        mean, deviation = source[name].double().mean(), source[name].double().std(correction=0)
        noise = torch.randn(source[name].shape, generator=generator, dtype=torch.float64)
        state[name].copy_(mean + deviation * noise)
    return dict.fromkeys(names, "redrawn")


INITS = {"random": random, "transfer": transfer, "mean_var": mean_var}


def _weight_names(net: nn.Module) -> list[str]:
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return [
        f"{module_name}.{name}"
        for module_name, module in net.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    ]


def fit_source(net: nn.Module, source: State) -> State:
    """The source's tensors without its classifier; raises ValueError listing what does not fit."""
    state = net.state_dict()
    body = {n for n in state if not models.in_head(net, n) and not n.endswith("batches_tracked")}
    given = {n for n in source if not models.in_head(net, n)} & set(state)
    surplus = [n for n in source if n not in state and not models.in_head(net, n)]
    problems = [f"missing: {name}" for name in sorted(body - given)]
    problems += [f"not in the network: {name}" for name in surplus]
    problems += [
        f"{name}: expected {tuple(state[name].shape)}, got {tuple(source[name].shape)}"
        for name in sorted(given)
        if state[name].shape != source[name].shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        listed = "\n  ".join(problems[:10])
        raise ValueError(
            f"weights do not fit the network in {len(problems)} tensors "
            f"(only the classifier {net.head_name!r} may differ):\n  {listed}{more}"
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
    weights = torchvision.models.get_model_weights(model).DEFAULT
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
    if store.checksum(path)[:12] != full.rpartition("@")[2]:
        raise store.Damaged(f"{path} is not the file its name says; import it again")
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

"""How a network starts: the paper's initialisations in one file.

Each is a function of (fresh network, source state, generator) that changes the network in place
and returns, for the tensors that it touched, whether they were `copied` or `redrawn`; `apply` adds
those `kept` as built. The source holds what `needed` names, no more. `random` keeps all: He-normal
convolutions, batch norm at (1, 0). To add one: a row of `terms.INITS`, and its function here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

from transfusion import config, terms
from transfusion.networks import freezing, gabors, models, parts, weights

Record = dict[str, str]
TAKEN = ["net", "source", "generator"]
Function = Callable[[nn.Module, parts.State, torch.Generator], Record]


def apply(name: str, net: nn.Module, *, source: parts.State | None = None, seed: int = 0) -> Record:
    """Initialise `net` in place by name, `transfer` or `transfusion:block2`.

    Returns what became of each tensor. Raises ValueError for an unknown name or block, a missing
    source, or a source that lacks what this init takes or has it in another shape.
    """
    start, _, block = config.init_name(name).partition(":")
    generator = torch.Generator().manual_seed(seed)
    record = {tensor: "kept" for tensor in net.state_dict()}
    if start == "random":
        return record
    if source is None:
        raise ValueError(f"init {name!r} needs pretrained weights, got no source")
    if start == "frozen":
        freezing.freeze(net, models.upto(net, block))
    with torch.no_grad():
        taken = weights.fit_source(net, source, needed(name, net))
        return record | _function(name)(net, taken, generator)


def needed(name: str, net: nn.Module) -> set[str]:
    """Names of the tensors that an init takes from its source (`takes` and `blocks` in `terms`)."""
    start, block = terms.start(config.init_name(name)), name.partition(":")[2]
    every = list(models.blocks(net))
    lowest = models.upto(net, block or every[-1])
    chosen = {"up to": lowest, "from": every[len(lowest) - 1 :], "alone": lowest[-1:]}
    names = models.tensors(net, chosen.get(start.blocks, every))
    own = _weight_names(net)
    takes = {
        "nothing": set(),
        "all": names,
        "weights": names.intersection(own),
        "all but weights": names.difference(own),
        "trained": names & dict(net.named_parameters()).keys(),  # no running statistics
        "first weights": {_first_weights(net)} if start.takes == "first weights" else set(),
    }
    return takes[start.takes]


def _function(name: str) -> Function:
    """What `terms` says that an init does."""
    wanted = terms.start(name).does or name.partition(":")[0]
    found = globals().get(wanted)
    if not inspect.isfunction(found) or [*inspect.signature(found).parameters] != TAKEN:
        raise ValueError(f"init {name!r} has no function {wanted}(net, source, generator) here")
    return found


# --- what starts from every pretrained tensor ------------------------------------------------


def transfer(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """Every pretrained tensor, batch-norm statistics included; a new classifier (section 3).

    `frozen:block` is the same, but the blocks up to that one are not trained; of the last block
    this is fixed feature extraction, only the classifier learns (E7).
    """
    return _copy(net, source)


# --- what keeps moments alone ----------------------------------------------------------------


def mean_var(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """Mean Var (section 5): i.i.d. normal weights with each pretrained tensor's mean and deviation.

    Scale is kept, features are destroyed. Weights and biases are redrawn, of convolutions, linear
    layers, attention and embeddings, of all blocks or of those up to one (`mean_var:conv1`); batch
    norm and its kin start at (1, 0), the reading of Matsoukas et al. 2022, since the paper's own
    handling was not recovered.
    """
    return _redraw(net, source, generator, [n for n in _weight_names(net) if n in source])


def mean_var_bn_copied(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """Mean Var with the pretrained batch norm: scale, shift and statistics (control, E14)."""
    return mean_var(net, source, generator) | batch_norm(net, source, generator)


def mean_var_bn_redrawn(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """Mean Var that redraws batch norm's scale and shift too (control, E14).

    Statistics stay those of no data: a redrawn variance could be negative.
    """
    return _redraw(net, source, generator, list(source))


def permuted(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """Each tensor of pretrained weights in random order: all its moments, no feature (E14)."""
    state = net.state_dict()
    names = [name for name in _weight_names(net) if name in source]
    for name in names:
        order = torch.randperm(source[name].numel(), generator=generator)
        state[name].copy_(source[name].flatten()[order].view_as(source[name]))
    return dict.fromkeys(names, "redrawn")


def scale_matched(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """The random weights as built, each tensor scaled to the pretrained deviation (E14).

    Beside Mean Var it tells the part of the scale from that of the mean. What is built alike
    everywhere, as biases and the scales of layers are, has no deviation to scale, and stays.
    """
    state = net.state_dict()
    names = [n for n in _weight_names(net) if n in source and state[n].min() < state[n].max()]
    for name in names:
        state[name].mul_(source[name].std(correction=0) / state[name].std(correction=0))
    return dict.fromkeys(names, "redrawn")


def batch_norm(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """Random weights under the pretrained batch norm (control, E14)."""
    weights = set(_weight_names(net))
    return _copy(net, {name: t for name, t in source.items() if name not in weights})


# --- what takes some of the blocks -----------------------------------------------------------


def transfusion(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """Weight transfusion (section 5.1): pretrained blocks up to one, the rest random; all train.

    Batch norm goes with its block, statistics included. Also `suffix:block`, from one block on, and
    `only:block`, that one alone (E16): they differ in what `needed` asks of the source.
    """
    return _copy(net, source)


def gabor(net: nn.Module, source: parts.State, generator: torch.Generator) -> Record:
    """First convolution of synthetic Gabors (section 5.2), the rest random.

    The bank of `gabors.gabor_bank`, grey, at the mean and deviation of the pretrained filters.
    """
    name = _first_weights(net)
    weight, given = net.state_dict()[name], source[name]
    bank = torch.from_numpy(gabors.gabor_bank(len(weight), weight.shape[-1]))[:, None]
    bank = bank.expand(weight.shape).float()
    bank = (bank - bank.mean()) / bank.std(correction=0)
    weight.copy_(given.mean() + given.std(correction=0) * bank)
    return {name: "redrawn"}


def _copy(net: nn.Module, source: parts.State) -> Record:
    state = net.state_dict()
    for name in source:
        state[name].copy_(source[name])
    return dict.fromkeys(source, "copied")


def _redraw(
    net: nn.Module, source: parts.State, generator: torch.Generator, names: list[str]
) -> Record:
    state = net.state_dict()
    for name in names:
        mean, deviation = source[name].double().mean(), source[name].double().std(correction=0)
        noise = torch.randn(source[name].shape, generator=generator, dtype=torch.float64)
        state[name].copy_(mean + deviation * noise)
    return dict.fromkeys(names, "redrawn")


def _weight_names(net: nn.Module) -> list[str]:
    """Weights and biases in order: all that is trained but in normalisation, so those of attention
    and of embeddings too."""
    owner = net.get_submodule
    return [n for n, _ in net.named_parameters() if not _normalises(owner(n.rpartition(".")[0]))]


def _normalises(module: nn.Module) -> bool:
    """By the name of its kind, as there are many; what holds layers of its own is none."""
    own = len([*module.parameters(recurse=False)]) == len([*module.parameters()])
    return own and "Norm" in type(module).__name__


def _first_weights(net: nn.Module) -> str:
    return f"{parts.first_convolution(net)}.weight"

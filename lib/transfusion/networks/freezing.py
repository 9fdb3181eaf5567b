"""Blocks that stay as they are while the rest of a network trains."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import nn

from transfusion.networks import parts

FROZEN = "_is_frozen"  # what the kinds of frozen modules have


def freeze(net: nn.Module, chosen: Iterable[str]) -> None:
    """Keep these blocks as they are in training: batch-norm statistics too, and nothing in them is
    left to chance, so that an image has the same features in every pass."""
    chosen = set(chosen)
    names, block_of = parts.tensors(net, chosen), parts.place(net)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in names)
    for name, module in list(net.named_modules()):
        if name and name not in parts.plan(net).head and block_of(name) in chosen:
            kind: Any = type(module)
            module.__class__ = _frozen(kind)
            module.train()


@cache
def _frozen(kind: type[nn.Module]) -> type[nn.Module]:
    """A kind of module that stays in evaluation while the rest of a network trains."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return kind.train(self, False)

    return type(f"Frozen{kind.__name__}", (kind,), {"train": train, FROZEN: True})


def is_frozen(module: nn.Module) -> bool:
    return getattr(module, FROZEN, False)

"""What networks cost, counted once and kept: counting takes torch, which reading has not.

`costs.csv` has those of the studies; of another network it is counted when it is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import pandas as pd


def parameters(model: str) -> int:
    """Trainable parameters of a network with five outputs."""
    known = _table().query("model == @model")["parameters"]
    return int(known.iloc[0]) if len(known) else _models().parameters(model)


def flops(model: str, size: int) -> int:
    """Floating-point operations of one forward pass on one image of `size` pixels."""
    return _of("flops", model, size)


def memory(model: str, size: int) -> int:
    """Bytes that the backward pass of one image needs kept from the forward pass, in float32."""
    return _of("memory", model, size)


@cache
def _of(what: str, model: str, size: int) -> int:
    known = _table().query("model == @model and size == @size")[what]
    return int(known.iloc[0]) if len(known) else getattr(_models(), what)(model, size)


@cache
def _table() -> pd.DataFrame:
    return pd.read_csv(str(files("transfusion.networks") / "costs.csv"))


def _models():
    from transfusion.networks import models

    return models

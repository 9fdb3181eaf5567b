"""Transfusion, reproduced. The public names; modules are loaded when they are first used."""

import importlib

__version__ = "0.1.0"
PUBLIC = {
    **dict.fromkeys(["Comparison", "Data", "Init", "Optim", "Run"], "config"),
    "activations": "similarity.activations",
    "comparison": "similarity.comparison",
    "data": "images",
    "inits": "networks.inits",
    "models": "networks.models",
    "train": "training.fit",
}
__all__ = [
    "Comparison", "Data", "Init", "Optim", "Run",
    "activations", "data", "experiments", "inits", "models", "similarity", "store", "train",
]  # fmt: skip


def __getattr__(name: str):
    if name in ("Comparison", "Data", "Init", "Optim", "Run"):
        return getattr(importlib.import_module("transfusion.config"), name)
    if name in {*PUBLIC, *__all__}:
        return importlib.import_module(f"transfusion.{PUBLIC.get(name, name)}")
    raise AttributeError(f"module 'transfusion' has no attribute {name!r}")

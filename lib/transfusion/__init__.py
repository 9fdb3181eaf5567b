"""Transfusion, reproduced. The public names; modules are loaded when they are first used."""

import importlib

__version__ = "0.1.0"
__all__ = [
    "Comparison", "Data", "Init", "Optim", "Run",
    "activations", "data", "experiments", "inits", "models", "similarity", "store", "train",
]  # fmt: skip

SPECIFICATIONS = ("Comparison", "Data", "Init", "Optim", "Run")
# Short names of what lies deeper: the public ones, and some under which modules were known before.
ALIASES = {
    "activations": "similarity.activations",
    "cache": "studies.cache",
    "comparison": "similarity.comparison",
    "data": "images",
    "ingest": "images.ingest",
    "inits": "networks.inits",
    "models": "networks.models",
    "render": "studies.render",
    "report": "pages",
    "schedule": "studies.schedule",
    "train": "training.fit",
}


def __getattr__(name: str):
    if name in SPECIFICATIONS:
        return getattr(importlib.import_module("transfusion.config"), name)
    if name in ALIASES or name in __all__:
        return importlib.import_module(f"transfusion.{ALIASES.get(name, name)}")
    raise AttributeError(f"module 'transfusion' has no attribute {name!r}")

"""A study's files in `params`: its chapters, their parameters, and the runs that these ask for."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

from transfusion import config, store
from transfusion.config import Spec
from transfusion.experiments import plan
from transfusion.experiments.plan import CHAPTERS, WITHOUT_RUNS

# What the studies that the book shows are of; another goes by its name.
TITLES = {
    "cells": "blood cells",
    "chest": "pneumonia of children",
    "retina": "real retinas",
    "cxr": "NIH chest films",
    "quick": "drawn objects",
}


def studies() -> list[str]:
    return sorted(path.parent.name for path in (store.HOME / "params").glob("*/common.yml"))


def files(study: str, chapter: str) -> list[Path]:
    """The parameter files of a chapter, what a later one says wins.

    Raises ValueError for an unknown study, chapter or a study without that file.
    """
    config.one_of(study, studies(), "study")
    config.one_of(chapter, [*CHAPTERS, *WITHOUT_RUNS], "chapter")
    folder = store.HOME / "params" / study
    if not (folder / f"{chapter}.yml").exists():
        raise ValueError(
            f"study {study!r} has no {chapter}.yml; it has {', '.join(chapters(study))}"
        )
    common = [] if chapter in WITHOUT_RUNS else [folder / "common.yml"]
    return [*common, folder / f"{chapter}.yml"]


def knobs(study: str, chapter: str) -> dict:
    """What the parameter files of a chapter say; raises ValueError as `files` does."""
    values: dict = {}
    for path in files(study, chapter):
        values |= read_yaml(path)
    if values.get("study") != study:
        raise ValueError(f"params/{study} says study: {values.get('study')!r}, expected {study!r}")
    return values


@cache
def _loader() -> Any:
    """YAML whose 1e-3 is a number, as in YAML 1.2."""
    import yaml  # not in a box, which loads this module, too

    loader: Any = type("Loader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
    number = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return loader


def read_yaml(path: Path) -> dict:
    """A flat parameter file; raises ValueError where it is not one."""
    import yaml

    try:
        values = yaml.load(path.read_text(), Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if not isinstance(values or {}, dict):
        raise ValueError(f"{path}: expected `name: value` lines, got a {type(values).__name__}")
    return values or {}


def chapters(study: str) -> list[str]:
    """The chapters that a study has parameters for, in the order of the book."""
    folder = store.HOME / "params" / study
    return [c for c in (*CHAPTERS, *WITHOUT_RUNS) if (folder / f"{c}.yml").exists()]


def of_all_machines(study: str, chapter: str) -> list[Spec]:
    """The same, in each precision where it is left to the machine: a cache may serve several."""
    found = knobs(study, chapter)
    chosen = get_args(config.Native) if found.get("precision") == "auto" else [None]
    return [
        spec
        for precision in chosen
        for spec in plan.runs(chapter, **found | ({"precision": precision} if precision else {}))
    ]


def specs(study: str, chapter: str) -> list[Spec]:
    """The runs, or comparisons of them, that a chapter of a study shows."""
    return plan.runs(chapter, **knobs(study, chapter))

"""A study: its parameter files, the groups that its runs are computed in, what is done and to come.

No torch is imported here: a batch job reads this again before it starts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import xarray as xr
import yaml

from transfusion import config, experiments, machine, records, schedule, store
from transfusion.config import Spec
from transfusion.experiments import CHAPTERS, WITHOUT_RUNS

# What the studies that the book shows are of; another goes by its name.
TITLES = {
    "cells": "blood cells",
    "chest": "pneumonia of children",
    "retina": "real retinas",
    "cxr": "NIH chest films",
    "quick": "drawn objects",
}
# Operations a second that `plan` reckons with: a core with bfloat16 (float32 alone and older
# processors do less), and an H200 with ten trainings at once, of CBR networks and ResNet-50 at 48
# and 64 px, which did 5.2e15 in 137 s.
CORE, GPU = 2e11, 3.8e13
LONG = 2e8  # pixels that a training sees: ten minutes of a core for ResNet-50, one for CBR-Tiny


# --- parameter files -------------------------------------------------------------------------


def studies() -> list[str]:
    return sorted(path.parent.name for path in (store.HOME / "params").glob("*/common.yml"))


def files(study: str, chapter: str) -> list[Path]:
    """The parameter files of a chapter, in the order in which papermill would join them.

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


def parameters(study: str, chapter: str) -> dict:
    """What the parameter files of a chapter say; raises ValueError as `files` does."""
    values: dict = {}
    for path in files(study, chapter):
        values |= read_yaml(path)
    if values.get("study") != study:
        raise ValueError(f"params/{study} says study: {values.get('study')!r}, expected {study!r}")
    return values


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose 1e-3 is a number, as in YAML 1.2."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict:
    """A flat parameter file; raises ValueError where it is not one."""
    try:
        values = yaml.load(path.read_text(), Loader=_Yaml)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if not isinstance(values or {}, dict):
        raise ValueError(f"{path}: expected `name: value` lines, got a {type(values).__name__}")
    return values or {}


def chapters(study: str) -> list[str]:
    """The chapters that a study has parameters for, in the order of the book."""
    folder = store.HOME / "params" / study
    return [c for c in (*CHAPTERS, *WITHOUT_RUNS) if (folder / f"{c}.yml").exists()]


def specs(study: str, chapter: str) -> list[Spec]:
    """The runs, or comparisons of them, that a chapter of a study shows."""
    return experiments.runs(chapter, **parameters(study, chapter))


def is_collected(study: str, chapter: str) -> bool:
    """Whether a chapter can be rendered without any run."""
    return experiments.all_recorded(study, specs(study, chapter))


def results(study: str, chapter: str) -> xr.Dataset:
    """The collected results of a chapter, made of the study's records where they are not yet, or
    where these or the parameters have changed since.

    Raises FileNotFoundError where some of its runs were not computed.
    """
    known = study in studies() and chapter in chapters(study)
    if known and is_collected(study, chapter):
        return experiments.collect(chapter, **parameters(study, chapter))
    return store.open(study, chapter)


def fingerprint(study: str, chapter: str) -> str:
    """What a page of a chapter's results depends on; `none` where it has none."""
    known = study in studies() and chapter in chapters(study)
    return experiments.fingerprint(study, chapter, specs(study, chapter) if known else [])


# --- groups ----------------------------------------------------------------------------------


class Group(NamedTuple):
    """What one job computes, in one process: all of one network that the same chapters need, or one
    long run."""

    specs: tuple[Spec, ...]
    needs: tuple[str, ...]  # other groups
    devices: int  # that each training shares


@cache
def groups(study: str) -> dict[str, Group]:
    """All groups of a study by name, whatever is done already.

    A chapter's runs fill whole groups, so that asking for one chapter computes nothing else. A
    name says nothing of the members, so one seed more leaves it as it is.
    """
    wanted: dict[str, tuple[Spec, list[str]]] = {}
    for chapter in chapters(study):
        for spec in everything(specs(study, chapter)):
            wanted.setdefault(spec.key, (spec, []))[1].append(chapter)
    members: dict[str, list[Spec]] = {}
    for spec, shown in wanted.values():
        members.setdefault(_group_name(spec, shown), []).append(spec)
    place = {spec.key: name for name, within in members.items() for spec in within}
    return {name: _group(name, within, place) for name, within in members.items()}


def everything(specs: Iterable[Spec]) -> Iterable[Spec]:
    """Specs and all runs that they need, each once, in the order of need."""
    found: dict[str, Spec] = {}
    for spec in specs:
        found |= {n.key: n for n in schedule.needs(spec) if not isinstance(n, config.Data)}
        found[spec.key] = spec
    return found.values()


def _group_name(spec: Spec, shown: list[str]) -> str:
    """`performance-1a2b3c`: the first chapter, and network and all chapters or the run's key."""
    if isinstance(spec, config.Run) and _is_long(spec):
        return f"{shown[0]}-{spec.key}"
    network = spec.runs[0].model if isinstance(spec, config.Comparison) else spec.model
    what: list = [network, sorted(set(shown))]
    if isinstance(spec, config.Run) and records.leaves_precision(spec):
        what.append(records.repetition(spec))  # one machine computes what is compared
    return f"{shown[0]}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:6]}"


def _is_long(run: config.Run) -> bool:
    """By the pixels that it sees: operations would take torch, at every start of a job."""
    pixels = run.optim.steps * run.optim.batch * run.data.size**2
    return pixels > LONG or run.optim.devices > 1


def _group(name: str, members: list[Spec], place: dict[str, str]) -> Group:
    needed = {place[need.key] for need in everything(members)} - {name}
    devices = [spec.optim.devices for spec in members if isinstance(spec, config.Run)]
    return Group(tuple(members), tuple(sorted(needed)), max(devices, default=1))


def groups_of(study: str, chapter: str) -> list[str]:
    """The groups that a chapter needs, none where its results are collected already."""
    if is_collected(study, chapter):
        return []
    needed = {spec.key for spec in everything(specs(study, chapter))}
    return [n for n, group in groups(study).items() if needed & {s.key for s in group.specs}]


def minutes(study: str, group: str) -> int:
    """How long a batch job for a group may take: three times as long as one core would, an hour at
    least. On a GPU that is ample."""
    operations = sum(map(schedule.cost, groups(study)[group].specs))
    return max(60, round(3 * operations / CORE / 60))


def done_file(study: str, group: str) -> Path:
    """Written last, when all runs of a group have ended; a run that failed by itself has, too."""
    return store.root() / "groups" / study / f"{group}.json"


def compute(study: str, *names: str, jobs: int | None = None) -> None:
    """Compute what groups miss, in this process or by `jobs` others, and write their done-files.

    Raises ValueError for an unknown group or what cannot run, schedule.Failed after finishing the
    rest if some of it broke down, with a log for each group that is not whole, OSError at once if
    nothing can be written.
    """
    chosen = {name: groups(study)[config.one_of(name, groups(study), "group")] for name in names}
    specs = [spec for group in chosen.values() for spec in group.specs]
    failed = None
    try:
        if jobs:
            schedule.compute(specs, study, jobs=jobs)
        else:
            machine.lease_gpus(max(group.devices for group in chosen.values()))
            schedule.compute_here(specs, study)
    except schedule.Failed as error:
        failed = error
    for name, group in chosen.items():
        _close(study, name, group, str(failed))
    if failed:
        raise failed


def _close(study: str, name: str, group: Group, error: str) -> None:
    """A group's done-file; or where it is not whole, what of the error is its own, as its log."""
    log = done_file(study, name).with_suffix(".log")
    if not schedule.missing(group.specs, study):
        store.write_json(done_file(study, name), {"results": _results(study, group)})
        return
    keys = {spec.key for spec in everything(group.specs)}
    lines = [line for line in error.splitlines() if keys & {*re.findall(r"\w+", line)}]
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("transfusion: " + "\n  ".join(line.strip() for line in lines or [error]) + "\n")


def _results(study: str, group: Group) -> dict[str, str]:
    """What a done-file vouches for: the checksum of each result's record."""
    names = records.recorded(study, group.specs)
    there = records.index(store.records_folder(study))
    return {
        spec.key: there[names[spec.key]].header["sha256"] if spec.key in names else "missing"
        for spec in group.specs
    }


def is_done(study: str, name: str) -> bool:
    """Whether a group's done-file is there and its results still are what it vouches for."""
    try:
        kept = json.loads(done_file(study, name).read_text())["results"]
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return kept == _results(study, groups(study)[name])


# --- what is done, and what is to come -------------------------------------------------------


def status(study: str) -> pd.DataFrame:
    """By chapter: runs and comparisons by state (`stale`: made by another version), whether its
    results are collected, MB on disk, core-hours spent on what is there and to come (reckoned).

    A run counts where a chapter shows it or needs it; `all` counts each once. One that has a record
    counts as it says, whether or not its weights are here.
    """
    asked = {chapter: specs(study, chapter) for chapter in chapters(study)}
    rows = {chapter: _state(study, found) for chapter, found in asked.items()}
    rows["all"] = _state(study, [spec for found in asked.values() for spec in found])
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("chapter")
    collected = [experiments.all_recorded(study, found) for found in asked.values()]
    table.insert(0, "collected", [*("yes" if there else "no" for there in collected), ""])
    return table


def _state(study: str, asked: list[Spec]) -> dict[str, float]:
    every = list(everything(asked))
    kept = _recorded_facts(study, every)
    states = {s.key: kept[s.key]["status"] if s.key in kept else store.state(s.key) for s in every}
    counts = {name: 0 for name in store.STATES} | pd.Series(states).value_counts().to_dict()
    seconds = sum(
        kept[key]["seconds"] if key in kept else store.seconds(key)
        for key, state in states.items()
        if state != "missing"
    )
    return {
        **counts,
        "MB": sum(store.size(key) for key in states) / 1e6,
        "hours": seconds / 3600,
        "to come": sum(map(schedule.cost, _to_come(study, asked))) / CORE / 3600,
    }


def _recorded_facts(study: str, specs: list[Spec]) -> dict[str, dict]:
    facts = records.facts(study)
    return {key: facts[name] for key, name in records.recorded(study, specs).items()}


def _to_come(study: str, asked: list[Spec]) -> list[Spec]:
    """What would be computed for these: also recorded runs, where a comparison needs weights that
    are not here."""
    return [task for task in schedule.missing(asked, study) if not isinstance(task, config.Data)]


def plan(study: str, *, core: float = CORE, gpu: float = GPU) -> pd.DataFrame:
    """What a study asks for, before it is begun: by chapter the runs that no earlier one has, their
    groups, and hours, of one core or one GPU at a measured number of floating-point operations a
    second; the last row is the sum. `trained again` counts recorded runs that a missing comparison
    needs the weights of, where these are not here. Raises ValueError for unknown parameters."""
    place = {spec.key: name for name, group in groups(study).items() for spec in group.specs}
    counted, ahead = set[str](), set[str]()
    rows = {}
    for chapter in chapters(study):
        asked = specs(study, chapter)
        new = [s for s in everything(asked) if s.key not in counted]
        left = [spec for spec in _to_come(study, asked) if spec.key not in ahead]
        counted |= {spec.key for spec in new}
        ahead |= {spec.key for spec in left}
        operations, remaining = (sum(map(schedule.cost, some)) for some in (new, left))
        runs = sum(isinstance(spec, config.Run) for spec in new)
        baselines = sum(isinstance(spec, config.Baseline) for spec in new)
        rows[chapter] = {
            "runs": runs,
            "comparisons": len(new) - runs - baselines,
            "baselines": baselines,
            "groups": len({place[spec.key] for spec in new}),
            "core-hours": operations / core / 3600,
            "of these missing": remaining / core / 3600,
            "trained again": len(records.recorded(study, left)),
            "GPU-hours": operations / gpu / 3600,
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("chapter")
    return pd.concat([table, table.sum().to_frame("all").T.astype(table.dtypes)])

"""Groups of runs: of a network that the same chapters need, or one long run; a job each.

No torch is imported here: a batch job reads this again before it computes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from transfusion import config, machine, records, store
from transfusion.config import Spec
from transfusion.experiments import plan
from transfusion.studies import collected, params, schedule

# Operations a second that `plan` reckons with: a core with bfloat16 (float32 alone and older
# processors do less), and an H200 with ten trainings at once, of CBR networks and ResNet-50 at 48
# and 64 px, which did 5.2e15 in 137 s.
CORE, GPU = 2e11, 3.8e13
HOUR, RUNS = 3600 * CORE, 200  # more operations, or more of them, are several groups
LONG = 2e8  # pixels that a training sees: ten minutes of a core for ResNet-50, one for CBR-Tiny


def chapter_fingerprint(study: str, chapter: str) -> str:
    """What a page of a chapter's results depends on; `none` where it has none."""
    known = study in params.studies() and chapter in params.chapters(study)
    return collected.fingerprint(study, chapter, params.specs(study, chapter) if known else [])


class Group(NamedTuple):
    """What one job computes, in one process: an hour's share of one network that the same chapters
    need, or one long run."""

    specs: tuple[Spec, ...]
    chapters: tuple[str, ...]  # that show or need them
    needs: tuple[str, ...]  # other groups
    devices: int  # that each training shares


@cache
def groups(study: str) -> dict[str, Group]:
    """All groups of a study by name, whatever is done already.

    A chapter's runs fill whole groups, so that asking for one chapter computes nothing else. A
    name says nothing of the members, so one seed more leaves it as it is.
    """
    wanted: dict[str, tuple[Spec, list[str]]] = {}
    for chapter in params.chapters(study):
        for spec in everything(params.specs(study, chapter)):
            wanted.setdefault(spec.key, (spec, []))[1].append(chapter)
    members: dict[str, list[Spec]] = {}
    for spec, shown in wanted.values():
        members.setdefault(_group_name(spec, shown), []).append(spec)
    parts = {n: part for name, within in members.items() for n, part in _parts(name, within)}
    place = {spec.key: name for name, part in parts.items() for spec in part}
    return {n: _group(n, part, wanted[part[0].key][1], place) for n, part in parts.items()}


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


def _parts(name: str, members: list[Spec]) -> Iterator[tuple[str, list[Spec]]]:
    """As many groups as the limits ask for, `name`, `name-2` and so on; what is added to a study
    later comes last, and leaves the earlier ones as they are."""
    parts: list[list[Spec]] = [[]]
    operations = 0.0
    for piece in _pieces(members):
        more = sum(map(schedule.cost, piece))
        if parts[-1] and (len(parts[-1]) + len(piece) > RUNS or operations + more > HOUR):
            parts.append([])
            operations = 0.0
        parts[-1] += piece
        operations += more
    for number, part in enumerate(parts, start=1):
        yield (f"{name}-{number}" if number > 1 else name), part


def _pieces(members: list[Spec]) -> Iterator[list[Spec]]:
    """What stays together, as one machine computes what is compared: a repetition that fits."""
    found: dict[tuple, list[Spec]] = {}
    for spec in sorted(members, key=_order):
        found.setdefault(records.repetition(spec), []).append(spec)
    for within in found.values():
        fits = len(within) <= RUNS and sum(map(schedule.cost, within)) <= HOUR
        yield from [within] if fits else ([spec] for spec in within)


def _order(spec: Spec) -> tuple[int, int, int]:
    """Pretrainings, then repetitions as seeds are added, then what compares them."""
    if isinstance(spec, config.Comparison):
        return 2, 0, 0
    return int(spec.seed != plan.SOURCE_SEED), spec.seed, spec.data.fold


def _group(name: str, members: list[Spec], chapters: list[str], place: dict[str, str]) -> Group:
    needed = {place[need.key] for need in everything(members)} - {name}
    devices = [spec.optim.devices for spec in members if isinstance(spec, config.Run)]
    return Group(tuple(members), tuple(chapters), tuple(sorted(needed)), max(devices, default=1))


def groups_of(study: str, chapter: str) -> list[str]:
    """The groups that a chapter needs, none where its results are collected already."""
    if collected.is_collected(study, chapter):
        return []
    return [name for name, group in groups(study).items() if chapter in group.chapters]


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
        there = records.index(store.records_folder(study))
        store.write_json(done_file(study, name), {"results": _results(study, group, there)})
        return
    keys = {spec.key for spec in everything(group.specs)}
    lines = [line for line in error.splitlines() if keys & {*re.findall(r"\w+", line)}]
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("transfusion: " + "\n  ".join(line.strip() for line in lines or [error]) + "\n")


def _results(study: str, group: Group, there: records.Index) -> dict[str, str]:
    """What a done-file vouches for: the checksum of each result's record."""
    names = records.recorded(study, group.specs, there)
    return {
        spec.key: there[names[spec.key]].header["sha256"] if spec.key in names else "missing"
        for spec in group.specs
    }


def is_done(study: str, name: str, there: records.Index | None = None) -> bool:
    """Whether a group's done-file is there and its results still are what it vouches for. Who asks
    often gives what records are `there`."""
    try:
        kept = json.loads(done_file(study, name).read_text())["results"]
    except (OSError, ValueError, KeyError, TypeError):  # absent, a folder, cut, something else
        return False
    there = records.index(store.records_folder(study)) if there is None else there
    return kept == _results(study, groups(study)[name], there)

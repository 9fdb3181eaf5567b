"""What of a study is done and to come, what it takes, and what it could show."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from transfusion import config, records, store
from transfusion.config import Spec
from transfusion.statistics import contrasts, intervals
from transfusion.studies import collected, grouping, params, schedule

Looked = dict[str, dict[str, Any]]  # key -> what `store.look` tells
MISSING: dict[str, Any] = {"state": "missing", "seconds": 0.0, "bytes": 0}


def could_show(study: str) -> pd.DataFrame:
    """Of claims on final AUC the smallest true contrast, in points, that a study would find four
    times in five, and the margin, reckoned from the repetitions of its tuning: empty before these.
    """
    from transfusion.experiments import accuracy, tuning  # what decides claims loads for a second

    try:
        pilots = tuning.at_best_rates(collected.results(study, "tuning"))
        knobs = params.knobs(study, "performance")
    except (FileNotFoundError, ValueError):
        return pd.DataFrame()
    margin, rows = accuracy.margin(pilots, pilots.model.values), {}
    for name, measure in {
        "transfer": accuracy.gains,
        "small_networks": accuracy.keeping_up,
    }.items():
        effect = measure(pilots)
        if effect.rows:
            found = contrasts.foreseen(effect, knobs.get("folds") or 1, knobs["seeds"])
            could = intervals.detectable(found)
            rows[name] = {"could show": could, "interval": found.high - found.mean}
    return pd.DataFrame.from_dict(rows, orient="index").assign(margin=margin)


def status(study: str) -> pd.DataFrame:
    """By chapter: runs and comparisons by state (`stale`: made by another version), whether its
    results are collected, MB on disk, core-hours spent on what is there and to come (reckoned).

    A run counts where a chapter shows it or needs it; `all` counts each once. One that has a record
    counts as it says, whether or not its weights are here.
    """
    asked = {chapter: params.specs(study, chapter) for chapter in params.chapters(study)}
    every = [spec for found in asked.values() for spec in found]
    looked = store.look(spec.key for spec in grouping.everything(every))
    rows = {chapter: _state(study, found, looked) for chapter, found in asked.items()}
    rows["all"] = _state(study, every, looked)
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("chapter")
    recorded = [collected.all_recorded(study, found) for found in asked.values()]
    table.insert(0, "collected", [*("yes" if whole else "no" for whole in recorded), ""])
    return table


def _state(study: str, asked: list[Spec], looked: Looked) -> dict[str, float]:
    keys = [spec.key for spec in grouping.everything(asked)]
    kept = _recorded_facts(study, asked)
    told = [kept.get(key) or looked.get(key, MISSING) for key in keys]
    states = Counter(one["state"] for one in told)
    return {
        **{name: states[name] for name in store.STATES},
        "MB": sum(looked.get(key, MISSING)["bytes"] for key in keys) / 1e6,
        "hours": sum(one["seconds"] for one in told) / 3600,
        "to come": sum(map(schedule.cost, _to_come(study, asked, looked))) / grouping.CORE / 3600,
    }


def _recorded_facts(study: str, asked: list[Spec]) -> Looked:
    there = records.index(store.records_folder(study))
    names = records.recorded(study, grouping.everything(asked), there)
    facts = {key: there[name].header["facts"] for key, name in names.items()}
    return {k: {"state": f["status"], "seconds": f["seconds"]} for k, f in facts.items()}


def _to_come(study: str, asked: list[Spec], looked: Looked) -> list[Spec]:
    """What would be computed for these: also recorded runs, where a comparison needs weights that
    are not here."""
    ahead = schedule.missing(asked, study, looked)
    return [task for task in ahead if not isinstance(task, config.Data)]


def plan(study: str, *, core: float = grouping.CORE, gpu: float = grouping.GPU) -> pd.DataFrame:
    """What a study asks for, before it is begun: by chapter the runs that no earlier one has, their
    groups, and hours, of one core or one GPU at a measured number of floating-point operations a
    second; the last row is the sum. `trained again` counts recorded runs that a missing comparison
    needs the weights of, where these are not here. Raises ValueError for unknown parameters."""
    place = {
        spec.key: name for name, group in grouping.groups(study).items() for spec in group.specs
    }
    counted, ahead = set[str](), set[str]()
    looked, rows = store.look(place), {}
    for chapter in params.chapters(study):
        asked = params.specs(study, chapter)
        new = [s for s in grouping.everything(asked) if s.key not in counted]
        left = [spec for spec in _to_come(study, asked, looked) if spec.key not in ahead]
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

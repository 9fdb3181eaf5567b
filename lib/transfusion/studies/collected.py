"""Results of a study's chapters: the Dataset that each shows, made of records, computed if missing.

No torch is imported here until something is missing, so a book whose results exist needs none.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import xarray as xr

from transfusion import config, provenance, records, store
from transfusion.config import Spec
from transfusion.experiments import plan
from transfusion.experiments.tables import Labels
from transfusion.statistics import metrics
from transfusion.studies import params, schedule


def collect(chapter: str, notebook: Mapping[str, Any] | None = None, **parameters) -> xr.Dataset:
    """The Dataset that a chapter shows; what is missing is computed first, with a progress bar.

    Of a `notebook` the variables (its `globals()`) say which `study`'s files hold, and by
    `setting`, or by a knob's name, what holds in their place, which is told. The Dataset is made of
    the study's records, and kept for as long as these are the same. Dimensions are those of
    data_cache/README.md; attrs carry every run's key, status, device, commit and seconds.
    """
    knobs = plan.knobs_from(_asked(chapter, notebook) | parameters)
    labelled = plan.labelled(chapter, knobs)
    study, specs = knobs.study, [spec for _, spec in labelled]
    if not all_recorded(study, specs):
        schedule.compute(specs, study)
    names = records.recorded(study, specs)
    lost = [spec.key for spec in specs if spec.key not in names]
    if lost:
        raise RuntimeError(f"results vanished after they were computed: {', '.join(lost)}")
    attrs = {
        "records": records.vouched(study, names.values()),
        "parameters": json.dumps(asdict(knobs)),
        "tables": _tables(),
    }
    found = _kept(study, chapter, attrs)
    if found is not None:
        store.keep_manifest(study)
        return found
    if _mended(study, specs, names):
        return collect(chapter, notebook, **parameters)
    there = records.index(store.records_folder(study))
    results = [(of, spec, _result(study, names[spec.key], there)) for of, spec in labelled]
    dataset = plan.CHAPTERS[chapter].table(results)
    dataset.attrs = {
        "runs": json.dumps([_facts(*each) for each in results]),
        **attrs,
        "train_images": round(np.mean([each.attrs["train_images"] for _, _, each in results])),
    }
    store.save(study, chapter, dataset)
    return dataset


def _asked(chapter: str, notebook: Mapping[str, Any] | None) -> dict:
    """The knobs of a notebook: those of its setting, and for the rest its study's."""
    if notebook is None:
        return {}
    own = plan.setting(notebook)
    plan.require_own(chapter, own)
    if own["study"] not in params.studies() and "target" in own:
        return own  # all is given, of a study that has no files here
    stated = params.knobs(own["study"], chapter)
    changed = {name: value for name, value in own.items() if stated.get(name) != value}
    if changed:
        told = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        print(f"not as params/{own['study']} has it: {told}", file=sys.stderr)
    return stated | own


@cache
def _tables() -> str:
    """A digest of the code that makes collected results of records."""
    digest = hashlib.sha256()
    for name in ("experiments/tables.py", "statistics/metrics.py", "networks/gabors.py"):
        digest.update((provenance.LIBRARY / name).read_bytes())
    return digest.hexdigest()[:12]


def _mended(study: str, specs: list[Spec], names: dict[str, str]) -> bool:
    """Whether some of these records were not whole, and so are made again."""
    damaged, there = [], records.index(store.records_folder(study))
    for spec in specs:
        try:
            records.whole(store.records_folder(study), names[spec.key], there)
        except (store.Damaged, FileNotFoundError) as error:
            print(f"{error}: made again; if git has it, a checkout is faster", file=sys.stderr)
            damaged.append(spec)
    for spec in damaged:
        records.mend(study, spec, names[spec.key])
    return bool(damaged)


def _kept(study: str, chapter: str, attrs: dict[str, str]) -> xr.Dataset | None:
    """What was collected from these very records under these parameters by the same code."""
    try:
        found = store.read_zarr(store.results_path(study, chapter))
    except (FileNotFoundError, store.Damaged):
        return None
    return found if attrs.items() <= found.attrs.items() else None


def all_recorded(study: str, specs: list[Spec]) -> bool:
    """Whether these can be shown without computing; so it is where none is needed."""
    names = records.recorded(study, specs)
    return all(spec.key in names for spec in specs)


def fingerprint(study: str, chapter: str, specs: list[Spec]) -> str:
    """What a page of these results depends on: it changes when they do."""
    if specs and all_recorded(study, specs):
        return records.vouched(study, records.recorded(study, specs).values())
    try:
        return store.checksum(store.open(study, chapter))
    except (FileNotFoundError, store.Damaged):
        return "none"


def result(study: str, spec: Spec) -> xr.Dataset:
    """What a study has recorded of a spec, a run with what `metrics.scored` reads off its scores.

    Raises FileNotFoundError where there is no record, store.Damaged where it is not whole.
    """
    return _result(study, records.recorded(study, [spec]).get(spec.key, spec.key))


def _result(study: str, called: str, there: records.Index | None = None) -> xr.Dataset:
    return metrics.scored(records.whole(store.records_folder(study), called, there))


def _facts(labels: Labels, spec: Spec, result: xr.Dataset) -> dict:
    names = ("status", "reason", "device", "precision", "commit", "torch", "seconds")
    rate = {"lr": spec.optim.lr} if isinstance(spec, config.Run) else {}
    found = {n: result.attrs[n] for n in (*names, "lossy") if n in result.attrs}
    return {"key": spec.key, **labels, **rate, **found}


def is_collected(study: str, chapter: str) -> bool:
    """Whether a chapter can be rendered without any run."""
    return all_recorded(study, params.specs(study, chapter))


def results(study: str, chapter: str) -> xr.Dataset:
    """The collected results of a chapter, made of the study's records where they are not yet, or
    where these or the parameters have changed since.

    Raises FileNotFoundError where some of its runs were not computed.
    """
    known = study in params.studies() and chapter in params.chapters(study)
    if known and is_collected(study, chapter):
        return collect(chapter, **params.knobs(study, chapter))
    return store.open(study, chapter)

"""What every theme's claims are made of: findings, how several agree, large and small networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr

from transfusion import terms
from transfusion.statistics import contrasts, intervals
from transfusion.statistics.contrasts import Arms, Effect
from transfusion.statistics.gate import BOTH

UNDECIDED = intervals.Decision("inconclusive", 1.0)
LARGE = "resnet50"  # the paper's large network that every study has


def small(results: xr.Dataset) -> list[str]:
    return [str(m) for m in results.model.values if terms.about(str(m)).small]


def over_seeds(values: xr.DataArray, weight: float = 1.0) -> Arms:
    """A number a repetition (seed,), on one fold unless it has more, as a sum of arms."""
    if "fold" not in values.dims:
        values = values.expand_dims(fold=[0])
    return [(weight, values.to_dataset(name="value"))]


def both_inits(results: xr.Dataset) -> list[str]:
    return [init for init in BOTH if init in results.init.values]


class Finding(NamedTuple):
    """What a study says of a claim: a verdict, its p value, the number that decides in words, and
    what stands beside it."""

    verdict: str
    p: float
    found: str
    beside: str = ""


class Claim(NamedTuple):
    """A claim of the paper: its chapter, its words, its number, and what decides it. Those of the
    exploratory family are corrected for their number apart (book/scope.md)."""

    chapter: str
    says: str
    paper: Callable[[], str]
    decide: Callable[[xr.Dataset], Finding]
    exploratory: bool = False
    counted: bool = False  # nothing is estimated, so there is nothing to correct


def stated(where: str) -> Callable[[], str]:
    """Stated in words; no number of it was recovered."""
    return lambda: f"no number ({where})"


TUNED_ON = 1  # the fold whose test images are the validation images by which rates were chosen
# Of a claim that no run speaks to; not a test, so it does not count among those corrected for.
NOTHING = Finding("inconclusive", np.nan, "no run here speaks to it")
NOT_LEARNED = "the networks that it compares have not learned the task"


def by(measure: Callable[[xr.Dataset], Effect], *, tuned: bool = False) -> Callable:
    """What decides a claim by the contrast of an effect. `tuned`: arms have rates of their own, so
    the same stands beside it without the fold whose test images chose them."""

    def decide(results: xr.Dataset) -> Finding:
        found = of_effect(measure(results))
        if not tuned or found.verdict == "not testable":
            return found
        left = contrasts.without_fold(measure(results), TUNED_ON)
        other = left and contrasts.contrast(left)
        if left is None or other is None:
            return found
        without = f"without the fold that chose the rates {_told(left, other)}"
        return found._replace(beside="; ".join(filter(None, (found.beside, without))))

    return decide


def of_effect(effect: Effect) -> Finding:
    if not contrasts.listed(effect).shape[0]:
        return NOTHING
    found = contrasts.contrast(effect)
    if found is None:
        return Finding("not testable", 1.0, NOT_LEARNED)
    holds, against, rows = contrasts.count_rows(effect)
    beside = f"for {holds}, against {against} of {rows}" if rows > 1 else ""
    return Finding(*effect.decide(found), _told(effect, found), beside)


def _told(effect: Effect, found: intervals.Interval) -> str:
    return contrasts.interval_text(found, effect.digits, effect.unit)


def all_of(*decisions: tuple[str, Finding]) -> Finding:
    """Several findings under their names that must agree: p is the largest, 1 for opposite ones."""
    there = {name: finding for name, finding in decisions if finding is not NOTHING}
    if len(there) < len(decisions):
        return NOTHING
    verdicts = {finding.verdict for finding in there.values()}
    verdict = min(verdicts) if len(verdicts) == 1 else "inconclusive"
    opposed = {"holds", "differs"} <= verdicts
    largest = 1.0 if opposed else max(finding.p for finding in there.values())
    if verdict == "not testable" and len({finding.found for finding in there.values()}) == 1:
        return next(iter(there.values()))
    found = "; ".join(f"{name} {finding.found}" for name, finding in there.items())
    beside = "; ".join(f"{n} {finding.beside}" for n, finding in there.items() if finding.beside)
    return Finding(verdict, largest, found, beside)

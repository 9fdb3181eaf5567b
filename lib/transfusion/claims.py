"""The claims of the paper, in its order: the chapter, the paper's number, and what decides each."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config, effects, figures, paper, representations, studies, tuning
from transfusion.effects import LARGE
from transfusion.statistics import contrasts, intervals
from transfusion.statistics.contrasts import Effect


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


TWICE = 2  # by how much operations must exceed what parameters suggest, see book/scope.md
TUNED_ON = 1  # the fold whose test images are the validation images by which rates were chosen
NETWORKS = 16  # of one source, below which no correlation can be called loose
# Of a claim that no run speaks to; not a test, so it does not count among those corrected for.
NOTHING = Finding("inconclusive", np.nan, "no run here speaks to it")
NOT_LEARNED = "the networks that it compares have not learned the task"


# --- what decides a claim --------------------------------------------------------------------


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
    if not contrasts.table(effect).shape[0]:
        return NOTHING
    found = contrasts.contrast(effect)
    if found is None:
        return Finding("not testable", 1.0, NOT_LEARNED)
    holds, against, rows = contrasts.tally(effect)
    beside = f"for {holds}, against {against} of {rows}" if rows > 1 else ""
    return Finding(*effect.decide(found), _told(effect, found), beside)


def _told(effect: Effect, found: intervals.Interval) -> str:
    return contrasts.spread(found, effect.digits, effect.unit)


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


def source_accuracy(results: xr.Dataset) -> Finding:
    if "source_auc" not in results:
        return NOTHING
    rho = effects.source_rank(results)
    if rho.n < NETWORKS:
        words = f"{rho.n} networks of one source have learned, {NETWORKS} would be needed"
        return Finding("not testable", 1.0, words)
    ends = f"{rho.mean:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
    return Finding(*effects.loose(rho), f"rank correlation {ends} over {rho.n} networks")


def gabor_filters(results: xr.Dataset) -> Finding:
    """Both halves: none learned from random init, some erased from pretrained weights."""
    names = {"random": "learned", "transfer": "erased"}
    halves = [
        (name, of_effect(representations.gabor_changes(results, i))) for i, name in names.items()
    ]
    return all_of(*halves)


def scaling(results: xr.Dataset) -> Finding:
    found = of_effect(effects.scaling(results))
    if found is NOTHING or found.verdict == "not testable":
        return found
    table = effects.speedups(results).xs("mean_var", level="init")
    words = [f"{figures.title(str(m))} {effects.ratio(row)}" for m, row in table.iterrows()]
    return found._replace(beside="; ".join([found.beside, *words]).strip("; "))


def small_in_size_alone(results: xr.Dataset) -> Finding:
    """`holds` for smaller networks whose share of the large one's multiply-adds is at least twice
    their share of the parameters. Both are counted, so there is nothing to estimate."""
    costs = results[["parameters", "multiply_adds"]].to_dataframe()
    if LARGE not in costs.index:
        return NOTHING
    shares = (costs / costs.loc[LARGE])[costs["parameters"] < costs.loc[LARGE, "parameters"]]
    if shares.empty:
        return NOTHING
    excess = shares["multiply_adds"] / shares["parameters"]
    small, work = shares.loc[excess.idxmin()]
    words = f"{small:.2f} of the parameters, {work:.2f} of the operations"
    verdict = "holds" if excess.min() >= TWICE else "differs"
    return Finding(verdict, np.nan, f"{words}, {figures.title(str(excess.idxmin()))}")


def any_recipe(results: xr.Dataset) -> Finding:
    """The first variant is the study's own recipe; those that replace the task are left out."""
    own, *others = [v for v in map(str, results.variant.values) if v not in _tasks(results)]
    each = [(v, of_effect(effects.any_recipe(results, own, [v]))) for v in others]
    return all_of(*each) if each else NOTHING


def _tasks(results: xr.Dataset) -> list[str]:
    """Variants that replace the task: their answers may differ."""
    variants = json.loads(results.attrs.get("parameters", "{}")).get("variants", {})
    return [name for name, knobs in variants.items() if "target" in knobs]


# --- the paper's numbers ---------------------------------------------------------------------


def _gain() -> str:
    value = paper.numbers("Table 1", "auc")["value"]
    gain = value[LARGE, "transfer"] - value[LARGE, "random"]
    return f"{gain:+.1f} points, {figures.title(LARGE)} (Table 1, retinas)"


def _shortfall() -> str:
    value = paper.numbers("Table 1", "auc")["value"]
    gap = value["cbr_large_t", "transfer"] - value[LARGE, "transfer"]
    return f"{gap:+.1f} points, {figures.title('cbr_large_t')} (Table 1, retinas)"


def _interaction() -> str:
    value = paper.numbers("Table 3", "auc")["value"]
    gain = {m: value[m, "transfer"] - value[m, "random"] for m in (LARGE, "cbr_large_t")}
    more = gain[LARGE] - gain["cbr_large_t"]
    return f"{more:+.1f} points over {figures.title('cbr_large_t')} (Table 3)"


def _cca_gap() -> str:
    value = paper.numbers("Figure 2", "cca")["value"]
    return f"{value[LARGE, 'random'] - value[LARGE, 'transfer']:+.3f} CCA, ResNet-50 (Figure 2)"


def _mean_var() -> str:
    value = paper.numbers("Figure 6", "speedup")["value"][LARGE, "mean_var"]
    return f"{value:g} times, ResNet-50 (Figure 6)"


def _stated(where: str) -> Callable[[], str]:
    """Stated in words; no number of it was recovered."""
    return lambda: f"no number ({where})"


CLAIMS = {
    "transfer": Claim(
        "performance", "Transfer hardly changes the final AUC", _gain, by(effects.gains, tuned=True)
    ),
    "small_networks": Claim(
        "performance",
        "Small networks keep up with ResNet-50",
        _shortfall,
        by(effects.keeping_up, tuned=True),
    ),
    "source_accuracy": Claim(
        "performance",
        "Accuracy on the source task does not foretell the medical AUC",
        _stated("Table 1"),
        source_accuracy,
        exploratory=True,
    ),
    "findings": Claim(
        "performance",
        "On chest films effects are mixed: edema and effusion up, cardiomegaly and consolidation "
        "down",
        _stated("Table 2"),
        by(effects.findings),
        exploratory=True,
    ),
    "little_data": Claim(
        "small_data",
        "With little data transfer helps the large network most",
        _interaction,
        by(effects.little_data, tuned=True),
    ),
    "shrinking": Claim(
        "small_data",
        "The gain shrinks as data grow",
        _stated("Table 3"),
        by(effects.shrinking, tuned=True),
    ),
    "frozen_features": Claim(
        "performance",
        "Fine-tuning beats frozen features",
        lambda: "not confirmed",
        by(effects.fine_tuning, tuned=True),
    ),
    "representations": Claim(
        "representations",
        "Transfer leaves other features behind in large networks, not in small ones",
        _cca_gap,
        by(representations.other_features),
    ),
    "size": Claim(
        "overparametrization",
        "Large networks change less than small ones while they learn",
        _stated("Figure 3"),
        by(representations.size),
    ),
    "low_reuse": Claim(
        "overparametrization",
        "Pretrained weights are reused in the lowest blocks alone",
        _stated("Figure 3"),
        by(representations.low_reuse),
    ),
    "foretelling": Claim(
        "overparametrization",
        "Similarity at the start foretells the end in large networks' low layers",
        _stated("Figure 4"),
        by(representations.foretelling),
    ),
    "moving": Claim(
        "first_layer",
        "The first filters of large networks hardly move",
        _stated("Figure 5"),
        by(representations.moving),
    ),
    "gabor_filters": Claim(
        "first_layer",
        "Small networks learn no Gabor filters, and erase pretrained ones",
        _stated("Figure 5"),
        gabor_filters,
    ),
    "scaling": Claim(
        "weight_scaling",
        "The scale of pretrained weights alone speeds convergence",
        _mean_var,
        scaling,
    ),
    "scale_alone": Claim(
        "weight_scaling",
        "It is the scale of the weights, not batch norm",
        _stated("section 5"),
        by(effects.scale_alone),
    ),
    "first_layer_most": Claim(
        "transfusion",
        "The first pretrained layer adds most",
        _stated("Figure 7"),
        by(effects.first_block),
    ),
    "low_layers": Claim(
        "transfusion",
        "Low layers matter, not how many weights are pretrained",
        _stated("Figure 7"),
        by(effects.low_against_many),
    ),
    "slim_tops": Claim(
        "hybrids",
        "A slim ResNet-50 with two pretrained blocks keeps the AUC of full transfer",
        _stated("Figure 8"),
        by(effects.slim),
    ),
    "made_gabors": Claim(
        "hybrids",
        "Synthetic Gabors do as well as a pretrained first layer",
        _stated("Figure 8"),
        by(effects.synthetic_gabors),
    ),
    "small_in_size_alone": Claim(
        "efficiency",
        "Small networks are small in parameters, not in computation",
        lambda: "not discussed",
        small_in_size_alone,
        exploratory=True,
        counted=True,
    ),
    "any_recipe": Claim(
        "robustness",
        "The answer on transfer does not hang on the recipe",
        lambda: "not tested",
        any_recipe,
        exploratory=True,
    ),
}


def decide(name: str, results: xr.Dataset) -> Finding:
    """What these results say of a claim: where a chapter has several equal rates, what it says at
    all of them. Raises ValueError for an unknown one."""
    claim = CLAIMS[config.one_of(name, CLAIMS, "claim")]
    parts = contrasts.rates(results)
    if len(parts) == 1:
        return claim.decide(next(iter(parts.values())))
    return all_of(*((f"at {rate:g}:", claim.decide(one)) for rate, one in parts.items()))


def could_show(study: str) -> pd.DataFrame:
    """Of claims on final AUC the smallest true contrast, in points, that a study would find four
    times in five, and the margin, reckoned from the repetitions of its tuning: empty before these.
    """
    try:
        pilots = tuning.at_best_rates(studies.results(study, "tuning"))
        knobs = studies.parameters(study, "performance")
    except (FileNotFoundError, ValueError):
        return pd.DataFrame()
    margin, rows = effects.margin(pilots, pilots.model.values), {}
    for name, measure in {"transfer": effects.gains, "small_networks": effects.keeping_up}.items():
        effect = measure(pilots)
        if effect.rows:
            found = contrasts.foreseen(effect, knobs.get("folds") or 1, knobs["seeds"])
            could = intervals.detectable(found)
            rows[name] = {"could show": could, "interval": found.high - found.mean}
    return pd.DataFrame.from_dict(rows, orient="index").assign(margin=margin)


def beside(study: str, found: dict[str, Finding]) -> pd.DataFrame:
    """`table` of these findings, which replace what is collected, and of what else they are
    corrected for: not of what is counted, which takes torch to count."""
    names = [name for name, claim in CLAIMS.items() if name in found or not claim.counted]
    return table(study, found, names)


def table(
    study: str, found: dict[str, Finding] | None = None, names: Iterable[str] = ()
) -> pd.DataFrame:
    """All claims that a study has results for: verdict, p, found, beside, and `adjusted`, p for the
    number of claims of its family. What p alone decided and `adjusted` does not is inconclusive,
    and `alone` keeps the verdict that it would have by itself. `found` replaces what is collected,
    `names` are those asked, by default all.
    """
    rows: dict[str, Finding] = {}
    not_asked = set()
    results = functools.cache(functools.partial(studies.results, study))
    for name in names or CLAIMS:
        claim = CLAIMS[name]
        try:
            told = (found or {}).get(name) or decide(name, results(claim.chapter))
        except FileNotFoundError:
            continue
        if told is NOTHING:
            not_asked.add(name)
        else:
            rows[name] = told
    there = {claim.chapter for claim in CLAIMS.values()} & set(_chapters(study))
    asked = [n for n in names or CLAIMS if n in rows or CLAIMS[n].chapter in there]
    return corrected(rows, [name for name in asked if name not in not_asked])


def _chapters(study: str) -> list[str]:
    return studies.chapters(study) if study in studies.studies() else []


def corrected(rows: dict[str, Finding], asked: list[str]) -> pd.DataFrame:
    """Findings with p for the number of claims in their family (Benjamini and Hochberg).

    Of a family are all claims that a study asks; what is not testable, or still to come, counts
    with p = 1.
    """
    adjusted: dict[str, float] = {}
    for exploratory in (False, True):
        family = [n for n in asked if CLAIMS[n].exploratory == exploratory]
        p = [_p(rows.get(name)) for name in family]
        adjusted |= dict(zip(family, intervals.adjusted(np.array(p)), strict=True)) if p else {}
    table = pd.DataFrame.from_dict(
        {name: finding._asdict() for name, finding in rows.items()},
        orient="index",
        columns=Finding._fields,
    )
    table["adjusted"] = [adjusted.get(name, np.nan) for name in table.index]
    undecided = ["inconclusive", "not testable"]
    lost = (table["adjusted"] >= intervals.LEVEL) & ~table["verdict"].isin(undecided)
    return table.assign(alone=table["verdict"], verdict=table["verdict"].mask(lost, "inconclusive"))


def _p(finding: Finding | None) -> float:
    return 1.0 if finding is None else finding.p

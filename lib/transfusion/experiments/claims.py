"""The claims of the paper, in its order: the chapter, the paper's number, and what decides each."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config, terms
from transfusion.experiments import accuracy, effects, features, filters, learning, paper
from transfusion.experiments.effects import LARGE
from transfusion.statistics import contrasts, intervals

TWICE = 2  # by how much operations must exceed what parameters suggest, see book/scope.md
NETWORKS = 16  # of one source, below which no correlation can be called loose


def source_accuracy(results: xr.Dataset) -> effects.Finding:
    if "source_auc" not in results:
        return effects.NOTHING
    rho = accuracy.source_rank(results)
    if rho.n < NETWORKS:
        words = f"{rho.n} networks of one source have learned, {NETWORKS} would be needed"
        return effects.Finding("not testable", 1.0, words)
    ends = f"{rho.mean:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
    return effects.Finding(*accuracy.loose(rho), f"rank correlation {ends} over {rho.n} networks")


def gabor_filters(results: xr.Dataset) -> effects.Finding:
    """Both halves: none learned from random init, some erased from pretrained weights."""
    names = {"random": "learned", "transfer": "erased"}
    halves = [
        (name, effects.of_effect(filters.gabor_changes(results, i))) for i, name in names.items()
    ]
    return effects.all_of(*halves)


def scaling(results: xr.Dataset) -> effects.Finding:
    found = effects.of_effect(learning.scaling(results))
    if found is effects.NOTHING or found.verdict == "not testable":
        return found
    table = learning.speedups(results).xs("mean_var", level="init")
    words = [f"{terms.title(str(m))} {learning.ratio(row)}" for m, row in table.iterrows()]
    return found._replace(beside="; ".join([found.beside, *words]).strip("; "))


def small_in_size_alone(results: xr.Dataset) -> effects.Finding:
    """`holds` for smaller networks whose share of the large one's multiply-adds is at least twice
    their share of the parameters. Both are counted, so there is nothing to estimate."""
    costs = results[["parameters", "multiply_adds"]].to_dataframe()
    if LARGE not in costs.index:
        return effects.NOTHING
    shares = (costs / costs.loc[LARGE])[costs["parameters"] < costs.loc[LARGE, "parameters"]]
    if shares.empty:
        return effects.NOTHING
    excess = shares["multiply_adds"] / shares["parameters"]
    small, work = shares.loc[excess.idxmin()]
    words = f"{small:.2f} of the parameters, {work:.2f} of the operations"
    verdict = "holds" if excess.min() >= TWICE else "differs"
    return effects.Finding(verdict, np.nan, f"{words}, {terms.title(str(excess.idxmin()))}")


def any_recipe(results: xr.Dataset) -> effects.Finding:
    """The first variant is the study's own recipe; those that replace the task are left out."""
    own, *others = [v for v in map(str, results.variant.values) if v not in _tasks(results)]
    each = [(v, effects.of_effect(accuracy.any_recipe(results, own, [v]))) for v in others]
    return effects.all_of(*each) if each else effects.NOTHING


def _tasks(results: xr.Dataset) -> list[str]:
    """Variants that replace the task: their answers may differ."""
    variants = json.loads(results.attrs.get("parameters", "{}")).get("variants", {})
    return [name for name, knobs in variants.items() if "target" in knobs]


# --- the paper's numbers ---------------------------------------------------------------------


def _gain() -> str:
    value = paper.numbers("Table 1", "auc")["value"]
    gain = value[LARGE, "transfer"] - value[LARGE, "random"]
    return f"{gain:+.1f} points, {terms.title(LARGE)} (Table 1, retinas)"


def _shortfall() -> str:
    value = paper.numbers("Table 1", "auc")["value"]
    gap = value["cbr_large_t", "transfer"] - value[LARGE, "transfer"]
    return f"{gap:+.1f} points, {terms.title('cbr_large_t')} (Table 1, retinas)"


def _interaction() -> str:
    value = paper.numbers("Table 3", "auc")["value"]
    gain = {m: value[m, "transfer"] - value[m, "random"] for m in (LARGE, "cbr_large_t")}
    more = gain[LARGE] - gain["cbr_large_t"]
    return f"{more:+.1f} points over {terms.title('cbr_large_t')} (Table 3)"


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
    "transfer": effects.Claim(
        "performance",
        "Transfer hardly changes the final AUC",
        _gain,
        effects.by(accuracy.gains, tuned=True),
    ),
    "small_networks": effects.Claim(
        "performance",
        "Small networks keep up with ResNet-50",
        _shortfall,
        effects.by(accuracy.keeping_up, tuned=True),
    ),
    "source_accuracy": effects.Claim(
        "performance",
        "Accuracy on the source task does not foretell the medical AUC",
        _stated("Table 1"),
        source_accuracy,
        exploratory=True,
    ),
    "findings": effects.Claim(
        "performance",
        "On chest films effects are mixed: edema and effusion up, cardiomegaly and consolidation "
        "down",
        _stated("Table 2"),
        effects.by(accuracy.findings),
        exploratory=True,
    ),
    "little_data": effects.Claim(
        "small_data",
        "With little data transfer helps the large network most",
        _interaction,
        effects.by(accuracy.little_data, tuned=True),
    ),
    "shrinking": effects.Claim(
        "small_data",
        "The gain shrinks as data grow",
        _stated("Table 3"),
        effects.by(accuracy.shrinking, tuned=True),
    ),
    "frozen_features": effects.Claim(
        "performance",
        "Fine-tuning beats frozen features",
        lambda: "not confirmed",
        effects.by(accuracy.fine_tuning, tuned=True),
    ),
    "representations": effects.Claim(
        "representations",
        "Transfer leaves other features behind in large networks, not in small ones",
        _cca_gap,
        effects.by(features.other_features),
    ),
    "size": effects.Claim(
        "overparametrization",
        "Large networks change less than small ones while they learn",
        _stated("Figure 3"),
        effects.by(features.size),
    ),
    "low_reuse": effects.Claim(
        "overparametrization",
        "Pretrained weights are reused in the lowest blocks alone",
        _stated("Figure 3"),
        effects.by(features.low_reuse),
    ),
    "foretelling": effects.Claim(
        "overparametrization",
        "Similarity at the start foretells the end in large networks' low layers",
        _stated("Figure 4"),
        effects.by(features.foretelling),
    ),
    "moving": effects.Claim(
        "first_layer",
        "The first filters of large networks hardly move",
        _stated("Figure 5"),
        effects.by(filters.moving),
    ),
    "gabor_filters": effects.Claim(
        "first_layer",
        "Small networks learn no Gabor filters, and erase pretrained ones",
        _stated("Figure 5"),
        gabor_filters,
    ),
    "scaling": effects.Claim(
        "weight_scaling",
        "The scale of pretrained weights alone speeds convergence",
        _mean_var,
        scaling,
    ),
    "scale_alone": effects.Claim(
        "weight_scaling",
        "It is the scale of the weights, not batch norm",
        _stated("section 5"),
        effects.by(learning.scale_alone),
    ),
    "first_layer_most": effects.Claim(
        "transfusion",
        "The first pretrained layer adds most",
        _stated("Figure 7"),
        effects.by(learning.first_block),
    ),
    "low_layers": effects.Claim(
        "transfusion",
        "Low layers matter, not how many weights are pretrained",
        _stated("Figure 7"),
        effects.by(learning.low_against_many),
    ),
    "slim_tops": effects.Claim(
        "hybrids",
        "A slim ResNet-50 with two pretrained blocks keeps the AUC of full transfer",
        _stated("Figure 8"),
        effects.by(accuracy.slim),
    ),
    "made_gabors": effects.Claim(
        "hybrids",
        "Synthetic Gabors do as well as a pretrained first layer",
        _stated("Figure 8"),
        effects.by(learning.synthetic_gabors),
    ),
    "small_in_size_alone": effects.Claim(
        "efficiency",
        "Small networks are small in parameters, not in computation",
        lambda: "not discussed",
        small_in_size_alone,
        exploratory=True,
        counted=True,
    ),
    "any_recipe": effects.Claim(
        "robustness",
        "The answer on transfer does not hang on the recipe",
        lambda: "not tested",
        any_recipe,
        exploratory=True,
    ),
}


def decide(name: str, results: xr.Dataset) -> effects.Finding:
    """What these results say of a claim: where a chapter has several equal rates, what it says at
    all of them. Raises ValueError for an unknown one."""
    claim = CLAIMS[config.one_of(name, CLAIMS, "claim")]
    parts = contrasts.rates(results)
    if len(parts) == 1:
        return claim.decide(next(iter(parts.values())))
    return effects.all_of(*((f"at {rate:g}:", claim.decide(one)) for rate, one in parts.items()))


def corrected(rows: dict[str, effects.Finding], asked: list[str]) -> pd.DataFrame:
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
        columns=effects.Finding._fields,
    )
    table["adjusted"] = [adjusted.get(name, np.nan) for name in table.index]
    undecided = ["inconclusive", "not testable"]
    lost = (table["adjusted"] >= intervals.LEVEL) & ~table["verdict"].isin(undecided)
    return table.assign(alone=table["verdict"], verdict=table["verdict"].mask(lost, "inconclusive"))


def _p(finding: effects.Finding | None) -> float:
    return 1.0 if finding is None else finding.p

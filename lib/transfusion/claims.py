"""The claims of the paper, in its order: the chapter, the paper's number, and what decides each."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config, effects, figures, metrics, paper, representations, studies
from transfusion.effects import LARGE


class Finding(NamedTuple):
    """What a study says of a claim: a verdict, its p value, and the number behind it in words."""

    verdict: str
    p: float
    found: str


class Claim(NamedTuple):
    """A claim of the paper: its chapter, its words, its number, and what decides it."""

    chapter: str
    says: str
    paper: Callable[[], str]
    decide: Callable[[xr.Dataset], Finding]


TWICE = 2  # by how much operations must exceed what parameters suggest, see book/scope.md
# Of a claim that no run speaks to; not a test, so it does not count among those corrected for.
NOTHING = Finding("inconclusive", np.nan, "no run here speaks to it")


def _finding(
    table: pd.DataFrame, name: str, unit: str, digits: int, whose: object = None
) -> Finding:
    """Decided over all rows, with the number of one that the verdict rests on, and whose it is:
    the clearest unless told."""
    if table.empty:
        return NOTHING
    rows = effects.telling(table)
    row = rows.loc[whose] if whose in rows.index else effects.clearest(rows)
    return Finding(*effects.overall(table), _told(row, name, unit, digits))


def _told(row: pd.Series, name: str, unit: str, digits: int) -> str:
    who = row.name if isinstance(row.name, tuple) else (row.name,)
    return f"{_words(row, name, unit, digits)}, {', '.join(map(_named, who))}"


def _named(label: object) -> str:
    return f"{label:,} images" if isinstance(label, int | np.integer) else figures.title(str(label))


def _words(row: pd.Series, name: str, unit: str, digits: int) -> str:
    ends = (row[name], row["low"], row["high"], int(row["n"]))
    return effects.spread(*ends, digits=digits, unit=unit)


def _points(table: pd.DataFrame, name: str) -> Finding:
    return _finding(table, name, " points", 1)


def _rows(table: pd.DataFrame, **labels: object) -> pd.DataFrame:
    """Those with these labels, of which there may be none."""
    for level, label in labels.items():
        table = table[table.index.get_level_values(level) == label]
    return table if table.index.nlevels == len(labels) else table.droplevel([*labels])


def transfer(results: xr.Dataset) -> Finding:
    return _points(effects.gains(results), "gain")


def small_networks(results: xr.Dataset) -> Finding:
    """With the number of the one that lags furthest behind."""
    table = effects.keeping_up(results)
    if table.empty:
        return NOTHING
    worst = table.loc[table["high"].idxmin()]
    return Finding(*effects.overall(table), _told(worst, "difference", " points", 1))


def source_accuracy(results: xr.Dataset) -> Finding:
    rho = effects.source_rank(results)
    if rho.n == 0:
        return NOTHING
    if rho.n < 4:
        return Finding(*effects.loose(rho), f"only {rho.n} networks of one source")
    ends = f"{rho.mean:+.2f} [{rho.low:+.2f}, {rho.high:+.2f}]"
    return Finding(*effects.loose(rho), f"rank correlation {ends} over {rho.n} networks")


def findings(results: xr.Dataset) -> Finding:
    return _points(effects.mean_finding_gains(results), "gain")


def little_data(results: xr.Dataset) -> Finding:
    table = effects.interactions(results)
    least = table.index.get_level_values("train_images").min()
    return _points(_rows(table, train_images=least), "difference")


def shrinking(results: xr.Dataset) -> Finding:
    return _finding(effects.slopes(results), "slope", " points a doubling", 1, LARGE)


def frozen_features(results: xr.Dataset) -> Finding:
    return _points(effects.fine_tuning(results), "difference")


def other_features(results: xr.Dataset) -> Finding:
    """Of large networks and of small ones; nothing without the large."""
    table = representations.gap_verdicts(representations.gaps(results))
    return _finding(table, "gap", " CCA", 3, LARGE) if LARGE in table.index else NOTHING


def size(results: xr.Dataset) -> Finding:
    table = _rows(representations.size_effects(results), init="random")
    return _finding(table, "difference", " CCA", 3)


def low_reuse(results: xr.Dataset) -> Finding:
    return _finding(representations.reuse(results), "low minus rest", " CCA", 3, LARGE)


def foretelling(results: xr.Dataset) -> Finding:
    table = representations.foretold(results)
    mine = (LARGE, "first", "random, random")
    if mine not in table.index:
        return NOTHING
    words = f"R² {_words(table.loc[mine], 'R2', '', 2)}, {figures.title(LARGE)}"
    return Finding(*representations.foretold_decision(table), words)


def moving(results: xr.Dataset) -> Finding:
    return _finding(representations.further(results), "further", " % of a filter's length", 0)


def gabor_filters(results: xr.Dataset) -> Finding:
    """Both halves: none learned from random init, some erased from pretrained weights."""
    table = representations.movements(results)
    halves = {init: representations.gabor_changes(table, init) for init in effects.BOTH}
    if any(half.empty for half in halves.values()):
        return NOTHING
    both = pd.concat(halves, names=["init"]).swaplevel()
    found = _finding(both, "change", " % of the filters", 0)
    return found._replace(found=f"Gabors {found.found}")


def scaling(results: xr.Dataset) -> Finding:
    table = _rows(effects.speedups(results), init="mean_var")
    if table.empty:
        return NOTHING
    words = "; ".join(
        f"{figures.title(str(m))} {effects.ratio(row)}" for m, row in table.iterrows()
    )
    return Finding(*effects.overall(table), words)


def scale_alone(results: xr.Dataset) -> Finding:
    return _points(effects.variants(results), "difference")


def first_layer_most(results: xr.Dataset) -> Finding:
    return _points(effects.first_block(results), "difference")


def low_layers(results: xr.Dataset) -> Finding:
    return _points(effects.low_against_many(results), "difference")


def slim_tops(results: xr.Dataset) -> Finding:
    """Against full transfer alone; the other rows of `slim` are for the page."""
    return _points(_rows(effects.slim(results), model=LARGE, init="transfer"), "difference")


def made_gabors(results: xr.Dataset) -> Finding:
    return _points(_rows(effects.synthetic_gabors(results), init="transfusion:conv1"), "difference")


def small_in_size_alone(results: xr.Dataset) -> Finding:
    """`holds` for a smaller network whose share of the large one's multiply-adds is at least twice
    its share of the parameters. Both are counted, so there is nothing to estimate."""
    costs = results[["parameters", "multiply_adds"]].to_dataframe()
    if LARGE not in costs.index:
        return NOTHING
    shares = (costs / costs.loc[LARGE])[costs["parameters"] < costs.loc[LARGE, "parameters"]]
    if shares.empty:
        return NOTHING
    excess = shares["multiply_adds"] / shares["parameters"]
    small, work = shares.loc[excess.idxmin()]
    words = f"{small:.2f} of the parameters, {work:.2f} of the operations"
    verdict = metrics.overall(["holds" if e >= TWICE else "differs" for e in excess])
    return Finding(verdict, np.nan, f"{words}, {figures.title(str(excess.idxmin()))}")


def any_recipe(results: xr.Dataset) -> Finding:
    table = effects.gains_by_variant(results)
    table = table[~table.index.get_level_values("variant").isin(_other_tasks(results))]
    if table.empty:
        return NOTHING
    words = "; ".join(
        f"{variant}: {_told(effects.clearest(group.droplevel('variant')), 'gain', ' points', 1)}"
        for variant, group in table.groupby(level="variant", sort=False)
    )
    return Finding(*effects.stable(table), words)


def _other_tasks(results: xr.Dataset) -> list[str]:
    """Variants that replace the task: their answers may differ."""
    variants = json.loads(results.attrs.get("parameters", "{}")).get("variants", {})
    return [name for name, knobs in variants.items() if "target" in knobs]


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
    "transfer": Claim("performance", "Transfer hardly changes the final AUC", _gain, transfer),
    "small_networks": Claim(
        "performance", "Small networks keep up with ResNet-50", _shortfall, small_networks
    ),
    "source_accuracy": Claim(
        "performance",
        "Accuracy on the source task does not foretell the medical AUC",
        _stated("Table 1"),
        source_accuracy,
    ),
    "findings": Claim(
        "performance",
        "On chest films effects are mixed: edema and effusion up, cardiomegaly and consolidation "
        "down",
        _stated("Table 2"),
        findings,
    ),
    "little_data": Claim(
        "small_data",
        "With little data transfer helps the large network most",
        _interaction,
        little_data,
    ),
    "shrinking": Claim(
        "small_data", "The gain shrinks as data grow", _stated("Table 3"), shrinking
    ),
    "frozen_features": Claim(
        "small_data",
        "Fine-tuning beats frozen features",
        lambda: "not confirmed",
        frozen_features,
    ),
    "representations": Claim(
        "representations",
        "Transfer leaves other features behind in large networks, not in small ones",
        _cca_gap,
        other_features,
    ),
    "size": Claim(
        "overparametrization",
        "Large networks change less than small ones while they learn",
        _stated("Figure 3"),
        size,
    ),
    "low_reuse": Claim(
        "overparametrization",
        "Pretrained weights are reused in the lowest blocks alone",
        _stated("Figure 3"),
        low_reuse,
    ),
    "foretelling": Claim(
        "overparametrization",
        "Similarity at the start foretells the end in large networks' low layers",
        _stated("Figure 4"),
        foretelling,
    ),
    "moving": Claim(
        "first_layer",
        "The first filters of large networks hardly move",
        _stated("Figure 5"),
        moving,
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
        scale_alone,
    ),
    "first_layer_most": Claim(
        "transfusion",
        "The first pretrained layer adds most",
        _stated("Figure 7"),
        first_layer_most,
    ),
    "low_layers": Claim(
        "transfusion",
        "Low layers matter, not how many weights are pretrained",
        _stated("Figure 7"),
        low_layers,
    ),
    "slim_tops": Claim(
        "hybrids",
        "A slim ResNet-50 with two pretrained blocks keeps the AUC of full transfer",
        _stated("Figure 8"),
        slim_tops,
    ),
    "made_gabors": Claim(
        "hybrids",
        "Synthetic Gabors do as well as a pretrained first layer",
        _stated("Figure 8"),
        made_gabors,
    ),
    "small_in_size_alone": Claim(
        "efficiency",
        "Small networks are small in parameters, not in computation",
        lambda: "not discussed",
        small_in_size_alone,
    ),
    "any_recipe": Claim(
        "robustness",
        "The answer on transfer does not hang on the recipe",
        lambda: "not tested",
        any_recipe,
    ),
}


def decide(name: str, results: xr.Dataset) -> Finding:
    """What these results say of a claim; raises ValueError for an unknown one."""
    return CLAIMS[config.one_of(name, CLAIMS, "claim")].decide(results)


def table(study: str) -> pd.DataFrame:
    """All claims that a study has collected results for: verdict, p, found, and `adjusted`, p for
    the number of claims (Benjamini and Hochberg). What p alone decided and `adjusted` does not is
    inconclusive, and `alone` keeps the verdict that it would have by itself."""
    rows = {}
    for name, claim in CLAIMS.items():
        try:
            found = claim.decide(studies.results(study, claim.chapter))
        except FileNotFoundError:
            continue
        if found is not NOTHING:
            rows[name] = found._asdict()
    return _corrected(pd.DataFrame.from_dict(rows, orient="index", columns=Finding._fields))


def _corrected(found: pd.DataFrame) -> pd.DataFrame:
    p = found["p"].to_numpy(float)
    adjusted = metrics.adjusted(p) if len(p) else p
    lost = (adjusted >= metrics.LEVEL) & (found["verdict"] != "inconclusive")
    verdict = found["verdict"].mask(lost, "inconclusive")
    return found.assign(p=p, adjusted=adjusted, alone=found["verdict"], verdict=verdict)

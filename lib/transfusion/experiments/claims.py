"""All claims of the paper, in its order, decided and corrected for their number."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config
from transfusion.experiments import accuracy, alternatives, deciding, features, filters, learning
from transfusion.statistics import contrasts, intervals

# In the order of the paper, which is that of the book.
CLAIMS = {
    **accuracy.CLAIMS,
    **features.CLAIMS,
    **filters.CLAIMS,
    **learning.CLAIMS,
    **alternatives.CLAIMS,
}


def decide(name: str, results: xr.Dataset) -> deciding.Finding:
    """What these results say of a claim: where a chapter has several equal rates, what it says at
    all of them. Raises ValueError for an unknown one."""
    claim = CLAIMS[config.one_of(name, CLAIMS, "claim")]
    parts = contrasts.rates(results)
    if len(parts) == 1:
        return claim.decide(next(iter(parts.values())))
    return deciding.all_of(*((f"at {rate:g}:", claim.decide(one)) for rate, one in parts.items()))


def corrected(rows: dict[str, deciding.Finding], asked: list[str]) -> pd.DataFrame:
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
        columns=deciding.Finding._fields,
    )
    table["adjusted"] = [adjusted.get(name, np.nan) for name in table.index]
    undecided = ["inconclusive", "not testable"]
    lost = (table["adjusted"] >= intervals.LEVEL) & ~table["verdict"].isin(undecided)
    return table.assign(alone=table["verdict"], verdict=table["verdict"].mask(lost, "inconclusive"))


def _p(finding: deciding.Finding | None) -> float:
    return 1.0 if finding is None else finding.p

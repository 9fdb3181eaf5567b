"""The paper's reported numbers as data: where each stands, and how far to trust it."""

from functools import cache
from importlib.resources import files

import pandas as pd


def numbers(where: str, measure: str) -> pd.DataFrame:
    """Rows of one table or figure (`Table 1`) for one measure, indexed by model and init.

    AUC is in percent, CCA in [0, 1], speed-up a ratio of steps. Raises ValueError if there are
    none.
    """
    table = _table()
    rows = table[(table["where"] == where) & (table["measure"] == measure)]
    if rows.empty:
        raise ValueError(f"nothing recorded of {measure!r} in {where!r}")
    return rows.astype({"value": float}).set_index(["model", "init"])


def measures(where: str) -> set[str]:
    """What is recorded of one table or figure."""
    table = _table()
    return set(table.loc[table["where"] == where, "measure"])


@cache
def _table() -> pd.DataFrame:
    """`confidence` is, from most to least, confirmed by arithmetic, second hand, read off the
    figure, or unconfirmed: no source seen has it, for the paper's appendix was not read."""
    return pd.read_csv(str(files("transfusion.experiments") / "paper.csv"), keep_default_na=False)

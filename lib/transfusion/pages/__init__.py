"""What pages say in words and tables, and the book that is built of them.

Notebooks take from here, `pages.verdict_box(results, "transfer")`: `verdicts` on claims, `tables`
of what was measured; `build` makes the book. The top of the house: nothing below imports it.
"""

from transfusion.pages.tables import (
    cost_table,
    difference_table,
    effect_table,
    effects_table,
    finding_table,
    footer,
    gap_table,
    glue,
    levels_table,
    measures_table,
    movement_table,
    source_table,
    speedup_table,
    tuning_table,
)
from transfusion.pages.verdicts import (
    all_verdicts,
    answers,
    badge,
    claims_table,
    convergence,
    how_good,
    shown,
    tally,
    verdict_box,
)

__all__ = [
    "all_verdicts",
    "answers",
    "badge",
    "claims_table",
    "convergence",
    "cost_table",
    "difference_table",
    "effect_table",
    "effects_table",
    "finding_table",
    "footer",
    "gap_table",
    "glue",
    "levels_table",
    "measures_table",
    "movement_table",
    "how_good",
    "shown",
    "source_table",
    "speedup_table",
    "tally",
    "tuning_table",
    "verdict_box",
]

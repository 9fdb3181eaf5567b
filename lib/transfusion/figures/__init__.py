"""Figures of the pages: a collected Dataset or a table in, a HoloViews element out.

Pages take them from here, `figures.performance(results)`: of trainings in `runs`, of what networks
compute in `representations`, of images and filters in `pictures`. They ask experiments, not pages.
"""

from transfusion.figures.pictures import contact_sheet, filters, first_filters, gabors
from transfusion.figures.representations import (
    against_size,
    chance,
    change,
    few_datapoints,
    foretold,
    maps,
    seed_pairs,
    similarity,
)
from transfusion.figures.runs import (
    arms,
    at_rates,
    curves,
    efficiency,
    intervals,
    performance,
    tuning,
)
from transfusion.figures.style import setup

__all__ = [
    "against_size",
    "arms",
    "at_rates",
    "chance",
    "change",
    "contact_sheet",
    "curves",
    "efficiency",
    "few_datapoints",
    "filters",
    "first_filters",
    "foretold",
    "gabors",
    "intervals",
    "maps",
    "performance",
    "seed_pairs",
    "setup",
    "similarity",
    "tuning",
]

import io
import json

import holoviews as hv
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from transfusion import figures, pages
from transfusion.experiments import accuracy, paper
from transfusion.pages import tables

from ..made_up import (
    PROVENANCE,
    RUN,
    performance,
    scored,
    two,
)

FINDINGS = ("edema", "effusion")
COSTS = {"memory": ("model", [1, 2]), "seconds": ("model", [1, 2])}
CURVES = two((300, 100), (300, 130), noise=0)


def of_study(results, study):
    return results.assign_attrs(runs="[]", parameters=json.dumps({"study": study}))


def test_filters_and_contact_sheets_are_small_pictures(rng):
    assert figures.filters(rng.normal(size=(32, 3, 5, 5))).data[:4] == b"\x89PNG"
    sheet = figures.contact_sheet(rng.integers(0, 255, (2, 3, 3, 8, 8), dtype=np.uint8))
    assert PIL.Image.open(io.BytesIO(sheet.data)).size == (3 * 10, 2 * 10)


def test_the_papers_numbers_say_how_far_to_trust_them():
    table = paper.numbers("Table 1", "auc")
    assert set(paper._table()["confidence"]) == {
        *("confirmed by arithmetic", "second hand", "read off the figure", "unconfirmed")
    }
    assert table.loc[("resnet50", "transfer"), "value"] == 96.7
    with pytest.raises(ValueError, match="nothing recorded"):
        paper.numbers("Table 9", "auc")


@pytest.mark.parametrize(
    ("finding", "paper_has"), [("Pleural Effusion", True), ("Hernia", False), ("label 0", False)]
)
def test_findings_that_the_paper_has_not_stand_without_its_number(finding, paper_has):
    """CheXpert's own name of an effusion, others of NIH's, columns of people's tables."""
    curves = {(m, i): [0, 0] for m in ("cbr_tiny", "resnet50") for i in ("random", "transfer")}
    results = scored(curves, findings=(finding, "Edema")).assign_attrs(PROVENANCE)
    rows = pages.finding_table(results).data.split("<tr")
    row = next(row for row in rows if finding in row and "ResNet-50" in row)
    assert ("–" in row) != paper_has


EVIL = "</script><script>alert(1)</script>"


def drawn(draw, results):
    figures.setup()
    return hv.renderer("bokeh").html(draw(results))


def footer(**facts):
    runs = json.dumps([{**RUN, "seed": 0, **{n: v for n, v in facts.items() if n in RUN}}])
    told = {"study": facts.get("study", "s"), "target": facts.get("target", "t")}
    results = performance(0.1).assign_attrs(runs=runs, parameters=json.dumps(told))
    return pages.footer(results, facts.get("chapter", "performance"))


@pytest.mark.parametrize(
    "show",
    [
        lambda: pages.levels_table(performance(0.1, models=(EVIL, "resnet50"))),
        lambda: pages.effect_table(accuracy.gains, performance(0.1, models=(EVIL, "resnet50"))),
        lambda: pages.finding_table(
            scored(
                {("resnet50", i): [0, 0] for i in ("random", "transfer")}, findings=(EVIL, "Edema")
            )
        ),
        *(
            lambda n=n: footer(**{n: EVIL})
            for n in (*RUN, "study", "target", "chapter")
            if n != "seconds"
        ),
        lambda: pages.badge(EVIL),
        lambda: pages.shown(EVIL, EVIL, print),
        lambda: pages.answers(pd.DataFrame(), EVIL, "transfer"),
        lambda: tables.styled(pd.DataFrame({EVIL: [EVIL]}, index=[EVIL])),
        lambda: drawn(figures.curves, performance(0.1, models=(EVIL, "resnet50"))),
        lambda: drawn(figures.performance, performance(0.1, models=(EVIL, "resnet50"))),
    ],
)
def test_a_name_is_a_word_on_a_page_and_no_markup(show):
    """Findings are named by people's tables, devices and commits by whoever sent a record."""
    page = getattr(show(), "data", show())
    assert EVIL not in page and "alert(1)" in page

import io
import json
import re

import holoviews as hv
import numpy as np
import PIL.Image
import pytest
import xarray as xr
from transfusion import figures, pages, store, terms
from transfusion.experiments import (
    accuracy,
    alternatives,
    claims,
    features,
    filters,
    learning,
    paper,
    tuning,
)
from transfusion.figures import style
from transfusion.pages import tables, verdicts
from transfusion.similarity import simulation
from transfusion.statistics import contrasts
from transfusion.studies import params

from .. import made_up
from ..made_up import (
    COMPARED,
    FALLING,
    LARGE,
    LEVEL,
    RUNS,
    at_rates,
    changed,
    efficiency,
    failed,
    first_layers,
    frozen,
    ignorant,
    performance,
    predicted,
    scored,
    similarity,
    sources,
    two,
)

FINDINGS = ("edema", "effusion")
COSTS = {"memory": ("model", [1, 2]), "seconds": ("model", [1, 2])}
CURVES = two((300, 100), (300, 130), noise=0)


def of_study(results, study):
    return results.assign_attrs(runs="[]", parameters=json.dumps({"study": study}))


def test_verdicts_in_words():
    said = ["holds", "differs", "holds", "not testable"]
    assert pages.counted(said, ["cbr_tiny", "resnet50", "cbr_small", "cbr_large_t"]) == (
        "holds for CBR-Tiny and CBR-Small; differs for ResNet-50; not testable for CBR-LargeT"
    )
    assert pages.counted(said[:3]) == "holds 2 of 3 times; differs 1 of 3 times"


def test_tables_show_interval_and_n():
    table = contrasts.table(accuracy.gains(performance([0.0, 0.0])))
    text = pages.difference_table(table, "gain").data
    assert text.count(f"(n&nbsp;=&nbsp;{RUNS}, 150 patients)") == 2 and "holds" in text
    assert "+0.054" in pages.measures_table(similarity([0.0, 0.054], noise=0)).data
    gaps = pages.gap_table(similarity([0.0, 0.054], noise=0)).data
    assert f"+0.0540 [+0.0540,&nbsp;+0.0540] (n&nbsp;=&nbsp;{COMPARED})" in gaps
    text = pages.speedup_table(learning.speedups(CURVES)).data
    assert "2.3 [2.3,&nbsp;2.3]" in text and "<td>2.3</td>" in text  # ours, and the paper's
    moved = [[0.1, 0.05], [0.01, 0.01]]
    layers = first_layers(moved, [[[0, 0], [0.5, 0.25]], [[0, 0], [0.8, 0.8]]])
    text = pages.movement_table(filters.movements(layers)).data
    assert "CBR-Small" in text and "50, 25" in text and "-25.0 [-25.0,&nbsp;-25.0]" in text


def cells(html):
    """Of a table, rows of what stands in them."""
    return [re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row) for row in html.split("<tr")[1:]]


def test_levels_begin_with_what_needs_no_training():
    results = of_study(frozen([0.05, 0.05]), "retina")
    head, *rows = cells(pages.levels_table(results).data)
    baselines = ["18 statistics", "thumbnail 8×8"]
    probes = [f"frozen {i} features, {m}" for m in ("CBR-Small", "ResNet-50")
              for i in ("random", "pretrained")]  # fmt: skip
    assert [row[0] for row in rows][:6] == baselines + probes
    assert head[-2:] == ["learned", "paper"]
    assert {tuple(row[-2:]) for row in rows[6:]} >= {("yes", "95.7†"), ("yes", "96.7")}
    found = dict(zip(head, rows[-1], strict=True))
    assert found["above 18 statistics"].startswith("+20.") and found["n"] == str(RUNS)
    other = pages.levels_table(of_study(ignorant(results), "cells")).data
    assert other.count("not learned") == 4 and "96.7" not in other


def test_what_decides_stands_below_its_rows():
    rows = cells(pages.effect_table(accuracy.gains, performance([0.0, 0.05])).data)
    assert [row[0] for row in rows[1:]] == ["CBR-Tiny", "ResNet-50", "<b>mean, decides</b>"]
    assert ["holds" in row[-1] for row in rows[1:]] == [True, False, False]
    assert rows[3][1].startswith("+2.50 [+2.40,&nbsp;+2.60]")
    lost = ignorant(performance([0.0, 0.05]), model=LARGE)
    rows = cells(pages.effect_table(accuracy.gains, lost).data)
    assert rows[2][-1] == pages.badge("not testable") and rows[3][1].startswith("+0.0")
    none = pages.effect_table(accuracy.gains, ignorant(performance(0.0))).data
    assert none.count("not testable") == 2 and "decides" not in none
    assert "No run" in pages.effect_table(accuracy.gains, failed(performance(0.0))).data


def test_what_decides_stands_at_each_rate():
    results = at_rates(performance(0.0), performance(0.05))
    rows = cells(pages.effect_table(accuracy.gains, results).data)
    assert [row[0] for row in rows[1:]] == ["0.0003"] * 3 + ["0.001"] * 3
    assert [row[1] for row in rows].count("<b>mean, decides</b>") == 2
    keyed = cells(pages.effect_table(accuracy.keeping_up, performance(0.0)).data)
    assert keyed[-1][:2] == ["<b>mean, decides</b>", ""]


def test_a_bound_is_no_interval():
    table = learning.speedups(two((300, 5000), (300, 100), noise=0))
    text = pages.speedup_table(table).data
    assert "≤ 0." in text and "3.0 [3.0,&nbsp;3.0]" in text and "inconclusive" in text
    assert "No run" in pages.speedup_table(table.iloc[:0]).data


def test_tables_of_other_chapters():
    films = scored({("cbr_tiny", "random"): [1.0] * 2, ("cbr_tiny", "transfer"): [1.5] * 2},
                   FINDINGS)  # fmt: skip
    text = pages.finding_table(films).data
    assert all(finding in text for finding in FINDINGS) and "p, adjusted" in text
    assert "one question" in pages.finding_table(performance([0.0, 0.0])).data
    table = alternatives.gabors_beside(performance([0.0, 0.0]))
    assert "No run" in pages.difference_table(table, "difference").data
    costs = efficiency({"cbr_tiny": (1_000_000, 5_000_000)})
    extra = {"memory": ("model", [2e6, 3e6]), "seconds": costs.test_auc * 0 + 7}
    assert "<td>0.005</td>" in pages.cost_table(costs.assign(extra)).data
    text = pages.source_table(sources([0.6, 0.7])).data
    assert "net0" in text and "70.0" in text
    assert "No network" in pages.source_table(performance([0.0, 0.0])).data


def test_the_chosen_rate_is_bold():
    low, high = performance(0.02, folds=1), performance(0.01, folds=1)
    rates = made_up.stacked({0.001: low, 0.01: high, 0.1: failed(high, seed=0)}, "lr")
    text = pages.tuning_table(rates).data
    assert text.count("<b>") == 4 and "<b>82.00</b>" in text
    assert text.count("at an end") == 4


def test_a_box_has_claim_number_and_verdict():
    names = ("transfer", "small_networks", "findings")  # the last of which no run speaks to
    text = pages.verdict_box(performance([0.0, 0.0]), *names).data
    assert text.count("<p>Paper:") == 2 and "holds" in text and "p&nbsp;below 0.001" in text
    assert "Transfer hardly changes the final AUC." in text and "edema" not in text
    assert text.count("without the fold that chose the rates") == 2
    lost = pages.verdict_box(ignorant(performance(0.0)), "transfer").data
    assert pages.badge("not testable") in lost and "have not learned the task" in lost
    assert 'class="verdict not-testable"' in lost and "for all claims" not in lost


def test_a_box_decides_by_the_p_of_all_claims(cache, monkeypatch):
    """Of a study that asks more than the page shows, and has nothing else yet."""
    results = of_study(performance(0.0, noise=0.008, seed=1), "made_up")
    by_itself = claims.decide("transfer", results)
    assert by_itself.verdict == "holds" and 0.005 < by_itself.p < 0.05
    assert "holds" in pages.verdict_box(results, "transfer").data
    monkeypatch.setattr(verdicts, "_chapters", lambda study: ["performance", *MANY])
    text = pages.verdict_box(results, "transfer").data
    asked = sum(c.chapter in ("performance", *MANY) and not c.exploratory
                for c in claims.CLAIMS.values())  # fmt: skip
    assert pages.badge("inconclusive") in text and "by itself holds" in text
    assert f"p&nbsp;{verdicts.p_words(min(1, asked * by_itself.p))} for all claims" in text


MANY = ("small_data", "representations", "overparametrization", "first_layer", "weight_scaling",
        "transfusion", "hybrids")  # fmt: skip


@pytest.fixture
def collected_alone(cache, monkeypatch):
    """Of studies what is saved here, whatever their parameters ask for."""
    monkeypatch.setattr(params, "studies", lambda: [])


def test_the_front_page_links_each_answer_to_its_chapter(collected_alone, monkeypatch):
    monkeypatch.setattr(verdicts, "_is_to_come", lambda study, chapter: study == "chest")
    for study, gain in (("quick", 0.0), ("retina", 0.05)):
        store.save(study, "performance", of_study(performance(gain), study))
    text = pages.claims_table(["quick", "retina", "cxr", "chest"], main="quick").data
    assert 'href="performance.html"' in text and 'href="retina/performance.html"' in text
    head, first, *rest = cells(text)
    told = dict(zip(head, first, strict=True))
    assert told["Paper"] == "+0.3 points, ResNet-50 (Table 1, retinas)"
    assert len(rest) + 1 == len(claims.CLAIMS) and "holds" in told["Drawn objects"]
    assert pages.badge("differs") in told["Real retinas"] and told["NIH chest films"] == "–"
    assert 'href="chest/performance.html"' in told["Pneumonia of children"]
    assert "still to come" in told["Pneumonia of children"]


def test_answers_lead_to_their_pages_and_are_counted(collected_alone):
    store.save("retina", "performance", of_study(performance(0.05), "retina"))
    table = pages.all_verdicts("retina")
    text = pages.answers(table, "retina", "transfer").data
    assert 'href="retina/performance.html"' in text and f"(n&nbsp;=&nbsp;{RUNS}, 150" in text
    said = list(table["verdict"])
    assert said.count("differs") == 1
    assert pages.tally("retina").startswith(f"of {len(said)} claims, ")
    assert "1 differs" in pages.tally("retina")
    assert pages.tally("drawn") == "no claim was tested yet"
    store.save("cxr", "performance", of_study(ignorant(performance(0.05)), "cxr"))
    assert pages.tally("cxr") == f"of {len(said)} claims, {len(said)} are not testable"


def test_footer_names_every_run():
    results = performance([0.0, 0.0]).assign_attrs(parameters='{"study": "retina"}')
    text = pages.footer(results, "performance").data
    assert "Where these numbers come from" in text and "<td>k</td>" in text
    assert "transfusion run retina --chapter performance" in text


def test_figures_are_drawn():
    figures.setup()
    marks = [e for e in figures.performance(performance([0.0, 0.0])) if type(e) is hv.Scatter]
    assert [m.label for m in marks] == ["random", "transfer"]
    assert list(figures.curves(CURVES).keys()) == ["CBR-Tiny", "ResNet-50"]
    by_model = figures.similarity(similarity([0.0, 0.05]))
    assert list(by_model.keys())[0] == ("ResNet-50", "mean CCA") and len(by_model) == 4
    overlay = by_model["ResNet-50", "linear CKA"]
    marks = overlay.get(1).data
    assert len(marks) == 2 * COMPARED * (COMPARED - 1) / 2  # two blocks, pairs of random networks
    assert len(figures.maps(similarity([0, 0]))["CBR-Small", "mean CCA"].data) == 4
    before_after = changed([FALLING, LEVEL], [LEVEL, LEVEL])
    assert len(figures.change(before_after)["CBR-Small", "mean CCA"].get(1).data) == 4 * COMPARED
    against = figures.against_size(features.kept(before_after), before_after.parameters)
    assert set(against.get(0).data["parameters"]) == {1, 2}  # millions
    assert len(figures.foretold(predicted([[0, 0], [1, 0]]))) == 4
    layers = first_layers([[0.1, 0.1], [0.1, 0.1]], np.zeros((2, 2, 2)))
    assert len(figures.gabors(layers)) == 2
    drawn = figures.first_filters(layers.assign_attrs(parameters='{"steps": 50}'))
    assert [key[2] for key in drawn.keys()][:2] == [0, 50]  # before and after training
    tiles = drawn["ResNet-50", "random", 0].dimension_values("weight", flat=False)
    tiles = tiles[::-1].reshape(3, 6, 8, 6).transpose(0, 2, 1, 3).reshape(24, 6, 6)
    filters, between = tiles[:20, :5, :5].reshape(20, -1).astype(int), tiles[:, 5]
    assert (np.abs(filters - 127).max(1) == 127).all()  # each in its own range
    assert (between == 255).all() and (tiles[20:] == 255).all()
    assert len(figures.efficiency(efficiency({"cbr_tiny": (1, 5)}).assign(COSTS))) == 4
    gains = contrasts.table(accuracy.gains(performance([0.0, 0.05])))
    assert len(figures.intervals(gains, "gain", "points").get(2).data) == 2
    marks = [e for e in figures.arms(performance([0.0, 0.05])) if type(e) is hv.Scatter]
    assert [len(m.data) for m in marks] == [RUNS] * 4
    costs = figures.efficiency(efficiency({"cbr_tiny": (1, 5)}).assign(COSTS))["parameters"]
    assert {*costs.get(2).data["name"]} == {"CBR-Tiny", "ResNet-50"}
    rates = at_rates(CURVES, CURVES)
    assert len(figures.tuning(rates, tuning.last_validation(rates))) == 2
    assert len(figures.at_rates(figures.arms, rates)) == 2
    simulated = simulation.simulate([20, 40], neurons=4, positions=2, tau=0.5, repeats=2)
    assert len(figures.chance(simulated)) == 3 and len(figures.few_datapoints(simulated)) == 6


def test_series_are_named_beside_their_marks():
    """Apart, in tones that can be read (WCAG 2 AA), and only where there are few."""
    placed = style.apart([0.3, 0.1, 0.12, 0.11], 0.05)
    assert np.diff(sorted(placed)).min() >= 0.05 - 1e-12 and placed[1] == 0.1
    assert np.argsort(placed).tolist() == [1, 3, 2, 0]
    colors = [init.color for init in terms.INITS.values() if init.color]
    colors += [color for color, _ in terms.DRAWN.values()]
    for color in [*colors, *terms.BLOCKS.values(), terms.NULL]:
        ink = style._ink(color)
        rgb = np.array([int(ink[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (light @ (0.2126, 0.7152, 0.0722) + 0.05) >= 4.5, color
    named = [e for e in figures.curves(CURVES)["ResNet-50"] if type(e) is hv.Labels]
    assert list(named[0]["name"]) == ["random", "Mean Var"]
    parts = [CURVES[["auc"]].assign_coords(init=[f"transfusion:{a}", f"suffix:{a}"])
             for a in ("block1", "block2")]  # fmt: skip
    many = xr.concat(parts, "init", data_vars="all", coords="minimal", join="exact")
    assert not any(type(e) is hv.Labels for e in figures.curves(many)["ResNet-50"])


def test_effort_is_told_in_fitting_units():
    hours = (1.34, 0.45, 1 / 60, 0)
    told = ["1.3 core-hours", "27 core-minutes", "about a core-minute", "about a core-minute"]
    assert [tables._effort(h) for h in hours] == told
    assert tables._effort(0.15, "NVIDIA H200") == "9 minutes of trainings on NVIDIA H200"


def test_names_of_rows_leave_a_phone_room():
    label = "CBR-Tiny, Mean Var, batch norm redrawn"
    lines = style.folded(label).split("\n")
    assert " ".join(lines) == label and max(map(len, lines)) <= 24


def test_filters_and_contact_sheets_are_small_pictures(rng):
    assert figures.filters(rng.normal(size=(32, 3, 5, 5))).data[:4] == b"\x89PNG"
    sheet = figures.contact_sheet(rng.integers(0, 255, (2, 3, 3, 8, 8), dtype=np.uint8))
    assert PIL.Image.open(io.BytesIO(sheet.data)).size == (3 * 10, 2 * 10)


def test_the_papers_numbers_say_how_far_to_trust_them():
    table = paper.numbers("Table 1", "auc")
    assert set(table["confidence"]) <= set(paper.CONFIDENCE)
    assert table.loc[("resnet50", "transfer"), "value"] == 96.7
    with pytest.raises(ValueError, match="nothing recorded"):
        paper.numbers("Table 9", "auc")

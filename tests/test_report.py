import io
import re

import holoviews as hv
import numpy as np
import PIL.Image
import pytest
import xarray as xr
from transfusion import claims, effects, figures, paper, report, representations, simulation, store

from .made_up import (
    FALLING,
    LEVEL,
    SEEDS,
    changed,
    efficiency,
    first_layers,
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


def test_verdicts_in_words():
    verdicts = ["holds", "differs", "holds", "holds"]
    assert report.counted(verdicts, ["cbr_tiny", "resnet50", "cbr_small", "cbr_large_t"]) == (
        "holds for CBR-Tiny, CBR-Small and CBR-LargeT; differs for ResNet-50"
    )
    assert report.counted(verdicts) == "holds 3 of 4 times; differs 1 of 4 times"


def test_tables_show_interval_and_n():
    results = performance([0.0, 0.0])
    text = report.performance_table(results).data
    assert "CBR-Tiny" in text and "95.8†" in text and "96.4" in text
    text = report.difference_table(effects.gains(results), "gain").data
    assert text.count(f"(n&nbsp;=&nbsp;{SEEDS})") == 2 and "holds" in text
    assert "+0.054" in report.measures_table(similarity([0.0, 0.054], noise=0)).data
    assert "+0.054" in report.gap_table(similarity([0.0, 0.054], noise=0)).data
    text = report.speedup_table(effects.speedups(CURVES)).data
    assert "2.3 [2.3,&nbsp;2.3]" in text and "<td>2.3</td>" in text  # ours, and the paper's
    moved = [[0.1, 0.05], [0.01, 0.01]]
    layers = first_layers(moved, [[[0, 0], [0.5, 0.25]], [[0, 0], [0.8, 0.8]]])
    text = report.movement_table(representations.movements(layers)).data
    assert "CBR-Small" in text and "50, 25" in text and "-25 [-27,&nbsp;-23]" in text


def test_tables_of_other_chapters():
    films = scored({("cbr_tiny", "random"): 1.0, ("cbr_tiny", "transfer"): 1.5}, FINDINGS)
    text = report.finding_table(films).data
    assert all(finding in text for finding in FINDINGS) and "+0.55" not in text
    assert "one question" in report.finding_table(performance([0.0, 0.0])).data
    assert "No run" in report.difference_table(effects.variants(CURVES), "difference").data
    costs = efficiency({"cbr_tiny": (1_000_000, 5_000_000)})
    extra = {"memory": ("model", [2e6, 3e6]), "seconds": costs.test_auc * 0 + 7}
    assert "<td>0.005</td>" in report.cost_table(costs.assign(extra)).data
    rates = xr.concat([CURVES.isel(seed=[0]), 0.9 * CURVES.isel(seed=[0])], "lr")
    text = report.tuning_table(rates.assign_coords(lr=[0.001, 0.01])).data
    assert text.count("<b>") == CURVES.sizes["model"] * CURVES.sizes["init"]
    text = report.source_table(sources([0.6, 0.7])).data
    assert "net0" in text and "70.0" in text
    assert "No network" in report.source_table(performance([0.0, 0.0])).data


def test_the_front_page_links_each_answer_to_its_chapter(cache):
    for study, gain in (("quick", 0.0), ("retina", 0.05)):
        store.save(study, "performance", performance(gain).assign_attrs(runs="[]"))
    text = report.claims_table(["quick", "retina", "cxr"], main="quick").data
    assert 'href="performance.html"' in text and 'href="retina/performance.html"' in text
    first = re.findall("<td>(.*?)</td>", text.split("<tr")[2])
    heads = re.findall(">([^<]*)</th>", text.split("<tr")[1])[1:]
    cells = dict(zip(heads, first, strict=True))
    assert cells["Paper"] == "+0.3 points, ResNet-50 (Table 1, retinas)"
    assert text.count("<tr") == 1 + len(claims.CLAIMS) and "Chest films" in text
    assert "differs" in text and cells["Chest films"] == "–"


def test_answers_lead_to_their_pages_and_are_counted(cache):
    store.save("retina", "performance", performance(0.05).assign_attrs(runs="[]"))
    table = claims.table("retina")
    text = report.answers(table, "retina", "transfer").data
    assert 'href="retina/performance.html"' in text and f"(n&nbsp;=&nbsp;{SEEDS})" in text
    verdicts = list(table["verdict"])
    assert verdicts.count("differs") == 1
    assert report.tally("retina").startswith(f"of {len(verdicts)} claims, ")
    assert "1 differs" in report.tally("retina")
    assert report.tally("cxr") == "no claim was tested yet"


def test_a_box_has_claim_number_and_verdict():
    names = ("transfer", "small_networks", "findings")  # the last of which no run speaks to
    text = report.verdict_box(performance([0.0, 0.0]), *names).data
    assert text.count("<p>Paper:") == 2 and "holds" in text and "p&nbsp;below 0.001" in text
    assert "Transfer hardly changes the final AUC." in text and "edema" not in text


def test_footer_names_every_run():
    results = performance([0.0, 0.0]).assign_attrs(parameters='{"study": "retina"}')
    text = report.footer(results, "performance").data
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
    assert len(marks) == 2 * SEEDS * (SEEDS - 1) / 2  # two blocks, pairs of random networks
    assert len(figures.maps(similarity([0, 0]))["CBR-Tiny", "mean CCA"].data) == 4
    before_after = changed([FALLING, LEVEL], [LEVEL, LEVEL])
    assert len(figures.change(before_after)["CBR-Small", "mean CCA"].get(1).data) == 4 * SEEDS
    against = figures.against_size(representations.kept(before_after), before_after.parameters)
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
    gains = effects.gains(performance([0.0, 0.05]))
    assert len(figures.intervals(gains, "gain", "points").get(2).data) == 2
    assert len(figures.arms(performance([0.0, 0.05]))) == 4
    costs = figures.efficiency(efficiency({"cbr_tiny": (1, 5)}).assign(COSTS))["parameters"]
    assert {*costs.get(2).data["name"]} == {"CBR-Tiny", "ResNet-50"}
    rates = xr.concat([CURVES.isel(seed=[0])] * 2, "lr").assign_coords(lr=[0.001, 0.01])
    assert len(figures.tuning(rates)) == 2
    simulated = simulation.simulate([20, 40], neurons=4, positions=2, tau=0.5, repeats=2)
    assert len(figures.chance(simulated)) == 3 and len(figures.few_datapoints(simulated)) == 6


def test_series_are_named_beside_their_marks():
    """Apart, in tones that can be read (WCAG 2 AA), and only where there are few."""
    placed = figures._apart([0.3, 0.1, 0.12, 0.11], 0.05)
    assert np.diff(sorted(placed)).min() >= 0.05 - 1e-12 and placed[1] == 0.1
    assert np.argsort(placed).tolist() == [1, 3, 2, 0]
    colors = [color for color, _ in figures.MARKS.values()]
    for color in [*colors, *figures.BLOCKS.values(), figures.NULL]:
        ink = figures._ink(color)
        rgb = np.array([int(ink[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        assert 1.05 / (light @ (0.2126, 0.7152, 0.0722) + 0.05) >= 4.5, color
    named = [e for e in figures.curves(CURVES)["ResNet-50"] if type(e) is hv.Labels]
    assert list(named[0]["name"]) == ["random", "Mean Var"]
    many = xr.concat([CURVES.assign_coords(init=[f"transfusion:{a}", f"suffix:{a}"])
                      for a in ("block1", "block2")], "init")  # fmt: skip
    assert not any(type(e) is hv.Labels for e in figures.curves(many)["ResNet-50"])


def test_effort_is_told_in_fitting_units():
    hours = (1.34, 0.45, 1 / 60, 0)
    told = ["1.3 core-hours", "27 core-minutes", "about a core-minute", "about a core-minute"]
    assert [report._effort(h) for h in hours] == told


def test_names_of_rows_leave_a_phone_room():
    label = "CBR-Tiny, Mean Var, batch norm redrawn"
    lines = figures._folded(label).split("\n")
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

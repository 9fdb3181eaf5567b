import numpy as np
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
    verdicts = ["holds", "differs", "holds"]
    assert report.counted(verdicts, ["cbr_tiny", "resnet50", "cbr_small"]) == (
        "holds for CBR-Tiny and CBR-Small; differs for ResNet-50"
    )
    assert report.counted(verdicts) == "holds 2 of 3 times; differs 1 of 3 times"


def test_tables_show_interval_and_n():
    results = performance([0.0, 0.0])
    text = report.performance_table(results).data
    assert "CBR-Tiny" in text and "95.8 (unconfirmed)" in text and "96.4" in text
    text = report.difference_table(effects.gains(results), "gain").data
    assert text.count(f"(n = {SEEDS})") == 2 and "holds" in text
    assert "+0.054" in report.measures_table(similarity([0.0, 0.054], noise=0)).data
    assert "+0.054" in report.gap_table(similarity([0.0, 0.054], noise=0)).data
    text = report.speedup_table(effects.speedups(CURVES)).data
    assert "2.3 [2.3, 2.3]" in text and "<td>2.3</td>" in text  # ours, and the paper's
    moved = [[0.1, 0.05], [0.01, 0.01]]
    layers = first_layers(moved, [[[0, 0], [0.5, 0.25]], [[0, 0], [0.8, 0.8]]])
    text = report.movement_table(representations.movements(layers)).data
    assert "CBR-Small" in text and "50, 25" in text and "-25 [-27, -23]" in text


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
    assert "Paper: +0.3 points, ResNet-50 (Table 1, retinas)" in text and "differs" in text
    assert text.count("<tr") == 1 + len(claims.CLAIMS) and "Chest films" in text


def test_a_box_has_claim_number_and_verdict():
    names = ("transfer", "small_networks", "findings")  # the last of which no run speaks to
    text = report.verdict_box(performance([0.0, 0.0]), *names).data
    assert text.count("<b>Verdict.</b>") == 2 and "holds" in text and "p below 0.001" in text


def test_footer_names_every_run():
    text = report.footer(performance([0.0, 0.0])).data
    assert "Where these numbers come from" in text and "<td>k</td>" in text


def test_figures_are_drawn():
    figures.setup()
    assert len(figures.performance(performance([0.0, 0.0]))) == 2
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
    assert set(against.get(0).data["parameters"]) == {1_000_000, 2_000_000}
    assert len(figures.foretold(predicted([[0, 0], [1, 0]]))) == 4
    layers = first_layers([[0.1, 0.1], [0.1, 0.1]], np.zeros((2, 2, 2)))
    assert len(figures.gabors(layers)) == 2
    assert figures.states(layers, "cbr_small", "random", columns=4).data[:4] == b"\x89PNG"
    assert len(figures.efficiency(efficiency({"cbr_tiny": (1, 5)}).assign(COSTS))) == 4
    gains = effects.gains(performance([0.0, 0.05]))
    assert len(figures.intervals(gains, "gain", "points").get(2).data) == 2
    assert len(figures.arms(performance([0.0, 0.05]))) == 4
    rates = xr.concat([CURVES.isel(seed=[0])] * 2, "lr").assign_coords(lr=[0.001, 0.01])
    assert len(figures.tuning(rates)) == 2
    simulated = simulation.simulate([20, 40], neurons=4, positions=2, tau=0.5, repeats=2)
    assert len(figures.chance(simulated)) == 3 and len(figures.few_datapoints(simulated)) == 6


def test_filters_and_contact_sheets_are_small_pictures(rng):
    assert figures.filters(rng.normal(size=(32, 3, 5, 5))).data[:4] == b"\x89PNG"
    sheet = figures.contact_sheet(rng.integers(0, 255, (2, 3, 3, 8, 8), dtype=np.uint8))
    assert sheet.data[16:24] == (3 * 10).to_bytes(4) + (2 * 10).to_bytes(4)


def test_the_papers_numbers_say_how_far_to_trust_them():
    table = paper.numbers("Table 1", "auc")
    assert set(table["confidence"]) <= set(paper.CONFIDENCE)
    assert table.loc[("resnet50", "transfer"), "value"] == 96.7
    with pytest.raises(ValueError, match="nothing recorded"):
        paper.numbers("Table 9", "auc")

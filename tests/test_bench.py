import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transfusion import config
from transfusion.networks import models
from transfusion.training import loop

from bench import __main__, reference, report, sections, timing

from .conftest import Operators


def row(ratios=(2.0, 2.1, 2.2), share=0.9, **goals):
    return timing.Row("step", "a case", 2.0, 1.0, ratios, share, **goals)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (row(), ""),
        (row(goal=1.9), "met"),
        (row(goal=2.1), "missed"),  # the lower quartile counts, not the median
        (row(goal=1.9, share=0.4), "no verdict"),
        (row(goal=1.0, ratios=(1.5, 2.0, 2.3)), "no verdict"),
        (row(goal=1.9, of_ceiling=0.8, ceiling_goal=0.75), "met"),
        (row(goal=1.9, of_ceiling=0.7, ceiling_goal=0.75), "missed"),
        (row(of_ceiling=0.7, ceiling_goal=0.75), "missed"),
    ],
)
def test_verdicts(found, verdict):
    assert found.verdict == verdict


def test_ways_take_turns_and_the_ratio_is_theirs(monkeypatch):
    order, now = [], [0.0]

    def way(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    found = timing.compare(
        "step", "", way("a", 3.0), way("b", 2.0), 0, 2, clock=lambda: now[0], warm=False
    )
    assert order == ["a", "b", "b", "a"] * 2
    assert found.ratios == (1.5, 1.5) and (found.plain, found.ours) == (3.0, 2.0)


@pytest.mark.parametrize("model", ["cbr_tiny", "resnet18"])
def test_both_ways_agree(model):
    sections.agree(model, 32)


def test_a_difference_is_noticed(monkeypatch):
    def other(net):
        copy = reference_plain(net)
        copy.head.weight.data *= 1.001
        return copy

    reference_plain = reference.plain
    monkeypatch.setattr(reference, "plain", other)
    with pytest.raises(ArithmeticError, match="cbr_tiny, torch.float32: losses"):
        sections.agree("cbr_tiny", 32)


def test_both_ways_of_cca_agree_and_a_difference_is_noticed(monkeypatch):
    x, y = sections._layers(400, 1, 12)
    layers = x[:, 0], y[:, 0]
    sections.agree_cca(*layers)
    monkeypatch.setattr(reference, "svcca", lambda x, y: reference.cca(x, y) * 1.001)
    with pytest.raises(ArithmeticError, match="svcca: .* differ"):
        sections.agree_cca(*layers)


def test_memory_is_shown_in_mebibytes_where_the_system_tells_it():
    rows = list(sections._peak(4000))
    assert len(rows) == Path("/proc/self/status").exists()
    for row in rows:
        assert report._line(row)["plain"] == "150 MiB" and report._line(row)["ours"].endswith(
            " MiB"
        )
        assert 80 < row.ours < 150  # ten blocks of moments are 80


def test_the_reference_is_plain_and_learns(cache):
    net = reference.plain(models.build("resnet18", outputs=5))
    assert {type(m) for m in net.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    with sections._photographs(40) as folder:
        images, target = next(iter(reference.batches(folder, 32, 40)))
        assert images.shape == (40, 3, 32, 32) and images.dtype == torch.float32
        before = F.cross_entropy(net(images), target).item()
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(5):
            loss = reference.step(net, optimizer, images, target)
        assert loss < before
        assert 0 <= reference.fit(net, folder, size=32, batch=20, steps=3) <= 1


def test_normalised_images_are_those_of_torchvision(rng):
    pixels = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    expected = reference.NORMALISE[1](reference.NORMALISE[0](pixels))
    found = models.normalise(torch.from_numpy(pixels.transpose(2, 0, 1)))
    torch.testing.assert_close(found, expected)


@pytest.fixture
def two_rows(monkeypatch):
    def section(limits, seconds, rounds):
        yield row(goal=1.9)
        yield row(of_ceiling=0.5, ceiling_goal=0.75)

    monkeypatch.setattr(sections, "SECTIONS", {"step": section, "precision": None})
    monkeypatch.setattr(sections, "ceilings", lambda: {"copy": 1e10})


def test_json_has_a_setting_and_a_line_a_row(two_rows, capsys):
    __main__.main(["--json"])
    facts, *rows = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert facts["precision"] in ("float32", "bfloat16") and facts["copy"] == 1e10
    assert [r["verdict"] for r in rows] == ["met", "missed"]
    assert rows[0]["ratios"] == [2.0, 2.1, 2.2] and rows[0]["ratio"] == "2.10 [2.00, 2.20]"


def test_text_and_csv(two_rows, capsys, tmp_path):
    __main__.main(["--quick", "--csv", str(tmp_path / "bench.csv")])
    out = capsys.readouterr().out
    assert "10 G/s" in out and "ratio 1.9  met" in out
    assert len((tmp_path / "bench.csv").read_text().splitlines()) == 3
    assert "10 G/s" in (tmp_path / "bench-setting.csv").read_text()


def test_the_same_held_to_avx2_stands_beside_it(two_rows, monkeypatch, capsys, tmp_path):
    lines = [report._line(row(ratios=(0.5, 0.5, 0.5), goal=1.9))]
    text = "\n".join(map(json.dumps, [{"precision": "float32"}, *lines]))
    asked = []

    def ran(command, env, **_):
        asked.append((command[3:], env["ONEDNN_MAX_CPU_ISA"]))
        return SimpleNamespace(stdout=text)

    monkeypatch.setattr(report, "subprocess", SimpleNamespace(run=ran, PIPE=subprocess.PIPE))
    path = tmp_path / "bench.csv"
    __main__.main(["--avx2", "--section", "step", "--csv", str(path)])
    assert asked == [(["--json", "--section", "step"], "AVX2")]
    table = pd.read_csv(path)
    assert list(table["verdict"]) == ["met", "missed"] and "0.50" in table["ratio, AVX2"][0]
    assert table["verdict, AVX2"][0] == "missed"


def test_what_records_tell_of_gpus(monkeypatch):
    spec = {"model": "cbr_tiny", "data": {"size": 48}}
    told = {"device": "a GPU", "spec": spec, "losses_apart": 0.0}
    steps = [{"eager_ms": e, "graph_ms": g} for e, g in ((5, 1), (6, 3), (7, 2))]
    found = {f"{i}": told | each for i, each in enumerate(steps)} | {"cpu": {"device": "cpu"}}
    monkeypatch.setattr(report.records, "facts", lambda study: found)
    (row,) = report.recorded("a").to_dict("records")
    assert row["plain (ms)"] == "6 [5, 7]" and row["graph (ms)"] == "2 [1, 3]" and row["n"] == 3


def test_unknown_section(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--section", "stepp"])
    assert "Did you mean 'step'?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_benchmark_runs(cache):
    facts, *rows = sections.run(quick=True)
    assert facts["float32 convolution"] > 0
    assert {r.section for r in rows} == set(sections.SECTIONS) - {"precision"}
    assert all(r.ratio > 0 for r in rows)


# --- what does not depend on the machine -----------------------------------------------------


def convolutions(kernel, widths, size):
    """Multiply-adds of a CBR network, times two: the closed form."""
    total, channels = 0, 3
    for width in widths:
        total += 2 * kernel**2 * channels * width * size**2
        channels, size = width, (size + 1) // 2
    return total + 2 * channels * 5


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", models.CBRS)
def test_flops_of_cbr_are_the_closed_form(name, size):
    form = models.CBRS[name]
    assert models.flops(name, size) == convolutions(form.kernel, form.widths, size)


def test_flops_of_resnet50_are_the_known_ones():
    assert models.flops("resnet50", 224) == pytest.approx(2 * 4.089e9, rel=0.002)


def step_of(model, precision="float32"):
    net, adam = loop.for_training(models.build(model, outputs=5), config.Optim(steps=1))
    pixels, target = sections._batch(32, 8)
    return lambda: loop.update(net, adam, pixels, target, F.cross_entropy, precision)


@pytest.mark.parametrize(("model", "layers"), [("cbr_tiny", 4), ("cbr_large_t", 5)])
def test_a_step_dispatches_each_layer_once(model, layers):
    step = step_of(model)
    step()
    with Operators() as seen:
        step()
    for name in ("convolution", "native_batch_norm", "relu"):
        assert seen.counts[name] == layers, name
    for name in ("convolution_backward", "native_batch_norm_backward", "threshold_backward"):
        assert seen.counts[name] == layers, name
    assert seen.counts["_fused_adam_"] == 1
    for name in ("item", "_local_scalar_dense", "nonzero"):  # would wait for the device
        assert name not in seen.counts


@pytest.mark.parametrize("model", ["cbr_tiny", "resnet18"])
def test_memory_does_not_grow_after_warm_up(model):
    step = step_of(model)
    step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as seen:
        step()
    left = sum(event.self_cpu_memory_usage for event in seen.events())
    assert left == 0

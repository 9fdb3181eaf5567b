from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from transfusion import config, store
from transfusion.images import ingest
from transfusion.networks import freezing, models
from transfusion.similarity import comparison
from transfusion.training import fit


@pytest.fixture
def compared(tiny_run):
    runs = tuple(tiny_run(seed=seed) for seed in (0, 1))
    return config.Comparison(runs=runs, images=40, positions=4, neurons=8)


def test_compare(cache, compared):
    for run in compared.runs:
        fit.fit(run)
    result = comparison.compare(compared)
    assert result.block.values.tolist() == ["block1", "block2", "block3", "block4"]
    one, other = (run.key for run in compared.runs)
    assert set(zip(result.net_a.values, result.net_b.values, strict=True)) == {
        (f"{one}:initial", f"{one}:final"),
        (f"{other}:initial", f"{other}:final"),
        (f"{one}:initial", f"{other}:initial"),
        (f"{one}:final", f"{other}:final"),
    }
    assert result.datapoints.values.tolist() == [160] * 4
    assert result.sizes["measure"] == 3 and result.explained.shape == (4, 4, 8)
    for name in ("value", "null", "corrected", "corrected_null", "se", "map"):
        assert np.isfinite(result[name]).all(), name
    assert store.read(compared.key).identical(result)
    assert not (store.run_folder(compared.key) / "moments.zarr").exists()


def test_what_is_frozen_keeps_its_statistics_where_the_rest_is_calibrated(cache):
    few = ingest.prepare("fundus", size=32, n=64)
    net = models.build("resnet18", outputs=5)
    freezing.freeze(net, models.upto(net, "block1"))
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.7)
    comparison.calibrate(net, few)
    frozen = models.tensors(net, models.upto(net, "block1"))
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            assert bool((buffer == 0.7).all()) == (name in frozen), name


def test_compare_needs_trained_weights(cache, compared):
    with pytest.raises(FileNotFoundError, match="no trained weights of run"):
        comparison.compare(compared)


def test_compare_refuses_mixed_models_and_folds(cache, tiny_run):
    run = tiny_run()
    for other in (
        tiny_run(model="cbr_small"),
        replace(run, data=replace(run.data, folds=3, fold=1)),
    ):
        with pytest.raises(ValueError, match="one model on one data set"):
            comparison.compare(config.Comparison(runs=(run, other)))


def test_calibration_is_the_normalisation_of_training(cache):
    """With the statistics of a batch, evaluation gives what training gives on that batch."""
    few = comparison.evenly(ingest.prepare("fundus", size=32, n=300), 64)
    assert len(few.image) == 64 and len(comparison.evenly(few, 100).image) == 64
    pixels = models.normalise(torch.from_numpy(few["pixels"].values))
    net = models.build("cbr_tiny", outputs=5)
    with torch.no_grad():
        untouched, learning = net.eval()(pixels), net.train()(pixels)
        found = comparison.calibrate(net, few)(pixels)
    torch.testing.assert_close(found, learning, rtol=0.05, atol=0.02)  # n, not n - 1, in between
    assert (untouched - learning).abs().mean() > 5 * (found - learning).abs().mean()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        assert int(norm.num_batches_tracked) == 1 and not norm.training


@pytest.mark.parametrize("count", [128, 129, 130, 132])
def test_calibration_knows_the_variance_of_any_number_of_images(rng, count):
    pixels = rng.integers(0, 255, (count, 3, 32, 32), dtype=np.uint8)
    images = xr.Dataset({"pixels": (("image", "channel", "y", "x"), pixels)})
    net = models.build("cbr_tiny", outputs=5)
    with torch.no_grad():
        maps = net.block1[0](models.normalise(torch.from_numpy(pixels)))
    expected = maps.var((0, 2, 3))
    found = comparison.calibrate(net, images).block1[1].running_var
    assert ((found - expected).abs() / expected).median() < 0.02

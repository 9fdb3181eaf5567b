import numpy as np
import pytest
import xarray as xr
from transfusion.experiments import accuracy, tuning
from transfusion.statistics import contrasts, intervals

from .. import made_up


def lengths(usual, added):
    """Last validation AUC of one arm in two lengths, two repetitions."""
    last = np.array([[usual, usual + added]] * 2)[None, None, None]
    dims = ("model", "init", "fold", "seed", "length")
    coords = {"model": ["resnet50"], "init": ["random"], "length": [1, 2]}
    return xr.Dataset({"last_auc": (dims, last)}, coords)


@pytest.mark.parametrize(
    ("usual", "added", "verdict"),
    [
        (0.8, 0.004, "converged"),
        (0.8, 0.006, "not converged"),
        (0.98, 0.002, "converged"),  # the margin is a quarter of two points there
        (0.98, 0.003, "not converged"),
        (0.98, -0.01, "converged"),
    ],
)
def test_converged_is_a_gain_of_less_than_half_the_margin(usual, added, verdict):
    (row,) = (row for _, row in tuning.longer(lengths(usual, added)).iterrows())
    assert row["verdict"] == verdict and row["added"] == pytest.approx(100 * added)


def pilots():
    """Arms at two rates, of which the larger is the better, on one fold."""
    parts = {rate: made_up.performance([0.02, 0.01], seed=i) for i, rate in enumerate((0.1, 0.3))}
    results = made_up.stacked(parts, "lr").isel(fold=[0])
    shared = ("patients", "baseline_auc", "baseline_influence")
    results = results.assign({name: results[name].isel(lr=0, drop=True) for name in shared})
    better = xr.DataArray([0.0, 0.01], {"lr": [0.1, 0.3]}, ("lr",))
    return results.assign(auc=results["auc"] + better, test_auc=results["test_auc"] + better)


def test_pilots_are_the_arms_at_their_best_rates():
    results = pilots()
    assert set(tuning.best_rates(results).values()) == {0.3}
    at_best = tuning.at_best_rates(results)
    assert "lr" not in at_best.dims
    expected = results["test_auc"].sel(lr=0.3, drop=True)
    xr.testing.assert_allclose(at_best["test_auc"].transpose(*expected.dims), expected)


def test_what_is_foreseen_narrows_with_folds_and_repetitions():
    effect = accuracy.gains(tuning.at_best_rates(pilots()))
    one, folds, more = (contrasts.foreseen(effect, *n) for n in ((5, 1), (10, 1), (5, 4)))
    assert one.mean == folds.mean == more.mean
    assert one.se > folds.se == pytest.approx(one.se / np.sqrt(2)) and one.se > more.se
    assert intervals.detectable(more) < intervals.detectable(one)

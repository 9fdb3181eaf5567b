import numpy as np
import pytest
from scipy import stats
from transfusion import metrics
from transfusion.metrics import Interval


def test_auc_is_the_chance_of_a_right_order(rng):
    target = rng.integers(0, 5, 300)
    scores = rng.random((300, 5)) + 0.3 * np.eye(5)[target]
    score = scores[:, 2:].sum(1)
    above, below = score[target >= 2], score[target < 2]
    pairs = above[:, None] > below[None]
    assert metrics.auc(target, scores, positive_from=2) == pytest.approx(pairs.mean())


def test_auc_of_findings_is_their_mean(rng):
    target = rng.integers(0, 2, (200, 2))
    scores = np.stack([target[:, 0] + 0.0, 1.0 - target[:, 1]], axis=1)
    assert metrics.auc(target, scores) == 0.5


def test_auc_without_both_classes_is_nan():
    assert np.isnan(metrics.auc(np.zeros(5, int), np.ones((5, 5)), positive_from=2))


def test_interval_is_students(rng):
    values = rng.normal(3, 2, 7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    found = metrics.interval(values)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.n == 7


def test_interval_leaves_failed_runs_out():
    assert metrics.interval(np.array([1.0, np.nan, 3.0])).n == 2
    alone = metrics.interval(np.array([1.0]))
    assert (alone.low, alone.high) == (-np.inf, np.inf)


def between(low, high):
    return Interval((low + high) / 2, low, high, 1.0, 3)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.5, 0.9, "holds"),
        (1.1, 2, "differs"),
        (-3, -1.5, "differs"),
        (-0.5, 1.5, "inconclusive"),
        (-9, 9, "inconclusive"),
    ],
)
def test_equivalence(low, high, verdict):
    assert metrics.equivalence(between(low, high), 1.0) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 1, "holds"), (-2, -0.1, "differs"), (-1, 1, "inconclusive")],
)
def test_positive(low, high, verdict):
    assert metrics.positive(between(low, high)) == verdict


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["holds", "holds"], "holds"),
        (["differs"], "differs"),
        (["holds", "differs"], "holds in part"),
        (["holds", "inconclusive"], "holds in part"),
        (["differs", "inconclusive"], "differs"),
        (["inconclusive", "inconclusive"], "inconclusive"),
    ],
)
def test_overall(verdicts, expected):
    assert metrics.overall(verdicts) == expected
    assert expected in metrics.VERDICTS


def test_no_effect_seldom_counts_as_one(rng):
    """The 95 % interval of differences that are noise excludes 0 one time in twenty."""
    found = [metrics.positive(metrics.interval(rng.normal(size=5))) for _ in range(2000)]
    share = np.mean([verdict != "inconclusive" for verdict in found])
    assert 0.035 < share < 0.065


def test_steps_to_a_level():
    steps, curve = np.array([10, 20, 30]), np.array([0.5, 0.7, 0.9])
    assert metrics.steps_to(0.8, steps, curve) == pytest.approx(25)
    assert metrics.steps_to(0.4, steps, curve) == 10
    assert metrics.steps_to(0.95, steps, curve) == np.inf

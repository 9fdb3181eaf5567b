import itertools

import numpy as np
import pytest
from scipy import stats
from transfusion import metrics
from transfusion.metrics import Decision, Interval


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


def test_unknown_labels_and_single_class_findings_do_not_count(rng):
    target, scores = rng.integers(0, 2, (50, 3)), rng.random((50, 3))
    target[:, 2] = 1
    target[:10, 0] = -1
    first = metrics.auc(target[10:, :1], scores[10:, :1])
    second = metrics.auc(target[:, 1:2], scores[:, 1:2])
    assert metrics.aucs(target, scores) == pytest.approx([first, second, np.nan], nan_ok=True)
    assert metrics.auc(target, scores) == pytest.approx((first + second) / 2)
    assert np.isnan(metrics.auc(np.full((50, 3), -1), scores))


def test_auc_of_classes_is_each_against_the_rest(rng):
    target, scores = rng.integers(0, 3, 60), rng.random((60, 3))
    found = [metrics.auc((target == c)[:, None] + 0, scores[:, [c]]) for c in range(3)]
    assert metrics.aucs(target, scores) == pytest.approx(found)
    assert len(metrics.aucs(target, scores, positive_from=1)) == 1


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_accuracy_is_the_share_of_right_guesses(classes, rng):
    target, scores = rng.integers(0, classes, 40), rng.normal(size=(40, classes))
    assert metrics.accuracy(target, scores) == pytest.approx((scores.argmax(1) == target).mean())
    assert metrics.accuracy(target, scores, top=classes) == 1
    assert metrics.accuracy(target, scores, top=classes + 1) == 1
    # Whatever the class is, it lies among the top k for every k from its rank on.
    ranks = (scores > scores[range(40), target][:, None]).sum(1)
    tops = [metrics.accuracy(target, scores, top=k) for k in range(1, classes + 1)]
    assert tops == pytest.approx([(ranks < k).mean() for k in range(1, classes + 1)])


# --- errors over patients --------------------------------------------------------------------


def kernel(target, score):
    """Psi of DeLong et al., (positive, negative): 1 for the right order, a half for ties."""
    above, below = score[target == 1][:, None], score[target == 0]
    return (above > below) + (above == below) / 2


def delong(target, *scores):
    """Covariance of the AUCs of several scores on the same images, from the definition."""
    kernels = [kernel(target, score) for score in scores]
    s10, s01 = (np.atleast_2d(np.cov([psi.mean(axis) for psi in kernels])) for axis in (1, 0))
    return s10 / kernels[0].shape[0] + s01 / kernels[0].shape[1]


@pytest.fixture
def clustered(rng):
    """Scores (2, image) of images that share much with the same patient's others, with ties."""
    patient = np.repeat(np.arange(150), rng.integers(1, 4, 150))
    target = (rng.normal(size=150)[patient] + rng.normal(size=len(patient)) > 0.5).astype(int)
    common = 1.5 * rng.normal(size=(2, 150))[:, patient]
    scores = (common + rng.normal(size=(2, len(patient))) + target).round(1)
    return target, scores, patient


def test_placements_are_shares_of_right_orders(clustered):
    target, scores, _ = clustered
    found = metrics.placements(target, scores)
    for score, placed in zip(scores, found, strict=True):
        psi = kernel(target, score)
        assert placed[target == 1] == pytest.approx(psi.mean(1))
        assert placed[target == 0] == pytest.approx(psi.mean(0))
        area = metrics.auc(target[:, None], score[:, None])
        assert placed[target == 1].mean() == pytest.approx(area)
        assert placed[target == 0].mean() == pytest.approx(area)


def test_placements_leave_unknown_labels_out(clustered):
    target, scores, _ = clustered
    target[:20] = -1
    found = metrics.placements(target, scores)
    assert np.isnan(found[:, :20]).all()
    assert np.array_equal(found[:, 20:], metrics.placements(target[20:], scores[:, 20:]))
    assert np.isnan(metrics.placements(np.ones(5), np.arange(5.0))).all()


def test_failed_runs_have_no_placements(clustered):
    target, scores, patient = clustered
    failed = metrics.placements(target, np.where(np.arange(len(target)) == 7, np.nan, scores[0]))
    assert np.isnan(failed).all()
    placed = metrics.placements(target, scores[1])
    expected = metrics.patients_error(target, placed, patient)
    assert metrics.patients_error(target, np.stack([failed, placed]), patient) == expected


def test_error_without_clusters_is_delongs(clustered):
    target, scores, _ = clustered
    images = np.arange(len(target))
    placed = metrics.placements(target, scores)
    covariance = delong(target, *scores)
    single = [metrics.patients_error(target, p, images)[0] for p in placed]
    assert np.square(single) == pytest.approx(np.diag(covariance))
    difference, n = metrics.patients_error(target, placed[1] - placed[0], images)
    assert difference**2 == pytest.approx([-1, 1] @ covariance @ [-1, 1])
    assert n == len(target)


@pytest.mark.parametrize("contrast", [(1, 0), (-1, 1), (0.5, 0.5)])
def test_error_over_patients_is_the_bootstraps(contrast, clustered, rng):
    target, scores, patient = clustered
    drawn = rng.multinomial(150, np.full(150, 1 / 150), 2000)[:, patient].astype(float)
    up, down = drawn[:, target == 1], drawn[:, target == 0]
    areas = [((up @ kernel(target, s)) * down).sum(1) / (up.sum(1) * down.sum(1)) for s in scores]
    placed = contrast @ metrics.placements(target, scores)
    error, n = metrics.patients_error(target, placed, patient)
    assert error == pytest.approx(np.std(contrast @ np.array(areas)), rel=0.1)
    assert n == 150


def test_equal_scores_differ_without_error(clustered):
    target, scores, patient = clustered
    placed = metrics.placements(target, scores)
    assert metrics.patients_error(target, placed[0] - placed[0], patient)[0] == 0
    assert np.array_equal(placed, metrics.placements(target, np.exp(scores)))


def test_only_new_patients_bring_information(clustered):
    """Each image twice: unclustered errors shrink as if they were new, clustered ones do not."""
    target, scores, patient = clustered
    once, twice = (np.tile(a, 2) for a in (target, patient))
    placed, doubled = (
        metrics.placements(target, scores[0]),
        metrics.placements(once, [*scores[0]] * 2),
    )

    def error(target, placed, patient):
        return metrics.patients_error(target, placed, patient)[0]

    assert error(once, doubled, twice) == pytest.approx(error(target, placed, patient))
    images = np.arange(len(target))
    naive = error(target, placed, images) / error(once, doubled, np.arange(len(once)))
    assert naive == pytest.approx(np.sqrt(2), rel=0.01)


def test_error_of_a_mean_over_findings(clustered):
    """Averaging leading dimensions is averaging placements, where labels are the same."""
    target, scores, patient = clustered
    placed = metrics.placements(target, scores)
    mean = metrics.patients_error(target, placed.mean(0), patient)
    assert metrics.patients_error(target, placed, patient) == pytest.approx(mean)
    # A finding of one class has no AUC, and no part in the mean.
    targets = np.stack([target, target, np.ones_like(target)])
    placed = metrics.placements(targets, np.stack([*scores, scores[0]]))
    assert metrics.patients_error(targets, placed, patient) == pytest.approx(mean)
    assert metrics.patients_error(targets[2], placed[2], patient) == (np.inf, 0)


def test_one_patient_of_a_class_has_no_error():
    target, score = np.array([1, 1, 0, 0]), np.array([1.0, 3, 0, 2])
    placed = metrics.placements(target, score)
    assert metrics.patients_error(target, placed, np.array([0, 0, 1, 2])) == (np.inf, 3)


@pytest.mark.parametrize("kind", ["grades", "findings", "classes"])
def test_questions_of_every_kind_of_target(kind, rng):
    """Over seeds at once, placements average to the AUCs."""
    shape = (40, 3) if kind == "findings" else 40
    target, scores = rng.integers(0, 3, shape), rng.random((2, 40, 3))
    target = np.minimum(target, 1) if kind == "findings" else target
    positive_from = 1 if kind == "grades" else None
    asked, answers = metrics.binary(target, scores, positive_from)
    placed = metrics.placements(asked, answers)
    found = [metrics.aucs(target, s, positive_from) for s in scores]
    assert placed.mean(-1, where=asked == 0) == pytest.approx(np.array(found))
    assert placed.shape == (2, 1 if kind == "grades" else 3, 40)


# --- intervals -------------------------------------------------------------------------------


def test_interval_is_students(rng):
    values = rng.normal(3, 2, 7)
    expected = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    found = metrics.interval(values)
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.n, found.df) == (7, 6)
    assert found.se == pytest.approx(stats.sem(values))
    assert found._replace(df=np.nan).se == found.se


def test_interval_leaves_failed_runs_out():
    assert metrics.interval(np.array([1.0, np.nan, 3.0])).n == 2
    alone = metrics.interval(np.array([1.0]))
    assert (alone.low, alone.high, alone.se) == (-np.inf, np.inf, np.inf)


def test_interval_over_seeds_and_patients(rng):
    seeds = metrics.interval(rng.normal(size=5))
    assert metrics.with_patients(seeds, 0.0, 100) == seeds
    both = metrics.with_patients(seeds, seeds.se, 5)  # two equal sources of four each
    assert both.se == pytest.approx(np.sqrt(2) * seeds.se)
    assert (both.mean, both.sd, both.n, both.df) == (seeds.mean, seeds.sd, 5, pytest.approx(8))
    certain = metrics.interval(np.full(10, 3.0))
    shared = metrics.with_patients(certain, 0.2, 10**9)
    assert (shared.low, shared.high) == pytest.approx(stats.norm.interval(0.95, 3, 0.2))
    alone = metrics.with_patients(metrics.interval([1.0]), 0.2, 100)
    assert (alone.mean, alone.low, alone.high) == (1, -np.inf, np.inf)
    assert metrics.with_patients(seeds, np.inf, 1).high == np.inf


def test_seeds_alone_take_the_luck_of_a_test_set_for_an_effect(rng):
    """Two equally good inits, each consistent over seeds in which images it finds hard: over new
    test sets and seeds, only the wider interval covers their difference of 0 as often as it says.
    """
    target, patient = np.tile([0, 1, 0], 40), np.repeat(np.arange(60), 2)
    covered = []
    for _ in range(300):
        hard = rng.normal(size=(2, 1, 60))[..., patient] + rng.normal(size=(2, 1, 120))
        score = target + hard + 0.5 * rng.normal(size=(2, 4, 120))
        placed = np.subtract(*metrics.placements(target, score))
        seeds = metrics.interval(placed[:, target == 1].mean(1))
        error = metrics.patients_error(target, placed.mean(0), patient)
        both = metrics.with_patients(seeds, *error)
        covered.append([effect.low < 0 < effect.high for effect in (seeds, both)])
    alone, together = np.mean(covered, 0)
    assert alone < 0.7
    assert 0.92 < together < 0.98


def test_detectable_effects_are_found_with_that_power(rng):
    effect = metrics.interval(rng.normal(size=5))
    true = metrics.detectable(effect, power=0.7)
    # Runs with the standard error that this effect has in the mean over samples.
    values = true + effect.sd * rng.normal(size=(20000, 5))
    found = stats.ttest_1samp(values, 0, axis=1)
    assert ((found.pvalue < 0.05) & (found.statistic > 0)).mean() == pytest.approx(0.7, abs=0.015)


def test_detectable_effect_of_many_runs_is_the_normal_one():
    effect = Interval(0.0, -1.0, 1.0, np.nan, 10**8)
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * effect.se
    assert metrics.detectable(effect) == pytest.approx(expected)
    assert metrics.detectable(metrics.interval([1.0])) == np.inf
    assert metrics.detectable(metrics.interval([1.0, 1.0])) == 0


def test_rank_correlation_is_spearmans(rng):
    x = rng.normal(size=12)
    y = np.exp(x + rng.normal(size=12))
    found, expected = metrics.rank_correlation(x, y), stats.spearmanr(x, y)
    ranks = stats.pearsonr(stats.rankdata(x), stats.rankdata(y))
    assert found.mean == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx(tuple(ranks.confidence_interval()))
    assert found.p == pytest.approx(expected.pvalue, rel=0.3)
    assert metrics.rank_correlation([*x, np.nan], [*y, 1.0]) == found


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_perfect_rank_correlations(n):
    """One order of n! is as good, one as bad; four points are too few to be sure of a sign."""
    up = metrics.rank_correlation(np.arange(n), np.arange(n) ** 3)
    down = metrics.rank_correlation(np.arange(n), -np.arange(n))
    assert (up.mean, up.high, up.n) == (pytest.approx(1), pytest.approx(1), n)
    assert (down.low, down.high, down.p) == (pytest.approx(-up.high), pytest.approx(-up.low), up.p)
    assert up.p == pytest.approx(2 / np.prod(np.arange(1, n + 1)))
    assert (up.low > 0) == (up.p < 0.05) == (n == 6)


def test_constant_ranks_have_no_correlation():
    found = metrics.rank_correlation(np.arange(5), np.ones(5))
    assert np.isnan(found.mean)
    assert found[1:] == (-1, 1, 5, 1)


# --- verdicts --------------------------------------------------------------------------------


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


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_p_values_decide_as_intervals_do(margin, rng):
    for _ in range(200):
        effect = metrics.interval(rng.normal(rng.normal(0, 1), 0.5, 4))
        inside = -margin < effect.low and effect.high < margin
        beyond = effect.low > margin or effect.high < -margin
        assert (metrics.p_equivalent(effect, margin) < 0.05) == inside
        assert (metrics.p_beyond(effect, margin) < 0.05) == beyond
        assert (metrics.p_positive(effect, margin) < 0.05) == (effect.low > margin)
        assert (metrics.p_negative(effect, margin) < 0.05) == (effect.high < margin)
        for decided in (
            metrics.decide_equivalent(effect, margin),
            metrics.decide_positive(effect, margin),
        ):
            assert (decided.p < 0.05) == (decided.verdict != "inconclusive")


def test_p_values_are_those_of_t_tests(rng):
    values = rng.normal(0.4, 1, 9)
    effect, (low, high) = metrics.interval(values), (-1.0, 1.0)
    two_sided = stats.ttest_1samp(values, 0).pvalue
    assert min(metrics.p_positive(effect), metrics.p_negative(effect)) == pytest.approx(two_sided)
    assert metrics.p_beyond(effect, 0.0) == pytest.approx(two_sided)
    above = stats.ttest_1samp(values, low, alternative="greater").pvalue
    below = stats.ttest_1samp(values, high, alternative="less").pvalue
    assert metrics.p_equivalent(effect, 1.0) == pytest.approx(2 * max(above, below))


@pytest.mark.parametrize("values", [[], [np.nan], [5.0], [np.nan, 5.0]])
def test_too_few_runs_decide_nothing(values):
    effect = metrics.interval(np.array(values))
    assert metrics.decide_positive(effect, 1.0) == Decision("inconclusive", 1.0)
    assert metrics.decide_equivalent(effect, 9.0) == Decision("inconclusive", 1.0)


@pytest.mark.parametrize(
    ("value", "equivalent", "positive"),
    [
        (0.5, Decision("holds", 0.0), Decision("differs", 0.0)),
        (2.0, Decision("differs", 0.0), Decision("holds", 0.0)),
        (1.0, Decision("inconclusive", 1.0), Decision("inconclusive", 1.0)),
    ],
)
def test_equal_runs_are_certain(value, equivalent, positive):
    effect = metrics.interval(np.full(4, value))
    assert metrics.decide_equivalent(effect, 1.0) == equivalent
    assert metrics.decide_positive(effect, 1.0) == positive


def test_adjusted_is_benjamini_and_hochbergs():
    """The largest p stays, the smallest is multiplied by the number of claims; nan is no claim."""
    found = metrics.adjusted(np.array([[0.01, np.nan], [0.04, 0.9]]))
    assert found == pytest.approx(np.array([[0.03, np.nan], [0.06, 0.9]]), nan_ok=True)
    assert np.isnan(metrics.adjusted([np.nan])).all()
    assert len(metrics.adjusted([])) == 0


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


def log_rank_statistic(first, second):
    """(Observed - expected) arrivals of the first arm over its standard deviation, by hand."""
    excess = variance = 0.0
    for time in sorted({t for t in (*first, *second) if np.isfinite(t)}):
        n, n1 = (sum(t >= time for t in runs) for runs in ((*first, *second), first))
        d, d1 = (sum(t == time for t in runs) for runs in ((*first, *second), first))
        excess += d1 - d * n1 / n
        variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1) if n > 1 else 0
    return excess / np.sqrt(variance)


def test_log_rank_by_hand():
    """Of all ways to deal the runs, the share with a statistic as large, on the same side, twice"""
    first, second = [10.0, 20, 20, 50], [20.0, 40, np.inf, np.inf]
    runs = np.array(first + second)
    chosen = [list(c) for c in itertools.combinations(range(8), 4)]
    dealt = [log_rank_statistic(runs[c], np.delete(runs, c)) for c in chosen]
    share = np.mean(np.array(dealt) >= log_rank_statistic(first, second) - 1e-9)
    assert metrics.log_rank(first, second, 100) == pytest.approx(2 * share)
    assert metrics.log_rank(second, first, 100) == pytest.approx(2 * share)
    assert metrics.log_rank([*first, np.nan], second, 100) == pytest.approx(2 * share)


def test_log_rank_of_many_runs_is_the_normal_one(rng):
    first, second = rng.exponential(1.0, 30), rng.exponential(1.6, 30)
    first[first > 2], second[second > 2] = np.inf, np.inf
    normal = 2 * stats.norm.sf(abs(log_rank_statistic(first, second)))
    assert metrics.log_rank(first, second, 2) == pytest.approx(normal, rel=0.25)


NEVER = [np.inf] * 5


@pytest.mark.parametrize(
    ("random", "other", "bound", "never", "verdict"),
    [
        ([80, 90, 70, 85, 95], [20, 25, 15, 20, 30], "", 0, "holds"),
        ([20, 25, 15, 20, 30], [80, 90, 70, 85, 95], "", 0, "differs"),
        ([20, 25, 15, 20, 30], [25, 20, 20, 15, 30], "", 0, "inconclusive"),
        (NEVER, [20, 25, 15, 20, 30], "at least", 5, "holds"),
        ([20, 25, 15, 20, 30], [80, np.inf, 70, 85, 95], "at most", 1, "differs"),
        ([20, 80, 50, 20, 30], [80, 40, 10, 30, np.inf], "at most", 1, "inconclusive"),
        ([80, np.inf, np.inf, 85, 95], [20, 25, np.inf, 20, 30], "unknown", 3, "inconclusive"),
        (NEVER, NEVER, "unknown", 10, "inconclusive"),
        ([80.0], [np.inf], "at most", 1, "inconclusive"),
        ([80.0], [20.0], "", 0, "inconclusive"),
        ([np.nan] * 4 + [np.inf], [20, 25, 15, 20, 30], "at least", 1, "inconclusive"),
    ],
)
def test_speedup(random, other, bound, never, verdict):
    found = metrics.speedup(np.array(random), np.array(other), 100)
    assert (found.bound, found.never, found.decision.verdict) == (bound, never, verdict)
    assert (found.decision.p < 0.05) == (verdict != "inconclusive")
    assert metrics.decide_faster(random, other, 100) == found.decision
    # An interval is open where the ratio could lie beyond what was seen.
    assert not (bound in ("at least", "unknown") and np.isfinite(found.log2.high))
    assert not (bound in ("at most", "unknown") and np.isfinite(found.log2.low))


def test_speedup_of_runs_that_arrive_is_paired():
    random, other = np.array([80, 40, np.nan, 20]), np.array([40, 10, 30, 10])
    found = metrics.speedup(random, other, 100)
    assert found.log2 == metrics.interval(np.array([1.0, 2.0, 1.0]))
    assert found.decision == metrics.decide_positive(found.log2)


def test_a_run_that_never_arrives_counts_with_its_length():
    found = metrics.speedup(np.array([np.inf, 50, 50]), np.array([25, 25, 25]), 100)
    counted = metrics.interval(np.array([2.0, 1.0, 1.0]))
    assert (found.log2.mean, found.log2.low) == (counted.mean, counted.low)
    assert (found.log2.high, found.log2.se) == (np.inf, np.inf)


def test_counts_that_agree_are_not_known_exactly():
    alike = metrics.interval(np.zeros(4), step=0.5)
    assert alike.low < 0 < alike.high and alike.mean == 0
    assert alike.sd == pytest.approx(0.5 / np.sqrt(12))
    spread = np.array([0.0, 1.0, 3.0, 8.0])
    assert metrics.interval(spread) == metrics.interval(spread, step=0.0)
    assert metrics.interval(spread, step=0.1).sd == pytest.approx(spread.std(ddof=1), rel=1e-4)

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import average_precision_score
from transfusion.experiments import learning
from transfusion.statistics import intervals, metrics
from transfusion.statistics.intervals import Decision, Interval


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


def contrast(weights, target, placed, patient):
    """Error over patients of a weighted sum of AUCs."""
    found = np.tensordot(weights, metrics.influence(target, placed, patient), 1)
    return np.sqrt(metrics.patients_variance(found, found.shape[-1]))


@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (-1, 1), (0.5, 0.5)])
def test_error_without_clusters_is_delongs(weights, clustered):
    """But for n - 1 once instead of twice, once a class."""
    target, scores, _ = clustered
    images = np.arange(len(target))
    expected = weights @ delong(target, *scores) @ weights
    error = contrast(weights, target, metrics.placements(target, scores), images)
    assert error**2 == pytest.approx(expected, rel=0.01)


def test_a_large_sample_without_clusters_agrees_with_delong_to_permille(rng):
    target = np.tile([0, 1], 1500)
    scores = target + rng.normal(size=(2, 3000))
    error = contrast((-1, 1), target, metrics.placements(target, scores), np.arange(3000))
    assert error**2 == pytest.approx([-1, 1] @ delong(target, *scores) @ [-1, 1], rel=0.001)


@pytest.mark.parametrize("weights", [(1, 0), (-1, 1), (0.5, 0.5)])
def test_error_over_patients_is_the_bootstraps(weights, clustered, rng):
    target, scores, patient = clustered
    drawn = rng.multinomial(150, np.full(150, 1 / 150), 2000)[:, patient].astype(float)
    up, down = drawn[:, target == 1], drawn[:, target == 0]
    areas = [((up @ kernel(target, s)) * down).sum(1) / (up.sum(1) * down.sum(1)) for s in scores]
    error = contrast(weights, target, metrics.placements(target, scores), patient)
    assert error == pytest.approx(np.std(weights @ np.array(areas)), rel=0.1)


def test_influence_is_what_is_left_out_with_a_patient(clustered):
    """To first order, (n - 1) times the change of the AUC without a patient's images, over n."""
    target, scores, patient = clustered
    found = metrics.influence(target, metrics.placements(target, scores[0]), patient)
    area = metrics.auc(target[:, None], scores[0][:, None])
    assert found.shape == (150,) and found.sum() == pytest.approx(0, abs=1e-12)
    without = [
        area - metrics.auc(target[patient != i][:, None], scores[0][patient != i][:, None])
        for i in range(150)
    ]
    assert found == pytest.approx(without, rel=0.05, abs=3e-4)


def test_influence_is_linear_in_arms_and_repetitions(clustered):
    target, scores, patient = clustered
    placed = metrics.placements(target, scores)
    apart = metrics.influence(target, placed, patient)
    for weights in ((-1, 1), (0.5, 0.5), (2, -0.3)):
        together = metrics.influence(target, np.tensordot(weights, placed, 1), patient)
        assert together == pytest.approx(np.tensordot(weights, apart, 1), abs=1e-15)


def test_padding_adds_no_variance():
    found = np.array([0.1, -0.2, 0.1])
    alone = metrics.patients_variance(found, 3)
    assert alone == pytest.approx(3 * np.var(found, ddof=1))
    assert metrics.patients_variance(np.pad(found, (0, 5)), 3) == alone
    assert np.isfinite(metrics.patients_variance(np.zeros(1), 1))


def test_equal_scores_differ_without_error(clustered):
    target, scores, patient = clustered
    placed = metrics.placements(target, scores)
    assert metrics.patients_error(target, placed[0] - placed[0], patient) == 0
    assert np.array_equal(placed, metrics.placements(target, np.exp(scores)))


def test_only_new_patients_bring_information(clustered):
    """Each image twice: unclustered errors shrink as if they were new, clustered ones do not."""
    target, scores, patient = clustered
    once, twice = (np.tile(a, 2) for a in (target, patient))
    placed, doubled = (
        metrics.placements(target, scores[0]),
        metrics.placements(once, [*scores[0]] * 2),
    )
    error = metrics.patients_error
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
    assert metrics.patients_error(targets[2], placed[2], patient) == np.inf


def test_one_patient_of_a_class_has_no_error():
    target, score, patient = np.array([1, 1, 0, 0]), np.array([1.0, 3, 0, 2]), [0, 0, 1, 2]
    placed = metrics.placements(target, score)
    assert np.isnan(metrics.influence(target, placed, np.array(patient))).all()
    assert metrics.patients_error(target, placed, np.array(patient)) == np.inf


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
    found = intervals.interval(values)
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.n, found.df) == (7, 6)
    assert found.se == pytest.approx(stats.sem(values))
    assert found._replace(df=np.nan).se == found.se


def test_interval_leaves_failed_runs_out():
    assert intervals.interval(np.array([1.0, np.nan, 3.0])).n == 2
    alone = intervals.interval(np.array([1.0]))
    assert (alone.low, alone.high, alone.se) == (-np.inf, np.inf, np.inf)


@pytest.fixture
def effect(rng):
    """Made-up AUCs (fold, repetition) and their influence (fold, patient) on 20 to 24 patients."""
    patients = np.arange(20, 25)
    influence = np.where(np.arange(24) < patients[:, None], rng.normal(size=(5, 24)), 0) / 300
    values = 0.8 + 0.02 * rng.normal(size=(5, 1)) + 0.02 * rng.normal(size=(5, 3))
    return values, influence, patients


def test_without_influence_folds_stand_for_themselves(effect):
    values, _, _ = effect
    found, means = intervals.over_folds(values), values.mean(1)
    t = stats.ttest_1samp(means, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((t.low, t.high))
    assert (found.mean, found.n, found.freedom) == (pytest.approx(means.mean()), 15, 4)
    assert found.patients == 0 and found.sd == pytest.approx(means.std(ddof=1))


def test_repetitions_of_one_fold_stand_for_themselves(effect):
    assert intervals.over_folds(effect[0][:1]) == intervals.interval(effect[0][0])


def test_repetitions_tell_what_training_adds_to_patients(effect):
    """Two variances, each with its degrees of freedom: Satterthwaite's of their sum."""
    values, influence, patients = effect
    found = intervals.over_folds(values, influence, patients)
    seen = metrics.patients_variance(influence, patients).sum() / 25
    trained = values.var(1, ddof=1).mean() / 15
    squares = np.square(influence)
    alike = squares.sum() ** 2 / np.square(squares).sum()
    df = (seen + trained) ** 2 / (seen**2 / alike + trained**2 / 10)
    assert 5 < alike < (patients - 1).sum()
    half = stats.t.ppf(0.975, df) * np.sqrt(seen + trained)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert (found.df, found.se) == (pytest.approx(df), pytest.approx(np.sqrt(seen + trained)))
    assert (found.n, found.patients) == (15, patients.sum())
    assert found.sd == pytest.approx(values.std(ddof=1))


def test_of_one_repetition_training_is_what_folds_vary_beyond_their_patients(effect):
    values, influence, patients = effect
    once = values[:, :1]
    between = once.var(ddof=1) / 5
    seen = metrics.patients_variance(influence, patients).sum() / 25
    assert between > seen, "so made up"
    found = intervals.over_folds(once, influence, patients)
    assert found.se**2 == pytest.approx(between), "patients are in it already"
    alike = np.full((5, 1), 0.8)
    found = intervals.over_folds(alike, influence, patients)
    assert found.se**2 == pytest.approx(seen), "folds that vary less owe nothing to training"
    assert found.df == pytest.approx(intervals._effective(influence, patients))


def test_one_fold_has_an_error_where_it_is_repeated(effect):
    values, influence, patients = effect
    one = intervals.over_folds(values[:1], influence[:1], patients[:1])
    seen = metrics.patients_variance(influence[0], 20)
    assert one.se**2 == pytest.approx(seen + values[0].var(ddof=1) / 3)
    once = intervals.over_folds(values[:1, :1], influence[:1], patients[:1])
    assert (once.mean, once.low, once.high) == (values[0, 0], -np.inf, np.inf)
    assert intervals.decide_positive(once) == Decision("inconclusive", 1.0)


def test_failed_runs_and_folds_are_left_out(effect):
    values, influence, patients = effect
    holes = values.copy()
    holes[1], holes[0, 2] = np.nan, np.nan
    found = intervals.over_folds(holes, influence, patients)
    kept = [0, 2, 3, 4]
    assert found.mean == pytest.approx(np.nanmean(holes[kept], 1).mean())
    assert (found.n, found.patients) == (11, patients[kept].sum())
    whole = np.delete(values, 1, 0), influence[kept], patients[kept]
    holes[0, 2] = values[0, 2]
    assert intervals.over_folds(holes, influence, patients) == intervals.over_folds(*whole)
    nothing = intervals.over_folds(np.full((5, 3), np.nan), influence, patients)
    assert (nothing.n, nothing.high) == (0, np.inf) and np.isnan(nothing.mean)


def test_influence_that_is_unknown_leaves_the_interval_open(effect):
    values, influence, patients = effect
    influence[2] = np.nan
    found = intervals.over_folds(values, influence, patients)
    assert (found.mean, found.high) == (pytest.approx(values.mean()), np.inf)


def test_an_effect_that_never_varies_is_certain(effect):
    values, influence, patients = np.full((5, 3), 0.25), np.zeros((5, 24)), effect[2]
    found = intervals.over_folds(values, influence, patients)
    assert (found.low, found.high) == (0.25, 0.25)
    assert intervals.decide_positive(found) == Decision("holds", 0.0)


def test_many_like_patients_leave_many_degrees_of_freedom_and_one_leaves_one():
    alike = np.tile([0.01, -0.01], (5, 12))
    patients = np.full(5, 24)
    assert intervals._effective(alike, patients) == 115  # of 120, one a fold is not free
    one = np.zeros((5, 24))
    one[0, 0] = 0.3
    assert intervals._effective(one, patients) == 1


def test_level_is_on_the_scale_of_log_odds(effect):
    values, influence, patients = effect
    plain, found = (
        f(values, influence, patients) for f in (intervals.over_folds, intervals.auc_interval)
    )
    assert (found.mean, found.df, found.n) == (plain.mean, plain.df, plain.n)
    ends = special.logit([found.low, found.high]) - special.logit(found.mean)
    assert ends[1] == pytest.approx(-ends[0])
    assert ends[1] == pytest.approx((plain.high - plain.mean) / plain.mean / (1 - plain.mean))
    near = intervals.auc_interval(0.999 - 0.001 * values, influence, patients)
    assert 0 < near.low < near.mean < near.high < 1
    assert near.mean - near.low > near.high - near.mean
    unknown = intervals.auc_interval(values[:1, :1], influence[:1], patients[:1])
    assert (unknown.low, unknown.high) == (0, 1)
    right = intervals.auc_interval(np.ones((5, 3)), np.zeros((5, 24)), patients)
    assert (right.low, right.high) == (1, 1)


# --- over new studies ------------------------------------------------------------------------


def pictures(rng, patients, most):
    """Labels and patients of 1 to `most` images a patient; a quarter have one label alone."""
    sizes = np.exp(rng.uniform(0, np.log(most + 1), patients)).astype(int)
    share = rng.beta(4, 3, patients) * (np.arange(patients) >= patients // 4)
    patient = np.repeat(np.arange(patients), sizes)
    return (rng.random(len(patient)) < share[patient]).astype(int), patient


def two_arms(rng, shifts, *, repetitions, most, training, patients=28, folds=5):
    """AUC (fold, repetition, arm) and influence (arm, fold, patient) of a made-up study.

    Patients are hard for both arms and for each, in their positives more so; repetitions differ by
    chance in all images (`training`) and in each.
    """
    values, influence = [], []
    for _ in range(folds):
        target, patient = pictures(rng, patients, most)
        hard = 0.4 * rng.normal(size=(2, patients))[:, patient] * [[1], [0.7]]
        seen = hard[0] + hard[1] * target + 0.8 * rng.normal(size=len(patient))
        seen = seen + 0.2 * rng.normal(size=(2, patients))[:, patient]
        seen = seen + 0.6 * rng.normal(size=(2, len(patient)))
        chance = training * rng.normal(size=(repetitions, 2, 1))
        said = seen + (np.array(shifts)[:, None] + chance) * target
        placed = metrics.placements(target, said + 0.3 * rng.normal(size=said.shape))
        values.append(placed.mean(-1, where=target == 1))
        influence.append(metrics.influence(target, placed.mean(0), patient))
    return np.array(values), np.stack(influence, 1)


def coverage(shifts, studies, **how):
    """How often the 95 % intervals of the difference and of one arm hold the truth, and that."""
    rng = np.random.default_rng(0)
    many = {**how, "patients": 1000, "folds": 20}
    first, second = two_arms(rng, shifts, **many)[0].mean((0, 1))
    covered = []
    for _ in range(studies):
        values, influence = two_arms(rng, shifts, **how)
        patients = np.full(len(values), influence.shape[-1])
        apart = values[..., 1] - values[..., 0], influence[1] - influence[0]
        effect = intervals.over_folds(*apart, patients)
        alone = intervals.auc_interval(values[..., 0], influence[0], patients)
        there = effect.low <= second - first <= effect.high, alone.low <= first <= alone.high
        covered.append(there)
    return *np.mean(covered, 0), (first, second)


# Shifts of two arms, of AUC 0.6, 0.85 and 0.98.
EASE = {"hard": (0.4, 0.6), "middle": (1.5, 1.9), "easy": (3.2, 3.6)}


@pytest.mark.parametrize("repetitions", [1, 2])
def test_intervals_hold_the_truth_of_few_images_a_patient(repetitions):
    how = {"repetitions": repetitions, "most": 5, "training": 0.15}
    difference, level, (first, second) = coverage(EASE["middle"], 250, **how)
    assert 0.8 < first < second < 0.9
    error = np.sqrt(0.95 * 0.05 / 250)
    assert difference > 0.95 - 2 * error and level > 0.95 - 2 * error


@pytest.mark.slow
@pytest.mark.parametrize("training", [0.0, 0.15])
@pytest.mark.parametrize("repetitions", [1, 2])
@pytest.mark.parametrize("most", [5, 200])
@pytest.mark.parametrize("ease", EASE)
def test_intervals_hold_the_truth_as_often_as_they_say(ease, most, repetitions, training):
    """At least: of few images a patient, or one repetition, they are wider than they must be."""
    how = {"repetitions": repetitions, "most": most, "training": training}
    difference, level, true = coverage(EASE[ease], 1000, **how)
    print(f"\n{np.round(true, 3)}: difference {difference:.3f}, level {level:.3f}")
    assert 0.92 <= difference <= 0.995 and 0.9 <= level


def test_detectable_effects_are_found_with_that_power(rng):
    effect = intervals.interval(rng.normal(size=5))
    true = intervals.detectable(effect, power=0.7)
    # Runs with the standard error that this effect has in the mean over samples.
    values = true + effect.sd * rng.normal(size=(20000, 5))
    found = stats.ttest_1samp(values, 0, axis=1)
    assert ((found.pvalue < 0.05) & (found.statistic > 0)).mean() == pytest.approx(0.7, abs=0.015)


def test_detectable_effect_of_many_runs_is_the_normal_one():
    effect = Interval(0.0, -1.0, 1.0, np.nan, 10**8)
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * effect.se
    assert intervals.detectable(effect) == pytest.approx(expected)
    assert intervals.detectable(intervals.interval([1.0])) == np.inf
    assert intervals.detectable(intervals.interval([1.0, 1.0])) == 0


def test_rank_correlation_is_spearmans(rng):
    x = rng.normal(size=12)
    y = np.exp(x + rng.normal(size=12))
    found, expected = intervals.rank_correlation(x, y), stats.spearmanr(x, y)
    ranks = stats.pearsonr(stats.rankdata(x), stats.rankdata(y))
    assert found.mean == pytest.approx(expected.statistic)
    assert (found.low, found.high) == pytest.approx(tuple(ranks.confidence_interval()))
    assert found.p == pytest.approx(expected.pvalue, rel=0.3)
    assert intervals.rank_correlation([*x, np.nan], [*y, 1.0]) == found


@pytest.mark.parametrize("n", [2, 3, 4, 6])
def test_perfect_rank_correlations(n):
    """One order of n! is as good, one as bad; four points are too few to be sure of a sign."""
    up = intervals.rank_correlation(np.arange(n), np.arange(n) ** 3)
    down = intervals.rank_correlation(np.arange(n), -np.arange(n))
    assert (up.mean, up.high, up.n) == (pytest.approx(1), pytest.approx(1), n)
    assert (down.low, down.high, down.p) == (pytest.approx(-up.high), pytest.approx(-up.low), up.p)
    assert up.p == pytest.approx(2 / np.prod(np.arange(1, n + 1)))
    assert (up.low > 0) == (up.p < 0.05) == (n == 6)


def test_constant_ranks_have_no_correlation():
    found = intervals.rank_correlation(np.arange(5), np.ones(5))
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
    assert intervals.decide_equivalent(between(low, high), 1.0).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 1, "holds"), (-2, -0.1, "differs"), (-1, 1, "inconclusive")],
)
def test_positive(low, high, verdict):
    assert intervals.decide_positive(between(low, high)).verdict == verdict


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_p_values_decide_as_intervals_do(margin, rng):
    for _ in range(200):
        effect = intervals.interval(rng.normal(rng.normal(0, 1), 0.5, 4))
        inside = -margin < effect.low and effect.high < margin
        beyond = effect.low > margin or effect.high < -margin
        assert (intervals.p_equivalent(effect, margin) < 0.05) == inside
        assert (intervals.p_beyond(effect, margin) < 0.05) == beyond
        assert (intervals.p_positive(effect, margin) < 0.05) == (effect.low > margin)
        assert (intervals.p_negative(effect, margin) < 0.05) == (effect.high < margin)
        for decided in (
            intervals.decide_equivalent(effect, margin),
            intervals.decide_positive(effect, margin),
        ):
            assert (decided.p < 0.05) == (decided.verdict != "inconclusive")


def test_p_values_are_those_of_t_tests(rng):
    values = rng.normal(0.4, 1, 9)
    effect, (low, high) = intervals.interval(values), (-1.0, 1.0)
    two_sided = stats.ttest_1samp(values, 0).pvalue
    one_sided = intervals.p_positive(effect), intervals.p_negative(effect)
    assert min(one_sided) == pytest.approx(two_sided)
    assert intervals.p_beyond(effect, 0.0) == pytest.approx(two_sided)
    above = stats.ttest_1samp(values, low, alternative="greater").pvalue
    below = stats.ttest_1samp(values, high, alternative="less").pvalue
    assert intervals.p_equivalent(effect, 1.0) == pytest.approx(2 * max(above, below))


@pytest.mark.parametrize("values", [[], [np.nan], [5.0], [np.nan, 5.0]])
def test_too_few_runs_decide_nothing(values):
    effect = intervals.interval(np.array(values))
    assert intervals.decide_positive(effect, 1.0) == Decision("inconclusive", 1.0)
    assert intervals.decide_equivalent(effect, 9.0) == Decision("inconclusive", 1.0)


@pytest.mark.parametrize(
    ("value", "equivalent", "positive"),
    [
        (0.5, Decision("holds", 0.0), Decision("differs", 0.0)),
        (2.0, Decision("differs", 0.0), Decision("holds", 0.0)),
        (1.0, Decision("inconclusive", 1.0), Decision("inconclusive", 1.0)),
    ],
)
def test_equal_runs_are_certain(value, equivalent, positive):
    effect = intervals.interval(np.full(4, value))
    assert intervals.decide_equivalent(effect, 1.0) == equivalent
    assert intervals.decide_positive(effect, 1.0) == positive


def test_adjusted_is_benjamini_and_hochbergs():
    """The largest p stays, the smallest is multiplied by the number of claims; nan is no claim."""
    found = intervals.adjusted(np.array([[0.01, np.nan], [0.04, 0.9]]))
    assert found == pytest.approx(np.array([[0.03, np.nan], [0.06, 0.9]]), nan_ok=True)
    assert np.isnan(intervals.adjusted([np.nan])).all()
    assert len(intervals.adjusted([])) == 0


def test_no_effect_seldom_counts_as_one(rng):
    """The 95 % interval of differences that are noise excludes 0 one time in twenty."""
    found = [
        intervals.decide_positive(intervals.interval(rng.normal(size=5))).verdict
        for _ in range(2000)
    ]
    share = np.mean([verdict != "inconclusive" for verdict in found])
    assert 0.035 < share < 0.065


def test_steps_to_a_level():
    steps, curve = np.array([10, 20, 30]), np.array([0.5, 0.7, 0.9])
    assert learning.steps_to(0.8, steps, curve) == pytest.approx(25)
    assert learning.steps_to(0.4, steps, curve) == 10
    assert learning.steps_to(0.95, steps, curve) == np.inf


def test_average_precision_is_that_of_scikit_learn(rng):
    for _ in range(50):  # few distinct scores, so many tie
        target, scores = rng.integers(0, 5, 40), rng.integers(0, 4, (40, 5)).astype(float)
        expected = average_precision_score(target >= 2, scores[:, 2:].sum(1))
        assert metrics.average_precision(target, scores, 2) == pytest.approx(expected, abs=1e-12)

"""Numbers of three claims, computed again from the records by other libraries."""

import itertools

import numpy as np
import pytest
from scipy import special, stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.weightstats import DescrStatsW
from transfusion import experiments, records, store, studies
from transfusion.experiments import accuracy, learning
from transfusion.statistics import contrasts
from transfusion.studies import collected, params

from ..conftest import KNOBS, ROOT, results_of

MADE = {**KNOBS, "folds": 3, "evaluate_at": [1, 3]}
SPEED = {"inits": ["random", "mean_var", "batch_norm"], "rates": [0.001]}


@pytest.fixture
def made(cache):
    return results_of("performance", **MADE), "made_up", experiments.runs("performance", **MADE)


def tracked():
    """Studies in git of which every training of `performance` is there."""
    names = [p.name for p in (ROOT / "data_cache/results").glob("[a-z]*") if p.is_dir()]
    names = [name for name in names if name not in ("quick", "smoke")]
    return [name for name in names if collected.is_collected(name, "performance")]


def kept(study, specs):
    """Of every spec its test images: whether positive, the log odds said of it, and patient."""
    folder, names = store.records_folder(study), records.recorded(study, specs)
    found = {}
    for spec in specs:
        record = records.whole(folder, names[spec.key])
        first = record.attrs["positive_from"]
        logits = np.pad(record.test_logit.values.astype(float), ((0, 0), (1, 0)))
        said = special.softmax(logits, axis=1)[:, first:].sum(1)
        positive = record.test_target.values >= first
        found[spec] = positive, said, record.test_patient.values
    return found


def arms(found, model, what):
    """By fold the scores of an arm's repetitions, of runs or of frozen features."""
    folds = {}
    for spec, scores in found.items():
        frozen = getattr(spec, "features", None) == "frozen"
        if spec.model == model and (spec.init.name, frozen) == what:
            folds.setdefault(spec.data.fold, []).append(scores)
    return folds


def curve(positive, said, patient):
    """What each patient adds to an AUC's error, from all pairs of images."""
    above = (said[positive][:, None] > said[~positive]) + 0.5 * (
        said[positive][:, None] == said[~positive]
    )
    auc = above.mean()
    each = np.zeros(len(said))
    each[positive] = (above.mean(1) - auc) / positive.sum()
    each[~positive] = (above.mean(0) - auc) / (~positive).sum()
    return np.array([each[patient == p].sum() for p in np.unique(patient)])


def by_hand(pairs):
    """Mean difference of AUC over folds in points, and the standard error of both its parts."""
    values, squares = [], []
    for one, other in pairs:
        aucs = [[roc_auc_score(s[0], s[1]) for s in arm] for arm in (one, other)]
        values.append(100 * np.subtract(*map(np.array, aucs)))
        curves = [np.mean([curve(*s) for s in arm], axis=0) for arm in (one, other)]
        difference = 100 * np.subtract(*curves)
        n = len(difference)
        squares.append((difference**2).sum() * n / (n - 1))
    values = np.array(values)
    folds, repetitions = values.shape
    seen = np.sum(squares) / folds**2
    trained = max(0, values.mean(1).var(ddof=1) - np.mean(squares)) / folds
    if repetitions > 1:
        trained = max(trained, values.var(1, ddof=1).mean() / folds / repetitions)
    return values.mean(), np.sqrt(seen + trained)


def recomputed(found, models, one, other):
    """By model, and for frozen features as often as there are repetitions."""
    for model in models:
        first, second = (arms(found, model, what) for what in (one, other))
        pairs = [(first[k], second[k] * (len(first[k]) // len(second[k]))) for k in first]
        yield model, by_hand(pairs)


def check(results, found):
    models = list(results.model.values)
    tuned, random, frozen = ("transfer", False), ("random", False), ("transfer", True)
    for measure, other in ((accuracy.gains, random), (accuracy.fine_tuning, frozen)):
        effect = measure(results)
        for model, (mean, error) in recomputed(found, models, tuned, other):
            ours = contrasts.combined(effect.rows[(model,)])
            assert ours.mean == pytest.approx(mean, abs=1e-4)
            assert ours.se == pytest.approx(error, rel=1e-3)


def test_gains_and_fine_tuning_are_those_of_scikit_learn(made, monkeypatch):
    results, study, specs = made
    check(results, kept(study, specs))
    monkeypatch.delenv("TRANSFUSION_CACHE")
    for study in tracked():
        specs = params.specs(study, "performance")
        check(studies.results(study, "performance"), kept(study, specs))


def test_what_scale_alone_does_is_that_of_numpy_and_statsmodels(cache):
    knobs = MADE | SPEED | {"seeds": 1}
    results = results_of("weight_scaling", **knobs).isel(lr=0)
    folder, specs = store.records_folder("made_up"), experiments.runs("weight_scaling", **knobs)
    names, areas = records.recorded("made_up", specs), {}
    for spec in specs:
        if hasattr(spec, "optim"):
            record = records.whole(folder, names[spec.key])
            steps = np.log(record.step.values)
            area = np.trapezoid(100 * record.auc.values, steps) / (steps[-1] - steps[0])
            areas[spec.init.name, spec.data.fold] = area
    more = [areas["mean_var", fold] - areas["batch_norm", fold] for fold in range(3)]
    ours = contrasts.combined(learning.scale_alone(results).rows[("cbr_tiny",)])
    assert ours.mean == pytest.approx(np.mean(more), abs=1e-4)
    assert (ours.low, ours.high) == pytest.approx(DescrStatsW(more).tconfint_mean(), abs=1e-3)
    assert stats.ttest_1samp(more, 0).df == ours.freedom


def test_repetitions_pair_arm_by_arm(made):
    results, study, specs = made
    found = kept(study, specs)
    first, second = (arms(found, "cbr_tiny", (init, False)) for init in ("transfer", "random"))
    aucs = {
        (k, r): 100 * (roc_auc_score(*first[k][r][:2]) - roc_auc_score(*second[k][r][:2]))
        for k, r in itertools.product(range(3), range(2))
    }
    (value,) = accuracy.gains(results).rows.values()
    ours = sum(weight * one["value"] for weight, one in value)
    for (fold, seed), expected in aucs.items():
        assert float(ours.sel(fold=fold, seed=seed)) == pytest.approx(expected, abs=1e-4)

"""Made-up collected results of each chapter, with a dial for what is true of them.

Noise is drawn anew for each run, and of mean 0 over an arm's, so that what is found is what is
true; an arm that is not named was never run. All networks have learned, but for `ignorant` ones.
"""

import json

import numpy as np
import xarray as xr
from scipy import stats
from transfusion.experiments import alternatives
from transfusion.statistics import gate, metrics

LARGE, SMALL = "resnet50", ["cbr_tiny", "cbr_small"]
MODELS = [*SMALL, LARGE]
FOLDS, SEEDS, PATIENTS = 5, 2, 30
RUNS = FOLDS * SEEDS
COMPARED = 6  # networks of an init that are compared, on one fold
BASELINE = 0.6


# --- trained networks ------------------------------------------------------------------------


def trained(means, noise=0.001, folds=FOLDS, seeds=SEEDS, seed=0):
    """Networks of {(model, init): AUC}; the same on test images and throughout the curve."""
    rng = np.random.default_rng(seed)
    auc = _empty(means, fold=range(folds), seed=range(seeds))
    for (model, init), mean in means.items():
        drawn = rng.normal(size=(folds, seeds))
        auc.loc[model, init] = mean + noise * (drawn - drawn.mean())
    return tested(auc, auc.expand_dims(step=[10, 20, 30], axis=-1), noise, seed)


def _empty(arms, **dims):
    models, inits = (list(dict.fromkeys(names)) for names in zip(*arms, strict=True))
    coords = {"model": models, "init": inits, **dims}
    return xr.DataArray(np.full([len(v) for v in coords.values()], np.nan), coords, tuple(coords))


def tested(auc, curve, error=0.001, seed=0):
    """With what patients add to the error of each AUC, in each fold so much, and with baselines."""
    rng, folds = np.random.default_rng([seed, 1]), auc.fold.values
    mean = auc.mean("seed")
    influence = (("model", "init", "fold", "patient"), _shares(rng, mean.shape, error))
    names, dims = gate.SIMPLE, ("baseline", "fold")
    parts = {
        "test_auc": auc,
        "auc": curve,
        "influence": xr.Dataset({"influence": influence}, mean.coords)["influence"],
        "patients": ("fold", np.full(len(folds), PATIENTS)),
        "baseline_auc": (dims, BASELINE + error * rng.normal(size=(len(names), len(folds)))),
        "baseline_influence": ((*dims, "patient"), _shares(rng, (len(names), len(folds)), error)),
    }
    found = xr.Dataset(parts, {"baseline": names}, PROVENANCE)
    return found.assign(influence=found["influence"].where(mean.notnull()))


def _shares(rng, shape, error):
    """So much error in all, of as many patients."""
    drawn = rng.normal(size=(*shape, PATIENTS))
    drawn -= drawn.mean(-1, keepdims=True)
    return drawn * error / np.sqrt(metrics.patients_variance(drawn, PATIENTS))[..., None]


RUN = {"key": "k", "status": "done", "device": "cpu", "seconds": 1.0, "commit": "c", "torch": "t"}
PROVENANCE = {"runs": json.dumps([RUN]), "parameters": "{}", "train_images": 300}


def performance(gain, noise=0.001, models=("cbr_tiny", LARGE), seed=0, **runs):
    """Networks that gain so much from transfer."""
    means = {}
    for model, more in zip(models, np.broadcast_to(gain, len(models)), strict=True):
        means |= {(model, "random"): 0.8, (model, "transfer"): 0.8 + more}
    return trained(means, noise, seed=seed, **runs)


def keeping_up(random, transfer, noise=0.001):
    """A small network ahead of a large one, by init."""
    small = {("cbr_tiny", "random"): 0.8 + random, ("cbr_tiny", "transfer"): 0.8 + transfer}
    return trained(small | {(LARGE, i): 0.8 for i in gate.BOTH}, noise)


def sources(target, noise=0.0):
    """As many networks as `target` has AUCs, the better on the source task the later named."""
    names = [f"net{i}" for i in range(len(target))]
    results = performance(np.array(target) - 0.8, noise, names)
    return results.assign(source_auc=("model", 0.5 + 0.01 * np.arange(len(target))))


def frozen(behind, noise=0.001, seed=0):
    """Frozen features so far behind fine-tuned ones, by model."""
    models = list(MODELS[-len(behind) :])
    results, rng = performance(0.0, noise, models, seed), np.random.default_rng([seed, 2])
    shape = (len(models), 2, FOLDS)
    values = 0.8 - np.reshape(behind, (-1, 1, 1)) + noise * rng.normal(size=shape)
    dims = ("model", "probe", "fold")
    parts = {"probe_auc": (dims, values)}
    parts |= {"probe_influence": ((*dims, "patient"), _shares(rng, shape, noise))}
    return results.assign(parts).assign_coords(probe=gate.BOTH)


def scores(shifts, findings=("edema",), noise=0.1, images=40, seeds=SEEDS, seed=0, uneven=0.0):
    """What networks say of test images, (model, init, fold, seed, finding, image), two a patient.

    {(model, init): shift of the positives' scores, one a finding}; the noise of an image is common
    to all networks, but for `noise` of each one, and trainings differ by `uneven` in the shift.
    """
    rng = np.random.default_rng(seed)
    arms = _empty(shifts)
    pattern = np.tile([0, 1], (FOLDS, len(findings), images // 2))
    target = rng.permuted(pattern, axis=-1)
    said = np.full((*arms.shape, FOLDS, seeds, *target.shape[1:]), np.nan)
    common = rng.normal(size=target.shape)[:, None]
    for (model, init), shift in shifts.items():
        place = arms.model.values.tolist().index(model), arms.init.values.tolist().index(init)
        more = np.reshape(shift, (-1, 1)) + uneven * rng.normal(size=(FOLDS, seeds, 1, 1))
        said[place] = more * target[:, None] + common + noise * rng.normal(size=said[place].shape)
    dims = ("model", "init", "fold", "seed", "finding", "image")
    coords = {name: arms[name].values for name in ("model", "init")}
    coords |= {"fold": range(FOLDS), "seed": range(seeds), "finding": list(findings)}
    parts = {"score": (dims, said), "target": (("fold", *dims[4:]), target)}
    return xr.Dataset(parts | {"patient": ("image", np.arange(images) // 2)}, coords)


def scored(*args, **kwargs):
    return collected(scores(*args, **kwargs))


def collected(said):
    """The AUCs of scores and what they owe to the patients; of one finding as of grades."""
    target, score = said["target"].values, said["score"].values
    placed = metrics.placements(target[:, None], score)
    auc = np.where(target[:, None] > 0, placed, 0).sum(-1) / (target[:, None] > 0).sum(-1)
    rows = np.broadcast_to(target[:, None], score.shape)
    flat = [each.reshape(-1, each.shape[-1]) for each in (rows, placed)]
    found = metrics.influence(*flat, said["patient"].values).reshape(*score.shape[:-1], -1)
    dims = said["score"].dims
    parts = {"finding_auc": (dims[:-1], auc), "finding_influence": ((*dims[:-1], "patient"), found)}
    coords = {name: said[name].values for name in dims[:-1]}
    results = xr.Dataset(parts, coords)
    results["finding_influence"] = results["finding_influence"].mean("seed")
    mean = results["finding_auc"].mean("finding", skipna=False)
    others = tested(mean, mean.expand_dims(step=[10, 20, 30], axis=-1))
    others = others.drop_vars(["influence", "baseline_influence"])
    patients = found.shape[-1]
    results = others.merge(results.assign(influence=results["finding_influence"].mean("finding")))
    shape = (len(gate.SIMPLE), FOLDS, patients)
    results["baseline_influence"] = (("baseline", "fold", "patient"), np.zeros(shape))
    results["patients"] = ("fold", np.full(FOLDS, patients))
    results["baseline_auc"] = results["baseline_auc"] - (BASELINE - 0.5)
    return results.assign_attrs(PROVENANCE) if len(said.finding) > 1 else _of_grades(results)


def _of_grades(results):
    names = ["finding_auc", "finding_influence", "finding"]
    return results.isel(finding=0, drop=True).drop_vars(names, errors="ignore")


def stacked(parts, dim):
    """Results under several conditions: {label: results}."""
    how = dict(join="outer", coords="minimal", data_vars="all", compat="override")
    found = xr.concat(parts.values(), dim, combine_attrs="override", **how)
    return found.assign_coords({dim: list(parts)})


def small_data(gains, noise=0.001, models=MODELS, seed=0):
    """{number of training images: gain of each model}."""
    parts = {n: performance(g, noise, models, seed=n + seed) for n, g in gains.items()}
    return stacked(parts, "train_images").assign(patients=next(iter(parts.values())).patients)


def curves(steps, final=0.9, noise=0.01, seed=0):
    """Linear rises of {model: {init: steps to the final AUC}}, some a little slower."""
    step, rng = np.arange(10, 410, 10), np.random.default_rng(seed)
    arms = [(model, init) for model, of in steps.items() for init in of]
    auc = _empty(arms, fold=range(FOLDS), seed=range(SEEDS), step=step)
    for model, init in arms:
        drawn = rng.normal(size=(FOLDS, SEEDS, 1))
        slower = np.exp(noise * (drawn - drawn.mean()))
        rise = np.minimum(step / (steps[model][init] * slower), 1)
        auc.loc[model, init] = 0.5 + (final - 0.5) * rise
    last = 0.9 + 0 * auc.isel(step=-1, drop=True)
    return tested(last, auc)


def two(small, large, final=0.9, noise=0.01):
    """Curves of a small and a large network: (steps of random init, steps of Mean Var)."""
    inits = ("random", "mean_var")
    pairs = {"cbr_tiny": small, LARGE: large}
    return curves({m: dict(zip(inits, s, strict=True)) for m, s in pairs.items()}, final, noise)


def ahead(small, large, noise=0.001):
    """Mean Var ahead of batch norm alone, by model."""
    means = {}
    for model, more in (("cbr_tiny", small), (LARGE, large)):
        means |= {(model, "random"): 0.7, (model, "batch_norm"): 0.8}
        means[model, "mean_var"] = 0.8 + more
    return trained(means, noise)


def blockwise(added, suffix=0.0, noise=0.001):
    """What each further pretrained block adds, (model, block), and the last alone."""
    inits = ["transfusion:conv1", "transfusion:block1", "transfer"]
    means = {}
    for model, more in zip(("cbr_tiny", LARGE), added, strict=True):
        means[model, "random"] = 0.7
        means |= {(model, i): 0.7 + sum(more[: k + 1]) for k, i in enumerate(inits)}
        means[model, "suffix:block1"] = 0.7 + suffix
    return trained(means, noise)


def hybrids(less=(0.0, 0.0, 0.05), gabor=(0.0, 0.0), noise=0.001):
    """Slim ResNet-50 behind full transfer, behind the full network with as many blocks, and above
    its random init; synthetic Gabors behind a pretrained first layer, by model."""
    cut, slim = alternatives.CUT, "resnet50_slim"
    means = {(LARGE, "transfer"): 0.9, (LARGE, cut): 0.9 - less[0] + less[1]}
    means |= {(slim, cut): 0.9 - less[0], (slim, "random"): 0.9 - less[0] - less[2]}
    for model, behind in zip(("cbr_tiny", LARGE), gabor, strict=True):
        means |= {(model, "transfusion:conv1"): 0.85, (model, "gabor"): 0.85 - behind}
        means |= {(model, "mean_var:conv1"): 0.8, (model, "random"): 0.75}
    return trained(means, noise)


def efficiency(small):
    """Costs of {model: (parameters, multiply-adds)} beside a large network of 20 and 100."""
    costs = {**small, LARGE: (20, 100)}
    results = performance(0.0, models=list(costs))
    rows = dict(
        zip(("parameters", "multiply_adds"), zip(*costs.values(), strict=True), strict=True)
    )
    return results.assign({name: ("model", list(values)) for name, values in rows.items()})


def robustness(gains, noise=0.001):
    """{variant: gain of each of two models}; the first variant is the study's own."""
    return stacked({v: performance(g, noise, seed=i) for i, (v, g) in enumerate(gains.items())},
                   "variant")  # fmt: skip


# --- compared networks -----------------------------------------------------------------------


def networks(seeds=COMPARED):
    return [(init, str(s)) for init in gate.BOTH for s in range(seeds)]


def couples(nets):
    return [(a, b) for n, a in enumerate(nets) for b in nets[n + 1 :]]


def in_both_states(nets):
    pairs = couples(nets)
    return [((*a, when), (*b, when)) for when in ("initial", "final") for a, b in pairs]


def compared(values, pairs, null=0.0, models=("cbr_tiny", LARGE)):
    """A collected comparison of (model, block, pair), with pairs of (init, seed, state)."""
    names = ("init_a", "seed_a", "state_a", "init_b", "seed_b", "state_b")
    fields = np.array([[*a, *b] for a, b in pairs]).T
    blocks = [f"block{i + 1}" for i in range(values.shape[1])]
    coords = {"model": list(models), "block": blocks, "measure": ["cca", "cka"]}
    coords |= {name: ("pair", list(column)) for name, column in zip(names, fields, strict=True)}
    corrected = xr.DataArray(np.stack([values, values]), dims=("measure", "model", "block", "pair"))
    dataset = xr.Dataset({"value": corrected + 0.01, "corrected": corrected}, coords)
    dataset["null"], dataset["corrected_null"] = (n + 0 * corrected for n in (null + 0.01, null))
    shape = (len(models), len(blocks))
    dataset["depth"] = (("model", "block"), [list(range(len(blocks)))] * len(models))
    dataset["datapoints"] = (("model", "block"), np.full(shape, 1000))
    dataset["neurons"] = (("model", "block"), np.full(shape, 16))
    square = np.zeros((2, *shape, len(blocks)))
    dataset["map"] = (("measure", "model", "block", "other"), square)
    dataset["parameters"] = ("model", [10**6 * (i + 1) for i in range(len(models))])
    seeds = len(set(fields[1]) | set(fields[4]))
    nets = performance(0.05, models=list(models), folds=1, seeds=seeds)
    return dataset.assign_coords(other=blocks).merge(nets.drop_vars(["auc", "step"]))


def similarity(gap, noise=0.002, seeds=COMPARED, own=0.0, before=0.0):
    """Comparisons of random and transferred networks, by model how much less alike these are than
    two random ones, after and `before` training; `own` is what a network is more like all others,
    and noise that of a pair."""
    rng, count = np.random.default_rng(0), len(gap)
    pairs = in_both_states(networks(seeds))
    values = 0.5 + noise * rng.normal(size=(count, 2, len(pairs)))
    mixed = np.array([a[0] != b[0] for a, b in pairs])
    final = np.array([a[2] == "final" for a, _ in pairs])
    for less, when in ((gap, final), (np.broadcast_to(before, count), ~final)):
        values -= np.reshape(less, (-1, 1, 1)) * (mixed & when)
    return compared(values + likings(rng, pairs, count, own), pairs, 0.1, MODELS[-count:])


def likings(rng, pairs, count, own):
    """How much more alike a pair (model, 1, pair) is for what each network is in each state."""
    nets = list(dict.fromkeys(net for pair in pairs for net in pair))
    each = own * rng.normal(size=(count, len(nets)))
    ends = [[nets.index(pair[end]) for pair in pairs] for end in (0, 1)]
    return (each[:, ends[0]] + each[:, ends[1]])[:, None]


def changed(kept_random, kept_transfer, noise=0.0, seeds=COMPARED):
    """Networks of four blocks before and after training: (model, block) similarities."""
    pairs = [((*net, "initial"), (*net, "final")) for net in networks(seeds)]
    values = np.empty((len(kept_random), 4, len(pairs)))
    values[..., :seeds] = np.array(kept_random, float)[..., None]
    values[..., seeds:] = np.array(kept_transfer, float)[..., None]
    values += noise * np.random.default_rng(0).normal(size=values.shape)
    return compared(0.1 + values, pairs, 0.1, MODELS[-len(kept_random) :])


FALLING, LEVEL, STAYING = [0.9, 0.7, 0.5, 0.3], [0.6] * 4, [0.9] * 4


def predicted(foretold, seeds=4, neurons=60):
    """Shares of neurons that two random networks predict of each other; `foretold` (model, block)
    is how much of the state after training is that before."""
    rng = np.random.default_rng(0)
    pairs = in_both_states(networks(seeds))
    dataset = compared(np.full((2, 2, len(pairs)), 0.5), pairs)
    shares = rng.random((2, 2, len(pairs), neurons))
    half = len(pairs) // 2
    part = np.array(foretold, float)[..., None, None]
    shares[:, :, half:] = part * shares[:, :, :half] + (1.02 - part) * shares[:, :, half:]
    return dataset.assign(explained=(("model", "block", "pair", "neuron"), shares))


def first_layers(moved, gabors, noise=0.01):
    """(model, init) how far filters moved, and (model, init, state) which share are Gabors; a
    `noise` above 1/20 of a run's filters pass as Gabors or do not."""
    rng = np.random.default_rng(0)
    models = MODELS[-len(moved) :]
    runs = (len(models), 2, FOLDS, SEEDS)
    far = np.reshape(moved, (-1, 2, 1, 1, 1)) * (1 + noise * rng.normal(size=(*runs, 1)))
    fits = np.zeros((*runs, 2, 20))
    share = np.array(gabors, float)[:, :, None, None] + noise * rng.normal(size=(*runs, 2))
    for place, part in np.ndenumerate(share):
        fits[(*place, slice(0, max(0, round(20 * part))))] = 0.9
    dims = ("model", "init", "fold", "seed")
    parts = {
        "moved": ((*dims, "filter"), far + np.zeros((*runs, 20))),
        "gabor": ((*dims, "state", "filter"), fits),
        "gabor_level": (dims, np.full(runs, 0.4)),
        "grey": (("model", "init", "state", "filter", "y", "x"),
                 rng.normal(size=(*runs[:2], 2, 20, 5, 5))),
    }  # fmt: skip
    results = performance(0.05, models=models).drop_vars(["auc", "step"])
    return results.assign(parts).assign_coords(state=["initial", "final"], filter=range(20))


# --- what becomes of them --------------------------------------------------------------------


def ignorant(results, **labels):
    """With the baselines above all networks or, of these labels, a test AUC of chance."""
    if not labels:
        return results.assign(baseline_auc=0 * results["baseline_auc"] + 0.99)
    auc, hit = results["test_auc"], _hit(results, labels)
    return results.assign(test_auc=auc.where(~hit | auc.isnull(), 0.5).transpose(*auc.dims))


def failed(results, **labels):
    """With nan for the runs of these labels; of all that an arm has, for what it left too."""
    hit = _hit(results, labels)
    own = [n for n in results.data_vars if {*hit.dims, "fold"} <= {*results[n].dims}]
    lost = {n: results[n].where(~hit).transpose(*results[n].dims) for n in own}
    return results.assign({n: one for n, one in lost.items() if "baseline" not in one.dims})


def _hit(results, labels):
    hit = xr.DataArray(True)
    for name, label in labels.items():
        hit = hit & (results[name] == label)
    return hit


def exchanged(results, dim, labels, rng, over="seed"):
    """With these labels dealt anew, apart for each model and run (or pair): what was true of one
    label is true of none."""
    fixed = {"step", "image", "filter", "state", "finding", "train_images", "measure", "block"}
    names = [n for n in results.data_vars if {dim, over} <= set(results[n].dims)]
    shared = [d for d in results[names[0]].dims if d not in fixed | {dim, "init"}]
    shared += ["init"] if dim == "state" else []
    order = np.tile(np.arange(results.sizes[dim]), (*(results.sizes[d] for d in shared), 1))
    place = [list(results[dim].values).index(label) for label in labels]
    order[..., place] = rng.permuted(order[..., place], axis=-1)
    index = xr.DataArray(order, dims=(*shared, dim))
    return results.assign({n: _dealt(results[n], index, dim) for n in names})


def _dealt(values, index, dim):
    bare = values.drop_vars(list(values.coords))
    places = {d: xr.DataArray(np.arange(n), dims=d) for d, n in index.sizes.items() if d != dim}
    return (values.dims, bare.isel({**places, dim: index}).transpose(*values.dims).values)


def relabelled(results, rng):
    """Comparisons with the inits and seeds dealt anew among the networks."""
    nets = sorted({*zip(results.init_a.values, results.seed_a.values, strict=True),
                   *zip(results.init_b.values, results.seed_b.values, strict=True)})  # fmt: skip
    new = dict(zip(nets, [nets[i] for i in rng.permutation(len(nets))], strict=True))
    for end in ("a", "b"):
        old = zip(results[f"init_{end}"].values, results[f"seed_{end}"].values, strict=True)
        init, seed = zip(*(new[net] for net in old), strict=True)
        fields = {f"init_{end}": ("pair", list(init)), f"seed_{end}": ("pair", list(seed))}
        results = results.assign_coords(fields)
    return results


def at_rates(*results):
    """The same arms at several equal rates."""
    found = stacked(dict(zip((0.0003, 0.001, 0.003), results, strict=False)), "lr")
    fixed = [n for n in ("baseline_auc", "baseline_influence", "patients") if n in found]
    return found.assign({n: found[n].isel(lr=0, drop=True) for n in fixed})


def taught(monkeypatch):
    """As if all networks had learned, where something else is asked, many times."""

    def every(results):
        return {(m, i) for m in results.model.values for i in results.init.values}

    monkeypatch.setattr(gate, "learned", every)


# --- what is found ---------------------------------------------------------------------------


def ends(row):
    return row["low"], row["high"]


def at_most_one_in_twenty(decided):
    """A binomial bound: so many decided studies are no more than 5 % and chance."""
    return stats.binomtest(int(np.sum(decided)), len(decided), 0.05, "greater").pvalue > 0.01

"""Made-up collected results of each chapter, with a dial for what is true of them.

Noise is drawn anew for each seed, and of mean 0 over them, so that what is found is what is true;
an arm that is not named was never run.
"""

import json

import numpy as np
import xarray as xr
from scipy import stats
from transfusion import metrics

LARGE, SMALL = "resnet50", ["cbr_tiny", "cbr_small"]
MODELS = [*SMALL, LARGE]
SEEDS = 6


# --- trained networks ------------------------------------------------------------------------


def trained(means, noise=0.001, seeds=SEEDS, seed=0):
    """Networks of {(model, init): AUC}; the same on test images and throughout the curve."""
    rng = np.random.default_rng(seed)
    models, inits = (list(dict.fromkeys(names)) for names in zip(*means, strict=True))
    coords = {"model": models, "init": inits, "seed": range(seeds)}
    auc = xr.DataArray(np.full((len(models), len(inits), seeds), np.nan), coords, tuple(coords))
    for (model, init), mean in means.items():
        drawn = rng.normal(size=seeds)
        auc.loc[model, init] = mean + noise * (drawn - drawn.mean())
    curve = auc.expand_dims(step=[10, 20, 30], axis=-1)
    return xr.Dataset({"test_auc": auc, "auc": curve}, attrs=PROVENANCE)


RUN = {"key": "k", "status": "done", "device": "cpu", "seconds": 1.0, "commit": "c", "torch": "t"}
PROVENANCE = {"runs": json.dumps([RUN]), "parameters": "{}", "train_images": 300}


def performance(gain, noise=0.001, models=("cbr_tiny", LARGE), seed=0):
    """Networks that gain so much from transfer."""
    means = {}
    for model, more in zip(models, np.broadcast_to(gain, len(models)), strict=True):
        means |= {(model, "random"): 0.8, (model, "transfer"): 0.8 + more}
    return trained(means, noise, seed=seed)


def sources(target, noise=0.0):
    """As many networks as `target` has AUCs, the better on the source task the later named."""
    names = [f"net{i}" for i in range(len(target))]
    results = performance(np.array(target) - 0.8, noise, names)
    return results.assign(source_auc=("model", 0.5 + 0.01 * np.arange(len(target))))


def scores(shifts, findings=("edema",), noise=0.1, images=100, seeds=SEEDS, seed=0):
    """What networks say of test images, (model, init, seed, finding, image), two images a patient.

    {(model, init): shift of the positives' scores, one a finding}; the noise of an image is common
    to all networks, but for `noise` of each one.
    """
    rng = np.random.default_rng(seed)
    models, inits = (list(dict.fromkeys(names)) for names in zip(*shifts, strict=True))
    target = rng.permuted(np.tile([0, 1], (len(findings), images // 2)), axis=1)
    shape = (len(models), len(inits), seeds, *target.shape)
    score = np.full(shape, np.nan)
    common = rng.normal(size=target.shape)
    for (model, init), shift in shifts.items():
        means = np.reshape(shift, (-1, 1)) * target + common
        score[models.index(model), inits.index(init)] = means + noise * rng.normal(size=shape[2:])
    dims = ("model", "init", "seed", "finding", "image")
    coords = {"model": models, "init": inits, "seed": range(seeds), "finding": list(findings)}
    parts = {"score": (dims, score), "target": (dims[3:], target)}
    return xr.Dataset(parts | {"patient": ("image", np.arange(images) // 2)}, coords)


def scored(*args, **kwargs):
    return collected(scores(*args, **kwargs))


def collected(said):
    """The AUCs of scores and what they owe to the patients; of one finding as of grades."""
    target, score = said["target"].values, said["score"].values
    auc = [_auc(t, score[..., i, :]) for i, t in enumerate(target)]
    placed = metrics.placements(target, score)
    # The mean over the seeds that did not fail, by arm.
    done = np.isfinite(placed).all((-1, -2), keepdims=True)
    with np.errstate(invalid="ignore"):
        placed = np.sum(placed, 2, where=done) / done.sum(2)
    rows = placed.reshape(-1, placed.shape[-1])
    found, patients = metrics.patients_covariance(
        np.tile(target, (len(rows) // len(target), 1)), rows, said["patient"].values
    )
    lost = ~np.isfinite(rows).any(1)
    found[lost] = found[:, lost] = np.nan
    names = ("model", "init", "finding")
    dims = (*names, *(f"{n}_" for n in names))
    covariance = (dims, found.reshape(2 * placed.shape[:3]))
    finding_auc = (("finding", "model", "init", "seed"), np.stack(auc))
    results = xr.Dataset(
        {"covariance": covariance, "finding_auc": finding_auc, "patients": patients},
        {n: said[n].values for n in ("model", "init", "seed", "finding")}
        | {f"{n}_": said[n].values for n in names},
        PROVENANCE,
    )
    results["test_auc"] = results["finding_auc"].mean("finding")
    one = results.sizes["finding"] == 1
    return (
        results.isel(finding=0, finding_=0, drop=True).drop_vars("finding_auc") if one else results
    )


def _auc(target, score):
    """The share of right orders, directly."""
    above, below = score[..., target == 1, None], score[..., None, target == 0]
    right = np.where(above > below, 1.0, 0.5 * (above == below))
    return np.where(np.isnan(score).any(-1), np.nan, right.mean((-1, -2)))


def stacked(parts, dim):
    """Results under several conditions: {label: results}."""
    return xr.concat(parts.values(), dim, join="outer", coords="minimal").assign_coords(
        {dim: list(parts)}
    )


def small_data(gains, noise=0.001):
    """{number of training images: gain of each of MODELS}."""
    parts = {n: performance(g, noise, MODELS, seed=n) for n, g in gains.items()}
    return stacked(parts, "train_images")


def frozen(behind, noise=0.001):
    """Frozen features behind fine-tuned ones, (number of training images, model)."""
    parts = {}
    for size, less in zip((100, 1000), behind, strict=True):
        means = {}
        for model, part in zip(("cbr_tiny", LARGE), less, strict=True):
            means |= {(model, "random"): 0.7, (model, "transfer"): 0.8}
            means[model, "frozen:block4"] = 0.8 - part
        parts[size] = trained(means, noise, seed=size)
    return stacked(parts, "train_images")


def curves(steps, final=0.9, noise=0.01):
    """Linear rises of {model: {init: steps to the final AUC}}, each seed a little slower."""
    step = np.arange(10, 410, 10)
    models, inits = list(steps), list(dict.fromkeys(i for of in steps.values() for i in of))
    coords = {"model": models, "init": inits, "seed": range(SEEDS), "step": step}
    auc = xr.DataArray(np.full([len(v) for v in coords.values()], np.nan), coords, tuple(coords))
    rng = np.random.default_rng(0)
    for model, of in steps.items():
        for init, needed in of.items():
            drawn = rng.normal(size=(SEEDS, 1))
            slower = np.exp(noise * (np.arange(SEEDS)[:, None] + drawn - drawn.mean()))
            rise = np.minimum(step / (needed * slower), 1)
            auc.loc[model, init] = 0.5 + (final - 0.5) * rise
    return xr.Dataset({"auc": auc}, attrs=PROVENANCE)


def two(small, large, final=0.9, noise=0.01):
    """Curves of a small and a large network: (steps of random init, steps of Mean Var)."""
    inits = ("random", "mean_var")
    pairs = {"cbr_tiny": small, LARGE: large}
    return curves({m: dict(zip(inits, s, strict=True)) for m, s in pairs.items()}, final, noise)


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
    cut, slim = "transfusion:block2", "resnet50_slim"
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
    """{variant: gain of each of two models}."""
    return stacked({v: performance(g, noise, seed=i) for i, (v, g) in enumerate(gains.items())},
                   "variant")  # fmt: skip


# --- compared networks -----------------------------------------------------------------------


def networks(seeds=SEEDS):
    return [(init, str(s)) for init in ("random", "transfer") for s in range(seeds)]


def couples(nets):
    return [(a, b) for n, a in enumerate(nets) for b in nets[n + 1 :]]


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
    return dataset.assign_coords(other=blocks)


def similarity(gap, noise=0.002, seeds=SEEDS, own=0.0):
    """Comparisons of random and transferred networks in two models; `own` is what a network is
    more like all others, and noise that of a pair."""
    rng = np.random.default_rng(0)
    pairs = couples([(*net, "final") for net in networks(seeds)])
    values = 0.5 + noise * rng.normal(size=(2, 2, len(pairs)))
    mixed = [a[0] != b[0] for a, b in pairs]
    values[..., mixed] -= np.reshape(gap, (2, 1, 1))
    each = own * rng.normal(size=(2, 2 * seeds))
    places = {net: i for i, net in enumerate(networks(seeds))}
    for end in (0, 1):
        values += each[:, [places[pair[end][:2]] for pair in pairs]][:, None]
    return compared(values, pairs, null=0.1)


def changed(kept_random, kept_transfer, noise=0.0, seeds=SEEDS):
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
    pairs = [
        ((*a, state), (*b, state))
        for state in ("initial", "final")
        for a, b in couples(networks(seeds))
    ]
    dataset = compared(np.full((2, 2, len(pairs)), 0.5), pairs)
    shares = rng.random((2, 2, len(pairs), neurons))
    half = len(pairs) // 2
    part = np.array(foretold, float)[..., None, None]
    shares[:, :, half:] = part * shares[:, :, :half] + (1.02 - part) * shares[:, :, half:]
    return dataset.assign(explained=(("model", "block", "pair", "neuron"), shares))


def first_layers(moved, gabors, noise=0.01, seeds=SEEDS):
    """(model, init) how far filters moved, and (model, init, state) which share are Gabors; a
    `noise` above 1/20 of a seed's filters pass as Gabors or do not."""
    rng = np.random.default_rng(0)
    models = MODELS[-len(moved) :]
    shape = (len(models), 2, seeds, 20)
    far = np.reshape(moved, (-1, 2, 1, 1)) * (1 + noise * rng.normal(size=(*shape[:3], 1)))
    fits = np.zeros((*shape[:3], 2, 20))
    share = np.array(gabors, float)[:, :, None] + noise * rng.normal(size=fits.shape[:-1])
    for place, part in np.ndenumerate(share):
        fits[(*place, slice(0, max(0, round(20 * part))))] = 0.9
    coords = {"model": models, "init": ["random", "transfer"], "seed": range(seeds)}
    coords |= {"state": ["initial", "final"], "filter": range(20)}
    parts = {
        "moved": (("model", "init", "seed", "filter"), far + np.zeros(shape)),
        "gabor": (("model", "init", "seed", "state", "filter"), fits),
        "gabor_level": (("model", "init", "seed"), np.full(shape[:3], 0.4)),
        "grey": (("model", "init", "state", "filter", "y", "x"),
                 rng.normal(size=(*shape[:2], 2, 20, 5, 5))),
    }  # fmt: skip
    return xr.Dataset(parts, coords)


# --- what becomes of them --------------------------------------------------------------------


def failed(results, **labels):
    """With nan for the runs of these labels."""
    there = xr.ones_like(results.seed, dtype=bool)
    for name, label in labels.items():
        there = there & (results[name] == label) if name != "seed" else there
    hit = there & (results.seed == labels["seed"]) if "seed" in labels else there
    own = [n for n in results.data_vars if "seed" in results[n].dims]
    return results.assign({n: results[n].where(~hit) for n in own})


def exchanged(results, dim, labels, rng, over="seed"):
    """With these labels dealt anew, apart for each model and seed (or pair): what was true of one
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


# --- what is found ---------------------------------------------------------------------------


def ends(row):
    return row["low"], row["high"]


def at_most_one_in_twenty(decided):
    """A binomial bound: so many decided studies are no more than 5 % and chance."""
    return stats.binomtest(int(np.sum(decided)), len(decided), 0.05, "greater").pvalue > 0.01

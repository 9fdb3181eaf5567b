"""A run's result: read if it is there, else trained, tested, and kept with its weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pandas as pd
import torch
import xarray as xr
from safetensors.torch import load_file, save
from torch import nn

from transfusion import config, machine, provenance, store, terms
from transfusion.images import tasks
from transfusion.networks import inits, models, parts, weights
from transfusion.statistics import metrics
from transfusion.training import devices, loop

# Of more classes, as a pretraining has, AUC and accuracies are kept and no scores: those of 200
# classes on 4,000 images would be larger than all that a study keeps.
SCORED = 20
FILTERS = 1 << 16  # weights of a first layer that is kept; the 16x16 patches of a ViT are not


def fit(
    run: config.Run,
    *,
    precision: config.Native | None = None,
    images: xr.Dataset | None = None,
    checkpoint_seconds: float = 60.0,
    tell: loop.Tell | None = None,
) -> xr.Dataset:
    """The learning curve and scores of a run: read from the cache, resumed, or trained.

    Returns a Dataset of auc, auc_se and loss (step): on validation images, its standard error
    clustered by patient, and on training images; and, after the last step,
    `valid_logit` and `test_logit` (image, output) as `metrics.logits` has them, with target and
    patient, and what `metrics.scored` reads off them (test_auc, test_score, ...). `first_before`
    and `first_after` are the filters of the first layer.
    A run whose loss is not finite ends as `failed`, with step and learning rate in the attrs.
    `precision` decides where the run leaves it open (`any`): by default what this machine is fast
    at, or what is there. `images` are those of the run, where the caller has them already; `tell`
    hears of each evaluation and says whether to go on: else `loop.Stopped` is raised.
    Raises ValueError for an unknown model, data set or weights that do not fit.
    """
    with store.lease(run.key):
        found = store.read(run.key) if is_complete(run, precision) else None
        if found is not None:
            return metrics.scored(found)
        if run.optim.devices > 1:
            check(run)  # clearer here than from a process among several
            source_state(run.init)  # trained before, not by each of them
            devices.together(run.optim.devices, take_part, run, checkpoint_seconds)
            return metrics.scored(store.read_zarr(store.run_folder(run.key) / "result.zarr"))
        # One thread: two on shared cores are slower than one, and the sums depend on their number.
        torch.set_num_threads(1)
        with torch.random.fork_rng(), _logged(run):
            chosen = precision or _own_precision(run)
            return metrics.scored(_fit(run, chosen, images, checkpoint_seconds, tell))


def is_complete(run: config.Run, precision: config.Native | None = None) -> bool:
    """Whether a run's result and weights are whole here, and in this precision if one is asked."""
    return store.complete(run.key) and precision in (None, store.facts(run.key).get("precision"))


def _own_precision(run: config.Run) -> config.Native:
    """What a run says, or, where it leaves it open, what this machine is fast at."""
    found = run.optim.precision
    if found != "any":
        return found
    return "bfloat16" if loop.device().type == "cuda" else machine.precision()


def take_part(run: config.Run, checkpoint_seconds: float) -> None:
    """Be one of the processes of a run on several devices."""
    torch.set_num_threads(1)
    with _writing(run) if devices.first() else nullcontext():
        _fit(run, _own_precision(run), None, checkpoint_seconds, None)


@contextmanager
def _writing(run: config.Run) -> Iterator[None]:
    """Be the one of several processes that writes. The run's lease falls with the process that has
    started them, which may be a moment before they end, too."""
    with store.lease(run.key, "writer"), _logged(run):
        yield


def network(run: config.Run, *, trained: bool) -> nn.Module:
    """The network of a run before its first step, or as kept after training.

    Raises FileNotFoundError where a trained one is asked for and its weights are not there.
    """
    seed = loop.seeds(run)
    outputs, size = _outputs(run.data), run.data.size
    net = models.build(run.model, outputs=outputs, seed=seed["build"], size=size)
    if not trained:
        inits.apply(run.init.name, net, source=source_state(run.init), seed=seed["init"])
        return net
    path = store.weights_path(run.key)
    if path is None:
        raise FileNotFoundError(f"no trained weights of run {run.key}; train it first")
    net.load_state_dict(load_file(path))
    return net


def source_state(init: config.Init) -> parts.State | None:
    """The pretrained weights an init starts from: named ones, or those of a run trained here, in
    half precision: so they travel, and a run starts from the same bits wherever it is computed."""
    if init.source is None or isinstance(init.source, str):
        return weights.named_weights(init.source) if init.source else None
    failed = fit(init.source).attrs["status"] != "done"
    path = store.weights_path(init.source.key)
    if failed or path is None:
        raise ValueError(f"source run {init.source.key} has no weights (its training failed)")
    return halved(load_file(path))


def halved(state: parts.State) -> parts.State:
    """Weights rounded to half precision, still float32; batch norm and biases as they are, for
    they weigh nothing and a variance may be beyond half precision's range."""
    return {name: t.half().float() if t.dim() > 1 else t for name, t in state.items()}


def check(run: config.Run) -> None:
    """Raise ValueError for whatever would stop this run: model, data, init, weights."""
    tasks.check(run.data)
    models.check(run.model, run.data.size)
    net = _shapes(run.model, run.data)
    if run.optim.devices > 1:
        devices.check_shared(net)
    if run.init.name != "random" and run.init.source is None:
        raise ValueError(f"init {run.init.name!r} needs a source")
    wanted = inits.needed(run.init.name, net)  # raises for an unknown block
    if isinstance(run.init.source, str):
        weights.fit_source(net, weights.named_weights(run.init.source), wanted)
    elif run.init.source is not None:
        expected = terms.about(run.model).starts_from or run.model
        if run.init.source.model != expected:
            raise ValueError(f"source is a {run.init.source.model}, expected {expected}")
        check(run.init.source)
        weights.fit_source(net, _shapes(expected, run.init.source.data).state_dict(), wanted)


def _shapes(model: str, spec: config.Data) -> nn.Module:
    """A network for these images, its tensors without values."""
    with torch.device("meta"):
        return models.build(model, outputs=_outputs(spec), size=spec.size)


def _outputs(spec: config.Data) -> int:
    return int(tasks.attrs(spec)["outputs"])


def _fit(
    run: config.Run,
    precision: config.Native,
    images: xr.Dataset | None,
    checkpoint_seconds: float,
    tell: loop.Tell | None,
) -> xr.Dataset:
    images = tasks.load(run.data) if images is None else images
    net, adam = loop.for_training(network(run, trained=False), run.optim)
    before = _first_filters(net)
    progress = loop.resume(run, precision, net, adam)
    facts = {"device": loop.device_name(), "precision": precision, **task(images)}
    facts |= _source_reached(run.init)
    if progress.begun != provenance.facts()["commit"]:
        facts["begun"] = progress.begun
    try:
        stepped = loop.train(run, precision, images, net, adam, progress, checkpoint_seconds, tell)
    except loop.NotFinite as error:
        loop.log.warning("failed: %s", error)
        return _keep(run, progress, xr.Dataset(), "failed", **facts, reason=str(error))
    if devices.first():
        store.save_weights(run.key, save(loop.state_copy(net)))
    kept = _tested(net, images, precision).assign(_filters(before, _first_filters(net)))
    return _keep(run, progress, kept, "done", **facts, **stepped)


def _tested(net: nn.Module, images: xr.Dataset, precision: str) -> xr.Dataset:
    """What the network says of validation and test images; the one time that the test split is
    read."""

    def said(split: str) -> np.ndarray:
        found = loop.predict(net, tasks.split_of(images, split), precision)
        return metrics.logits(found.numpy(), images.attrs["task"])

    found = split_logits(images, said)
    if images.attrs["outputs"] <= SCORED:
        return found
    scored = metrics.scored(found)
    return scored[[name for name in scored if not scored[name].dims]]


def split_logits(images: xr.Dataset, said: Callable[[str], np.ndarray]) -> xr.Dataset:
    """What is `said` of a split, as `metrics.logits`, with its targets and patients. These are
    numbered in the order in which they appear: no name of theirs is kept."""
    found: dict = {}
    for split in ("valid", "test"):
        part = tasks.split_of(images, split)
        dims = (f"{split}_image", "finding")[: part["target"].ndim]
        found[f"{split}_logit"] = ((f"{split}_image", "logit"), said(split))
        found[f"{split}_target"] = (dims, part["target"].values)
        found[f"{split}_patient"] = (dims[0], pd.factorize(part["patient"].values)[0].astype("i4"))
    return xr.Dataset(found, attrs=task(images))


def task(images: xr.Dataset) -> dict:
    """What a task's scores mean, and how many images taught."""
    told = {n: images.attrs[n] for n in ("task", "positive_from", "names", "lossy")
            if n in images.attrs}  # fmt: skip
    return told | {"train_images": int((images["split"] == "train").sum())}


def _source_reached(init: config.Init) -> dict:
    """What a source trained here reached on its own task."""
    kept = store.read(init.source.key) if isinstance(init.source, config.Run) else None
    if kept is None:
        return {}
    kept = metrics.scored(kept)
    told = {n: float(kept[f"test_{n}"]) for n in ("auc", "top1", "top5") if f"test_{n}" in kept}
    return {"source_reached": {n: value for n, value in told.items() if math.isfinite(value)}}


def _first_filters(net: nn.Module) -> np.ndarray | None:
    """Weights (filter, channel, y, x) of the first convolution; None where none is kept."""
    convolutions = (m.weight for m in net.modules() if isinstance(m, nn.Conv2d))
    weight = next(convolutions, torch.empty(0))
    if not 0 < weight.numel() <= FILTERS:
        return None
    return weight.detach().cpu().half().contiguous().numpy()


def _filters(before: np.ndarray | None, after: np.ndarray | None) -> dict:
    dims = ("filter", "channel", "y", "x")
    states = {"first_before": before, "first_after": after}
    return {name: (dims, values) for name, values in states.items() if values is not None}


def _keep(
    run: config.Run, progress: loop.Progress, tested: xr.Dataset, status: str, **attrs
) -> xr.Dataset:
    names = ("step", "auc", "auc_se", "loss")
    columns = {n: [point[n] for point in progress.curve] for n in names}
    step = columns.pop("step")
    curve = xr.Dataset(
        {n: ("step", np.array(v, np.float32)) for n, v in columns.items()}, {"step": step}
    )
    result = curve.merge(tested).assign_attrs(attrs)
    if devices.first():
        result = store.finish(run, result, status=status, seconds=progress.seconds)
        store.discard(loop.checkpoint(run))
    devices.wait()
    return result


@contextmanager
def _logged(run: config.Run) -> Iterator[None]:
    """Send this module's log lines to the run's own log file for the length of a block."""
    handler = logging.FileHandler(store.run_folder(run.key) / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    loop.log.setLevel(logging.INFO)
    loop.log.addHandler(handler)
    try:
        yield
    finally:
        loop.log.removeHandler(handler)
        handler.close()

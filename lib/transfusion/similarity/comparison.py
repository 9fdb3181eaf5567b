"""All networks of a comparison against each other, before and after training."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import nn

from transfusion import config, store
from transfusion.images import tasks
from transfusion.networks import freezing, models
from transfusion.similarity import activations, second_moments
from transfusion.training import fit, loop

# Training images: were all positions of an image the same, a variance would still be known to 6 %,
# the square root of 2 / 512.
CALIBRATION = 512


def compare(spec: config.Comparison) -> xr.Dataset:
    """Similarity of all networks of a comparison, before and after training, block by block.

    Pairs are two networks in the same state, and a network with itself before training;
    coordinates net_a and net_b read `key:initial` or `key:final`. Returns value, null, corrected,
    corrected_null, se (measure, block, pair), explained (block, pair, neuron: the share of the
    second network's neurons that the first predicts), map and map_null (measure, block, other:
    blocks of the first trained network against those of the second), and datapoints, neurons
    (block). Raises ValueError if the runs are not of one model and one data set.
    """
    with store.lease(spec.key):
        found = store.read(spec.key)
        if found is not None:
            return found
        torch.set_num_threads(1)
        start = time.perf_counter()
        result = _compare(spec)
        kept = store.finish(spec, result, seconds=time.perf_counter() - start)
        store.discard(_checkpoint(spec))
        return kept


def _checkpoint(spec: config.Comparison) -> Path:
    return store.run_folder(spec.key) / "moments.zarr"


def _compare(spec: config.Comparison) -> xr.Dataset:
    if len({(run.model, run.data) for run in spec.runs}) != 1:
        raise ValueError("a comparison needs runs of one model on one data set")
    images = tasks.load(spec.data)
    test = tasks.split_of(images, "test").isel(image=slice(spec.images))
    nets, names = _networks(spec, evenly(tasks.split_of(images, "train"), CALIBRATION))
    trained = [i for i, name in enumerate(names) if name.endswith(":final")]
    how: dict = {"positions": spec.positions, "neurons": spec.neurons, "seed": spec.seed}
    found = activations.moments(nets, test, across=trained[:2], checkpoint=_checkpoint(spec), **how)
    result = _pairs(found, list(spec.measures), names)
    if len(trained) > 1:
        result = result.merge(_map(found, list(spec.measures)))
    facts = {"images": len(test.image), "device": loop.device_name()}
    facts["precision"] = _precision(spec)
    facts["train_images"] = int((images["split"] == "train").sum())
    return result.assign_attrs(model=spec.runs[0].model, **facts)


def _precision(spec: config.Comparison) -> str:
    """That in which all its networks were trained; raises ValueError where they differ."""
    found = {store.facts(run.key)["precision"] for run in spec.runs}
    if len(found) > 1:
        raise ValueError(f"networks of {spec.key} were trained in {' and '.join(sorted(found))}")
    return found.pop()


def _networks(
    spec: config.Comparison, images: xr.Dataset
) -> tuple[list[activations.Extractor], list[str]]:
    """Each run's network before training, as it normalises `images`, and after."""
    nets, names = [], []
    for run in spec.runs:
        initial = calibrate(fit.network(run, trained=False), images)
        final = fit.network(run, trained=True)
        nets += [activations.extractor(initial), activations.extractor(final)]
        names += [f"{run.key}:initial", f"{run.key}:final"]
    return nets, names


def evenly(images: xr.Dataset, count: int) -> xr.Dataset:
    """At most `count` images, evenly from all: a table may be sorted by what it shows."""
    last = len(images.image) - 1
    return images.isel(image=np.linspace(0, last, min(count, last + 1)).round().astype(int))


def calibrate(net: nn.Module, images: xr.Dataset) -> nn.Module:
    """Give batch norm the statistics of these images, by which training would normalise them.

    A network before its first step has statistics of no data (mean 0, variance 1), or of the
    images that it was pretrained on; in evaluation mode it would not be the network that learns.
    What is frozen keeps its own, as it does in training.
    """
    kind = nn.modules.batchnorm._BatchNorm
    norms = [m for m in net.modules() if isinstance(m, kind) and not freezing.is_frozen(m)]
    net = net.eval().to(loop.device()).to(memory_format=torch.channels_last)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        for rows in activations.even(len(images.image), activations.BATCH):
            net(models.normalise(loop.batch(images, rows), net))
    return net.eval()


def _pairs(
    found: second_moments.SecondMoments, measures: list[str], names: list[str]
) -> xr.Dataset:
    blocks = [layer for layer in found.neurons if layer != activations.ACROSS]
    parts = [tuple(name.split(":")) for name in names]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(len(names)), 2)
        if parts[a][1] == parts[b][1] or parts[a][0] == parts[b][0]
    ]
    tables = [found.table(block, measures, pairs).drop_vars(["a", "b"]) for block in blocks]
    explained = [[found.explained(block, a, b) for a, b in pairs] for block in blocks]
    result = xr.concat(tables, "block").assign_coords(block=blocks)
    result["explained"] = _ragged(explained).astype(np.float32)
    result["datapoints"] = ("block", [found.datapoints(block) for block in blocks])
    result["neurons"] = ("block", [found.neurons[block][0] for block in blocks])
    ends = {"net_a": [names[a] for a, _ in pairs], "net_b": [names[b] for _, b in pairs]}
    return result.assign_coords({name: ("pair", values) for name, values in ends.items()})


def _ragged(explained: list[list[np.ndarray]]) -> xr.DataArray:
    """(block, pair, neuron), nan beyond the neurons that a block has."""
    parts = [xr.DataArray(np.stack(rows), dims=("pair", "neuron")) for rows in explained]
    widest = max(part.sizes["neuron"] for part in parts)
    return xr.concat([p.pad(neuron=(0, widest - p.sizes["neuron"])) for p in parts], "block")


def _map(found: second_moments.SecondMoments, measures: list[str]) -> xr.Dataset:
    blocks = [layer for layer in found.neurons if layer != activations.ACROSS]
    count = len(blocks)
    pairs = [(i, count + j) for i in range(count) for j in range(count)]
    table = found.table(activations.ACROSS, measures, pairs)
    shape, dims = (len(measures), count, count), ("measure", "block", "other")
    parts = {"map": table["value"], "map_null": table["null"]}
    square = {name: (dims, part.values.reshape(shape)) for name, part in parts.items()}
    return xr.Dataset(square, {"measure": measures, "block": blocks, "other": blocks})

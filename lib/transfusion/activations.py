"""Activations of named blocks, captured batch by batch and reduced at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from transfusion import config, data, models, similarity, store, train

Extractor = nn.Module


def extractor(net: nn.Module) -> Extractor:
    """The network in evaluation mode, returning {block: activations (N, channels, h, w)}."""
    nodes = {modules[-1]: block for block, modules in models.blocks(net).items()}
    net = net.eval().to(train.device()).to(memory_format=torch.channels_last)
    leaves = {"leaf_modules": [models.Convolution]}
    return create_feature_extractor(net, nodes, tracer_kwargs=leaves)


def capture(
    net: nn.Module,
    images: xr.Dataset,
    path: str | Path,
    *,
    blocks: Sequence[str] | None = None,
    dtype: str = "float16",
) -> xr.DataTree:
    """Keep the activations of `blocks` (default: all) for every image, in order, as zarr at `path`.

    Returns a DataTree, read as it is used: one node a block with `activation` (image, channel, y,
    x). Memory stays that of three batches. Raises ValueError for an unknown block or dtype, and
    where float16 overflows (above 65504; take "float32").
    """
    names = list(models.blocks(net))
    wanted = [config.one_of(block, names, "block") for block in blocks or names]
    config.one_of(dtype, ("float16", "float32"), "dtype")
    facts = {"images": len(images.image), "device": train.device_name(), **store.provenance()}
    outputs = _outputs(extractor(net), images, wanted, dtype)
    store.write_activations(Path(path), outputs, len(images.image), facts)
    return store.read_activations(Path(path))


def _outputs(
    network: Extractor, images: xr.Dataset, blocks: list[str], dtype: str
) -> Iterator[dict[str, np.ndarray]]:
    for batch in train.batches(images, 128):
        with torch.no_grad():
            outputs = network(models.normalise(batch))
        yield {block: _stored(block, outputs[block], dtype) for block in blocks}


def _stored(block: str, maps: Tensor, dtype: str) -> np.ndarray:
    if dtype == "float16" and maps.abs().max() > torch.finfo(torch.float16).max:
        raise ValueError(f"{block} overflows float16 (above 65504); take dtype='float32'")
    return maps.to(getattr(torch, dtype), memory_format=torch.contiguous_format).cpu().numpy()


def compare(spec: config.Comparison) -> xr.Dataset:
    """Mean CCA between all networks of a comparison, each before and after training, by block.

    Returns a Dataset of cca and null (block, pair), where coordinates net_a and net_b of a pair
    read `key:initial` or `key:final`, and of datapoints and neurons (block). All networks share
    the random positions; each block gives the same number of random channels.
    Raises ValueError if the runs are not of one model and one test set.
    """
    with store.lease(spec.key):
        found = store.read(spec.key)
        if found is not None:
            return found
        torch.set_num_threads(1)
        start = time.perf_counter()
        result = _compare(spec)
        return store.finish(spec, result, seconds=time.perf_counter() - start)


def _compare(spec: config.Comparison) -> xr.Dataset:
    if len({(run.model, run.data) for run in spec.runs}) != 1:
        raise ValueError("a comparison needs runs of one model on one data set")
    nets, names = _networks(spec)
    test = data.split_of(data.load(spec.runs[0].data), "test").isel(image=slice(spec.images))
    found = moments(spec, nets, test)
    pairs = list(itertools.combinations(range(len(names)), 2))
    cca = np.array([[m.cca(a, b).mean for a, b in pairs] for m in found.values()])
    null = np.array([[m.null(a, b).mean for a, b in pairs] for m in found.values()])
    coords = {
        "block": list(found),
        "net_a": ("pair", [names[a] for a, _ in pairs]),
        "net_b": ("pair", [names[b] for _, b in pairs]),
    }
    variables = {
        "cca": (["block", "pair"], cca),
        "null": (["block", "pair"], null),
        "datapoints": (["block"], np.array([m.n for m in found.values()])),
        "neurons": (["block"], np.array([m.widths[0] for m in found.values()])),
    }
    attrs = {"model": spec.runs[0].model, "device": train.device_name(), "images": len(test.image)}
    return xr.Dataset(variables, coords, attrs)


def _networks(spec: config.Comparison) -> tuple[list[Extractor], list[str]]:
    nets, names = [], []
    for run in spec.runs:
        for state in ("initial", "final"):
            nets.append(extractor(train.network(run, trained=state == "final")))
            names.append(f"{run.key}:{state}")
    return nets, names


def moments(
    spec: config.Comparison, nets: list[Extractor], images: xr.Dataset
) -> dict[str, similarity.SecondMoments]:
    """Joint second moments of all networks by block, at random positions and channels (`spec`)."""
    rng = np.random.default_rng(spec.seed)
    channels: dict[str, list[np.ndarray]] = {}
    moments: dict[str, similarity.SecondMoments] = {}
    shuffled = images.isel(image=rng.permutation(len(images.image)))  # neighbours must not be alike
    with torch.no_grad():
        for batch in train.batches(shuffled, 128):
            if len(batch) < 2:
                continue
            outputs = [net(models.normalise(batch)) for net in nets]
            for block in outputs[0]:
                maps = [output[block].flatten(2) for output in outputs]  # (N, channels, h w)
                if block not in moments:
                    width = maps[0].shape[1]
                    keep = min(spec.neurons, width)
                    channels[block] = [rng.permutation(width)[:keep] for _ in nets]
                    moments[block] = similarity.SecondMoments((keep,) * len(nets))
                where = positions(rng, maps[0].shape, spec.positions)
                moments[block].update(
                    [sample(m, where, c) for m, c in zip(maps, channels[block], strict=True)]
                )
    return moments


def positions(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Random positions (N, count) of each image's map, without repetition; all if there are few."""
    images, _, places = shape
    order = rng.random((images, places)).argsort(1)
    return order[:, : min(count, places)]


def sample(maps: Tensor, where: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """(N, channels, places) -> (N, positions, chosen channels)."""
    chosen = maps[:, torch.from_numpy(channels).to(maps.device)]
    index = torch.from_numpy(where).to(maps.device)[:, None].expand(-1, chosen.shape[1], -1)
    return chosen.gather(2, index).transpose(1, 2).float().cpu().numpy()

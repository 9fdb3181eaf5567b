"""Activations of named blocks: kept on disk, or reduced to second moments as they come."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from transfusion import config, provenance, store
from transfusion.networks import models, parts
from transfusion.similarity import second_moments, stored
from transfusion.training import loop

# Images at once: at 224 px the first block of ResNet-50 then holds 0.4 GB, and more are no faster.
BATCH = 128
CHECKPOINT_SECONDS = 60.0  # what a kill loses at most
ACROSS = "all blocks"  # the layer in which blocks are compared with each other


class Extractor(nn.Module):
    """A network in evaluation mode that returns {block: activations (N, channels, h, w)}."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.eval().to(loop.device()).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return parts.outputs(self.net, images)


def extractor(net: nn.Module) -> Extractor:
    """`Extractor` by the name that the guide uses."""
    return Extractor(net)


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
    x). Memory stays that of three batches. A capture that was killed goes on where it was, if
    network, images and options are the same. Raises ValueError for an unknown block or dtype, no
    images, and where float16 overflows (above 65504; take "float32").
    """
    names = list(models.blocks(net))
    wanted = [config.one_of(block, names, "block") for block in blocks or names]
    config.one_of(dtype, ("float16", "float32"), "dtype")
    if len(images.image) == 0:
        raise ValueError("expected at least one image, got none")
    facts = {"images": len(images.image), "device": loop.device_name(), **provenance.facts()}
    identity: dict[str, Any] = {"blocks": wanted, "dtype": dtype, "batch": BATCH}
    identity |= {"code": provenance.identity(), "colours": str(parts.plan(net).colours)}
    identity |= {"net": _digest(net), "pixels": store.checksum(images[["pixels"]])}
    outputs = partial(_outputs, extractor(net), images, wanted, dtype)
    stored.write_activations(Path(path), outputs, len(images.image), facts, identity)
    return stored.read_activations(Path(path))


def _digest(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _outputs(
    network: Extractor, images: xr.Dataset, blocks: list[str], dtype: str, start: int
) -> Iterator[dict[str, np.ndarray]]:
    for batch in loop.batches(images.isel(image=slice(start, None)), BATCH):
        with torch.no_grad():
            outputs = network(models.normalise(batch, network.net))
        yield {block: _stored(block, outputs[block], dtype) for block in blocks}


def _stored(block: str, maps: Tensor, dtype: str) -> np.ndarray:
    if dtype == "float16" and maps.abs().max() > torch.finfo(torch.float16).max:
        raise ValueError(f"{block} overflows float16 (above 65504); take dtype='float32'")
    return maps.to(getattr(torch, dtype), memory_format=torch.contiguous_format).cpu().numpy()


def moments(
    nets: Sequence[Extractor],
    images: xr.Dataset,
    *,
    positions: int = 16,
    neurons: float | None = None,
    seed: int = 0,
    across: Sequence[int] = (),
    checkpoint: Path | None = None,
) -> second_moments.SecondMoments:
    """Second moments of each block over all networks (of `extractor`), nothing being stored.

    Each image gives `positions` random places of a map, the same in all networks, and each block
    `neurons` random channels, or below 1 that share of them (default: all), the same in networks of
    one width. The blocks of the networks `across` are also put beside each other, as layer ACROSS:
    first all blocks of the first, and so on. Images come in random order, for the null pairs
    neighbours. A run killed after a `checkpoint` goes on from there, to the same bits on a CPU.
    Raises ValueError for fewer than 2 images, and for networks with different blocks.
    """
    count = len(images.image)
    order = np.random.default_rng(seed).permutation(count)

    def read(rows: slice) -> Iterator[dict[str, Tensor]]:
        batch = loop.batch(images, order[rows])
        with torch.no_grad():
            for net in nets:
                yield net(models.normalise(batch, net.net))

    return _moments(read, count, positions, neurons, seed, across, checkpoint)


def stored_moments(
    trees: Sequence[xr.DataTree],
    *,
    positions: int = 16,
    neurons: float | None = None,
    seed: int = 0,
    across: Sequence[int] = (),
) -> second_moments.SecondMoments:
    """The same of captured activations, in the order in which they lie: for a fair null, that of
    the images should be random."""
    counts = {len(node.dataset["activation"]) for tree in trees for node in tree.children.values()}
    if len(counts) != 1:
        raise ValueError(f"expected activations of the same images, got {sorted(counts)} of them")

    def read(rows: slice) -> Iterator[dict[str, Tensor]]:
        for tree in trees:
            parts = {n: node.dataset["activation"][rows] for n, node in tree.children.items()}
            yield {name: torch.from_numpy(part.values) for name, part in parts.items()}

    return _moments(read, counts.pop(), positions, neurons, seed, across, None)


Read = Callable[[slice], Iterator[dict[str, Tensor]]]  # rows -> maps by block, network by network


def _moments(
    read: Read,
    images: int,
    positions: int,
    neurons: float | None,
    seed: int,
    across: Sequence[int],
    checkpoint: Path | None,
) -> second_moments.SecondMoments:
    if images < 2:
        raise ValueError(f"similarity needs at least 2 images, got {images}")
    shapes = _shapes(read)
    batches = partial(_batches, read, images, shapes, positions, neurons, seed, across)
    first = next(batches(0, limit=2))
    widths = {layer: tuple(array.shape[2] for array in arrays) for layer, arrays in first.items()}
    begun = _begun(checkpoint)
    found = begun or second_moments.SecondMoments(widths)
    done = begun.images(next(iter(widths))) if begun else 0
    saved = time.perf_counter()
    for batch in batches(done):
        found.update(batch)
        if checkpoint is not None and time.perf_counter() - saved > CHECKPOINT_SECONDS:
            found.save(checkpoint)
            saved = time.perf_counter()
    found.refine(batches(0))
    return found


def _begun(checkpoint: Path | None) -> second_moments.SecondMoments | None:
    """What a killed process has left, if it is whole and of the code that is at work."""
    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        return second_moments.SecondMoments.load(checkpoint, own=True)
    except (OSError, store.Damaged) as error:
        loop.log.warning("%s: beginning again", error)
        store.discard(checkpoint)
        return None


Shape = tuple[int, int, int]  # channels, height, width


def _shapes(read: Read) -> list[dict[str, Shape]]:
    """Of each block, network by network."""
    shapes = []
    for part in read(slice(2)):
        maps = {name: _as_map(tensor) for name, tensor in part.items()}
        shapes.append({n: (m.shape[1], m.shape[2], m.shape[3]) for n, m in maps.items()})
    for i, one in enumerate(shapes):
        if one.keys() != shapes[0].keys():
            there, expected = ", ".join(one), ", ".join(shapes[0])
            raise ValueError(f"network {i} has the blocks {there}, network 0 has {expected}")
    return shapes


def _batches(
    read: Read,
    images: int,
    shapes: list[dict[str, Shape]],
    positions: int,
    neurons: float | None,
    seed: int,
    across: Sequence[int],
    start: int,
    limit: int = BATCH,
) -> Iterator[dict[str, list[Tensor | np.ndarray]]]:
    """From image `start` on; each batch has its own generator, so it is the same when resumed."""
    blocks = list(shapes[0])
    for rows in even(images, limit):
        if rows.start < start:
            continue
        count = rows.stop - rows.start
        rng = np.random.default_rng([seed, rows.start])
        where = {b: places(rng, count, positions, [s[b][1:] for s in shapes]) for b in blocks}
        spots = places(rng, count, positions, [shapes[i][b][1:] for i in across for b in blocks])
        found: dict[str, list] = {block: [] for block in blocks}
        beside: list = []
        for i, maps in enumerate(read(rows)):
            for block in blocks:
                chosen = _channels(seed, blocks.index(block), shapes[i][block][0], neurons)
                found[block].append(sample(maps[block], where[block][i], chosen))
                if i in across:
                    beside.append(sample(maps[block], spots[len(beside)], chosen))
        yield found | ({ACROSS: beside} if across else {})


def even(images: int, limit: int) -> list[slice]:
    """Batches of about equal size, so that all weigh alike and none has a single image."""
    parts = np.array_split(np.arange(images), math.ceil(images / limit))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


def _channels(seed: int, block: int, width: int, neurons: float | None) -> np.ndarray:
    order = np.random.default_rng([seed, block, width]).permutation(width)
    if neurons is None:
        return order
    return order[: int(neurons) if neurons >= 1 else max(1, round(neurons * width))]


def places(
    rng: np.random.Generator, images: int, count: int, sizes: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Random places (images, count) of each image in maps of the given heights and widths.

    Maps of one size: distinct positions, the same in each, all of them if there are few. Of
    several sizes: points of the image, each read in the cell of the map that it falls in.
    """
    if len(set(sizes)) > 1:
        points = rng.random((2, images, count))
        return [(points[0] * h).astype(int) * w + (points[1] * w).astype(int) for h, w in sizes]
    cells = math.prod(sizes[0]) if sizes else 1
    order = rng.random((images, cells)).argsort(1)
    return [order[:, : min(count, cells)]] * len(sizes)


def sample(maps: Tensor, where: np.ndarray, channels: np.ndarray) -> Tensor | np.ndarray:
    """(N, channels, h, w) -> (N, positions, chosen channels), left on a GPU."""
    flat = _as_map(maps).flatten(2)
    index = torch.from_numpy(where).to(maps.device)[:, None].expand(-1, flat.shape[1], -1)
    found = flat.gather(2, index)[:, torch.from_numpy(channels).to(maps.device)].transpose(1, 2)
    return found if found.is_cuda else found.numpy()  # whose product is twice as fast on a CPU


def _as_map(maps: Tensor) -> Tensor:
    """A vector is a map of one position."""
    return maps if maps.dim() == 4 else maps[:, :, None, None]

"""Prepared images on disk: written as they come, read whole where they fit, else as they are used.

Pixels lie in chunks along the images, many to a file, each with a crc32c that is checked whenever
it is read. What older versions prepared has other chunks, without crc32c, and is read whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import Crc32cCodec, ZstdCodec

from transfusion import files, machine, store

DIMS = ("image", "channel", "y", "x")
CHUNK = 1 << 20  # bytes: one image of the paper's size, what reading any one of them costs
FILE = 16  # chunks: 92 GB are then 5,500 files, and who writes them holds 16 MB at a time
READ = 2  # chunks at once, where all are read
# What pixels may take of the memory that is free: networks need theirs, and several trainings run
# beside each other. What takes more stays on disk.
SHARE = 1 / 4


def write(
    path: Path,
    images: Iterable[np.ndarray],
    shape: tuple[int, ...],
    rest: Callable[[], xr.Dataset],
) -> None:
    """Write images (channel, y, x) uint8 as they come, atomically, into a set of this shape (image,
    channel, y, x), or of fewer images; no more than a file of them is held.

    `rest` is asked for all other variables once the last has come: it knows then which came.
    """
    with store.atomic(path) as temporary:
        array, images, count = _array(temporary, shape), iter(images), 0
        one = np.dtype((np.uint8, shape[1:]))
        while len(held := np.fromiter(islice(images, array.shards[0]), one)):
            array[count : count + len(held)] = held
            count += len(held)
        array.resize((count, *shape[1:]))
        whole = rest().assign(pixels=_lazily(_OnDisk(temporary, array)))
        store.to_zarr(whole, temporary, there=["pixels"])


def _array(path: Path, shape: tuple[int, ...]) -> Any:
    chunk = min(shape[0], max(1, CHUNK // math.prod(shape[1:])))
    held = min(FILE, -(-shape[0] // chunk))
    return zarr.create_group(path).create_array(
        "pixels",
        shape=shape,
        dtype=np.uint8,
        chunks=(chunk, *shape[1:]),
        shards=(held * chunk, *shape[1:]),
        compressors=[ZstdCodec(), Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},  # all files in one folder
        dimension_names=DIMS,
        config={"write_empty_chunks": True},  # black images too: a file that lacks is lost
    )


def read(path: Path) -> xr.Dataset:
    """A prepared set, its pixels in memory or, where they would take too much of it, on disk.

    Either way a selection of images is a list of their numbers: pixels are copied, or read from
    disk and verified, where `.values` asks for them.
    Raises FileNotFoundError, or store.Damaged.
    """
    return files.steadily(path, _read)


def _read(path: Path) -> xr.Dataset:
    array = _opened(path)
    if array is None or array.shards is None:
        return _of_older_version(path)
    if array.nbytes > limit():
        return _given(path, _OnDisk(path, array), trusted=True)
    return _given(path, _in_memory(_OnDisk(path, array)))


def verify(path: Path) -> None:
    """Read and hash again all of a prepared set, pixels a few MB at a time; raises Damaged."""
    array = _opened(path)
    if array is None or array.shards is None:
        store.read_zarr(path)
    else:
        _given(path, _OnDisk(path, array))


def limit() -> int:
    """Bytes of pixels that are read into memory."""
    return int(SHARE * machine.memory())


def _opened(path: Path) -> Any:
    """The array of pixels, nothing of it read; None where there is none, as `store` will say."""
    try:
        return zarr.open_array(path / "pixels", mode="r")
    except Exception:
        return None


def _given(path: Path, pixels: Any, *, trusted: bool = False) -> xr.Dataset:
    return store.read_zarr(path, {"pixels": _lazily(pixels)}, trusted=trusted)


def _lazily(pixels: Any) -> xr.Variable:
    return xr.Variable(DIMS, indexing.LazilyIndexedArray(pixels))


def _of_older_version(path: Path) -> xr.Dataset:
    whole = store.read_zarr(path)
    return whole.assign(pixels=_lazily(whole["pixels"].values))


def _in_memory(pixels: _OnDisk) -> np.ndarray:
    """All of them, some chunks at a time: zarr would hold ten files and what is in them."""
    found, step = np.empty(pixels.shape, pixels.dtype), READ * pixels.array.chunks[0]
    for start in range(0, len(found), step):
        found[start : start + step] = pixels.read((slice(start, start + step),))
    return found


class _OnDisk(BackendArray):
    """Pixels that are read as they are used; raises Damaged where a file of them lacks, since zarr
    reads it as zeros, and when what is read is not what was written."""

    def __init__(self, path: Path, array: Any) -> None:
        self.path, self.array = path, array
        self.shape, self.dtype = array.shape, array.dtype
        expected, found = -(-self.shape[0] // array.shards[0]), len(list(path.glob("pixels/c.*")))
        if found != expected:
            raise store.Damaged(f"{path} has {found} of {expected} files of pixels; delete it")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        kind = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, kind, self._selected)

    def _selected(self, key: tuple) -> np.ndarray:
        _require_memory(self.path, np.arange(self.shape[0])[key[0]].size, self.shape)
        return self.read(key)

    def read(self, key: tuple) -> np.ndarray:
        try:
            return self.array.oindex[key]
        except Exception as error:  # cut, flipped, gone: as many ways as codecs have
            raise store.Damaged(f"{self.path} cannot be read ({error}); delete it") from error


def _require_memory(path: Path, images: int, shape: tuple[int, ...]) -> None:
    size, free = images * math.prod(shape[1:]), machine.memory()
    if size > free:
        raise MemoryError(
            f"{images} images of {path} take {size / 1e9:.3g} GB, {free / 1e9:.3g} GB are free: "
            "read some at a time, as images.isel(image=rows)"
        )

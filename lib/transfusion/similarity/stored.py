"""Activations kept on disk as zarr: resumable, written by several threads, checked when read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr

from transfusion import files, store


def write_activations(
    path: Path,
    batches: Callable[[int], Iterable[dict[str, np.ndarray]]],
    images: int,
    attrs: dict[str, Any],
    identity: dict[str, Any],
) -> None:
    """Stream batches of {block: (n, channel, y, x) or (n, channel)} to zarr, atomically.

    One group a block, one plain chunk a batch: what zarr does by default (compression, a search
    for empty chunks) would take longer than the network, and checksums half the speed.
    `batches(start)` begins at an image; what a killed process has written of the same `identity`
    is kept beside `path` and continued. One process a path.
    Raises ValueError if the batches do not add up to `images`, or where `path` is something else.
    """
    _require_free(path)
    partial = path.parent / f".{path.name}.partial"
    done = _continued(partial, identity)
    try:
        done = _fill(partial, batches(done), done, images, attrs, identity)
        if done != images:
            raise ValueError(f"{path}: expected {images} images, got {done}")
    except Exception:  # not an interruption: that leaves what is there
        store.discard(partial)
        raise
    (partial / "progress.json").unlink()
    with store.atomic(path) as temporary:
        os.replace(partial, temporary)


def _require_free(path: Path) -> None:
    """Raise ValueError where something else than a capture lies: it would be replaced."""
    if not path.exists():
        return
    try:
        ours = path.is_dir() and "blocks" in zarr.open_group(path, mode="r").attrs
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise ValueError(f"{path} is there and is no capture of activations: give another place")


def _continued(partial: Path, identity: dict[str, Any]) -> int:
    """Images that a killed process has left, 0 after removing those of something else."""
    try:
        progress = json.loads((partial / "progress.json").read_text())
        if progress["identity"] == identity:
            return int(progress["images"])
    except (OSError, ValueError, TypeError, KeyError):  # absent, cut, or something else
        pass
    store.discard(partial)
    return 0


def _fill(
    partial: Path,
    batches: Iterable[dict[str, np.ndarray]],
    done: int,
    images: int,
    attrs: dict[str, Any],
    identity: dict[str, Any],
) -> int:
    """Write batches from image `done` on, keeping count of what is on disk; the images in all."""
    arrays: dict[str, zarr.Array] = {}

    def write(batch: dict[str, np.ndarray], start: int) -> int:
        for block, values in batch.items():
            arrays[block][start : start + len(values)] = values
        return start + len(values)

    def settle(written: Future[int]) -> None:
        store.write_json(
            partial / "progress.json", {"identity": identity, "images": written.result()}
        )

    with ThreadPoolExecutor(2) as writers:
        pending = list[Future[int]]()  # two batches are written while the next is computed
        for batch in batches:
            if not arrays:
                arrays |= _arrays(partial, batch, images, attrs)
            if len(pending) == 2:
                settle(pending.pop(0))
            pending.append(writers.submit(write, batch, done))
            done += len(next(iter(batch.values())))
        for written in pending:
            settle(written)
    return done


def _arrays(
    partial: Path, batch: dict[str, np.ndarray], images: int, attrs: dict[str, Any]
) -> dict[str, zarr.Array]:
    if partial.exists():
        group = zarr.open_group(partial, mode="r+", zarr_format=3)
        return {name: _written(cast(zarr.Array, group[f"{name}/activation"])) for name in batch}
    group = zarr.create_group(partial, attributes=attrs | {"blocks": list(batch)})
    return {name: _chunked(group, name, images, batch[name]) for name in batch}


def _written(array: zarr.Array) -> zarr.Array:
    """Such that empty chunks are written: a setting that an array forgets when it is closed."""
    return array.with_config({"write_empty_chunks": True})


def _chunked(group: zarr.Group, block: str, images: int, batch: np.ndarray) -> zarr.Array:
    """An array for all images, a batch a chunk."""
    return group.create_array(
        f"{block}/activation",
        shape=(images, *batch.shape[1:]),
        chunks=batch.shape,
        dtype=batch.dtype,
        fill_value=np.nan,
        compressors=None,
        dimension_names=("image", "channel", "y", "x")[: batch.ndim],
        config={"write_empty_chunks": True},  # of this object: an array opened again forgets it
    )


def read_activations(path: Path) -> xr.DataTree:
    """What `write_activations` kept, one node a block, loaded as it is used.

    Raises FileNotFoundError; a lost chunk reads as nan, a cut one raises ValueError.
    """
    tree = xr.open_datatree(files.present(path), engine="zarr", consolidated=False, chunks=None)
    children = {block: tree[block] for block in tree.attrs["blocks"]}
    return xr.DataTree(tree.to_dataset(), children=cast(dict[str, xr.DataTree], children))

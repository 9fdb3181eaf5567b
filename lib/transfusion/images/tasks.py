"""Images of a task as one Dataset: pixels, target, patient, split; decoded once, uint8.

Drawn sets are made from a seed. Photographs and films are read once from the form in which people
download them (`ingest`), and are from then on called `name@digest`, the digest being that of
their content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from transfusion import config, files, store
from transfusion.images import folds, stored
from transfusion.images.drawn import canvas, films, objects, retinas

FOLD = 1000  # seeds between two folds of a drawn set: more than anybody repeats
SYNTHETIC: dict[str, tuple[Callable, dict]] = {
    "fundus": (retinas.fundus, {"task": "grades", "outputs": 5, "positive_from": 2}),
    "cxr": (films.cxr, {"task": "findings", "outputs": 5, "names": list(films.FINDINGS)}),
    "objects": (objects.objects, {"task": "classes", "outputs": objects.CLASSES}),
}


def load(spec: config.Data) -> xr.Dataset:
    """All splits of a task.

    Returns a Dataset of pixels (image, channel, y, x) uint8; target int16, grades or classes
    (image,) or findings (image, finding) 0/1, -1 where uncertain; patient (image,); split (image,)
    one of SPLITS; attrs task, outputs. Pixels are indexed lazily, and stay on disk where they
    would take too much memory (`stored.read`); `pixels` reads some.
    Raises ValueError for an unknown or unprepared data set, patients in two splits, or too few for
    the folds.
    """
    check(spec)
    if spec.name in SYNTHETIC:
        return _drawn(spec)
    return folds.subset(folds.dealt(stored.read(prepared_path(spec.name, spec.size)), spec), spec)


def attrs(spec: config.Data) -> dict:
    """The attrs of a task (task, outputs, ...), without reading a pixel.

    Raises ValueError for an unknown or unprepared data set.
    """
    check(spec)
    if spec.name in SYNTHETIC:
        return dict(SYNTHETIC[spec.name][1])
    return store.read_attrs(prepared_path(spec.name, spec.size))


def check(spec: config.Data) -> None:
    """Raise ValueError if a task cannot be loaded, without loading it."""
    if spec.name in SYNTHETIC:
        low, high = canvas.SIZES
        if None in (spec.train, spec.valid, spec.test):
            raise ValueError(f"{spec.name} is synthetic: give its train, valid and test sizes")
        if not low <= spec.size <= high:
            raise ValueError(f"{spec.name} is drawn at {low} to {high} px, got size={spec.size}")
    elif not prepared_path(spec.name, spec.size).exists():
        raise ValueError(
            f"data set {spec.name!r} is not prepared at {spec.size} px; synthetic: "
            f"{', '.join(SYNTHETIC)}; prepared: {', '.join(prepared()) or 'none'}. "
            f"Prepare it: transfusion data {spec.name.split('@')[0]} --from DIR --size {spec.size}"
        )


def split_of(dataset: xr.Dataset, split: str) -> xr.Dataset:
    return dataset.isel(image=np.flatnonzero(dataset["split"].values == split))


def pixels(dataset: xr.Dataset, rows: slice | np.ndarray) -> np.ndarray:
    """Of some images by number, (N, 3, size, size) uint8; those on disk are read now.

    Raises store.Damaged where they are not what was written.
    """
    return dataset.variables["pixels"][rows].values


def batches(dataset: xr.Dataset, size: int = 64) -> Iterator[np.ndarray]:
    """The pixels of all images in order, `size` at a time: 64 of 587 px are 0.3 GB as floats."""
    for start in range(0, dataset.sizes["image"], size):
        yield pixels(dataset, slice(start, start + size))


def examples(name: str, *, size: int, columns: int, seed: int = 0) -> np.ndarray:
    """`columns` images of each grade, finding or class of a synthetic set.

    Returns uint8 (row, column, channel, y, x). Raises ValueError if chance gave too few of one.
    """
    make, attrs = SYNTHETIC[config.one_of(name, SYNTHETIC, "synthetic data set")]
    images = make(4 * columns * attrs["outputs"], size, seed)
    rows = []
    for row in range(attrs["outputs"]):
        member = images.target[:, row] == 1 if images.target.ndim == 2 else images.target == row
        rows.append(images.image[np.flatnonzero(member)[:columns]])
    if min(map(len, rows)) < columns:
        raise ValueError(f"fewer than {columns} of some row of {name} at seed {seed}; take another")
    return np.stack(rows)


def resolve(name: str) -> str:
    """`name@digest` of a data set given by bare name; raises ValueError if none or several fit."""
    if name in SYNTHETIC or "@" in name:
        return name
    fits = sorted({full for full in prepared() if full.split("@")[0] == name})
    if len(fits) == 1:
        return fits[0]
    known = ", ".join([*SYNTHETIC, *prepared()])
    problem = f"is ambiguous ({', '.join(fits)})" if fits else "is neither synthetic nor prepared"
    raise ValueError(f"data set {name!r} {problem}; known: {known}")


def prepared() -> list[str]:
    return sorted(path.name for path in (store.root() / "datasets").glob("*@*") if path.is_dir())


def prepared_path(name: str, size: int) -> Path:
    return store.root() / "datasets" / name / f"{size}.zarr"


def drawn_path(spec: config.Data) -> Path:
    """Where the images of a synthetic set lie once they are drawn."""
    return store.root() / "datasets" / "synthetic" / f"{spec.key}.zarr"


def _drawn(spec: config.Data) -> xr.Dataset:
    """A synthetic set, drawn and kept if it is missing or damaged."""
    path = drawn_path(spec)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(path.with_suffix(".lock")):
        try:
            return stored.read(path)
        except (FileNotFoundError, store.Damaged):
            _draw(spec, path)
            return stored.read(path)


def _draw(spec: config.Data, path: Path) -> None:
    """Splits come from seeds of their own, so the test images stay when the others change."""
    make, attrs = SYNTHETIC[spec.name]
    parts: list[xr.Dataset] = []

    def images() -> Iterator[np.ndarray]:
        for number, split in enumerate(folds.SPLITS):
            seed = 3 * (spec.seed + FOLD * spec.fold) + number
            image, target, patient = make(getattr(spec, split), spec.size, seed)
            names = np.char.add(patient.astype(str), f"-{split}")
            parts.append(labels(target, names, np.full(len(image), split), attrs))
            yield from image

    count = sum(getattr(spec, split) for split in folds.SPLITS)
    shape = (count, 3, spec.size, spec.size)
    stored.write(path, images(), shape, lambda: xr.concat(parts, "image"))


def labels(
    target: ArrayLike, patient: ArrayLike, split: ArrayLike, attrs: dict[str, Any]
) -> xr.Dataset:
    """All of a task but its pixels."""
    dims = ("image",) if np.ndim(target) == 1 else ("image", "finding")
    variables = {
        "target": (dims, np.asarray(target, dtype=np.int16)),
        "patient": ("image", np.asarray(patient).astype(str)),
        "split": ("image", np.asarray(split).astype(str)),
    }
    return xr.Dataset(variables, attrs=attrs)


def dataset(
    pixels: np.ndarray,
    target: ArrayLike,
    patient: ArrayLike,
    split: ArrayLike,
    attrs: dict[str, Any],
) -> xr.Dataset:
    """A task made of arrays, pixels (image, channel, y, x)."""
    return labels(target, patient, split, attrs).assign(pixels=(stored.DIMS, pixels))

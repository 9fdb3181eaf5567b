"""Images of a task as one Dataset: image, target, patient, split; decoded once, uint8.

Synthetic sets are generated. Photographs and films are read once from the form in which people
download them (`prepare`, module `ingest`), and are from then on called `name@digest`, the digest
being that of their content.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from filelock import FileLock
from numpy.typing import ArrayLike

from transfusion import config, store, synthetic

SPLITS = ("train", "valid", "test")
FOLD = 1000  # seeds between two folds of a drawn set: more than anybody repeats
SYNTHETIC: dict[str, tuple[Callable, dict]] = {
    "fundus": (synthetic.fundus, {"task": "grades", "outputs": 5, "positive_from": 2}),
    "cxr": (synthetic.cxr, {"task": "findings", "outputs": 5, "names": list(synthetic.FINDINGS)}),
    "objects": (synthetic.objects, {"task": "classes", "outputs": synthetic.CLASSES}),
}


def load(spec: config.Data) -> xr.Dataset:
    """All splits of a task.

    Returns a Dataset of pixels (image, channel, y, x) uint8; target int16, grades or classes
    (image,) or findings (image, finding) 0/1, -1 where uncertain; patient (image,); split (image,)
    one of SPLITS; attrs task, outputs.
    Raises ValueError for an unknown or unprepared data set, patients in two splits, or too few for
    the folds.
    """
    check(spec)
    if spec.name in SYNTHETIC:
        return _cached(drawn_path(spec), lambda: _generate(spec))
    return _subset(_dealt(store.read_zarr(prepared_path(spec.name, spec.size)), spec), spec)


def attrs(spec: config.Data) -> dict:
    """The attrs of a task (task, outputs, ...), without reading a pixel.

    Raises ValueError for an unknown or unprepared data set.
    """
    check(spec)
    if spec.name in SYNTHETIC:
        return dict(SYNTHETIC[spec.name][1])
    path = prepared_path(spec.name, spec.size)
    with xr.open_zarr(path, consolidated=False, chunks=None) as stored:
        return {name: value for name, value in stored.attrs.items() if name != "sha256"}


def check(spec: config.Data) -> None:
    """Raise ValueError if a task cannot be loaded, without loading it."""
    if spec.name in SYNTHETIC:
        low, high = synthetic.SIZES
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


def prepare(name: str, *, size: int, n: int | None = None, seed: int = 0, **options) -> xr.Dataset:
    """Images by name: a synthetic set of `n`, or a collection (options of `ingest.ingest`).

    The public door: `prepare("fundus", size=64, n=2000)`, `prepare("eyepacs", size=64,
    folder=DIR)`. Splits of a synthetic set are 60, 15 and 25 %.
    """
    from transfusion import ingest

    if name in SYNTHETIC:
        if not n or n < 20:
            raise ValueError(f"a synthetic set needs n >= 20 images, got n={n}")
        valid, test = 3 * n // 20, n // 4
        counts = dict(train=n - valid - test, valid=valid, test=test)
        return load(config.Data(name=name, size=size, seed=seed, **counts))
    return store.read_zarr(prepared_path(ingest.ingest(name, size=size, **options), size))


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


def _cached(path: Path, make) -> xr.Dataset:
    """The Dataset at `path`, made and kept if it is missing or damaged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        try:
            return store.read_zarr(path)
        except (FileNotFoundError, store.Damaged):
            dataset = make()
            store.write_zarr(dataset, path)
            return dataset


def _generate(spec: config.Data) -> xr.Dataset:
    """Splits come from seeds of their own, so the test images stay when the others change."""
    make, attrs = SYNTHETIC[spec.name]
    parts = []
    for number, split in enumerate(SPLITS):
        seed = 3 * (spec.seed + FOLD * spec.fold) + number
        image, target, patient = make(getattr(spec, split), spec.size, seed)
        parts.append(dataset(image, target, patient, np.full(len(image), split), attrs))
        parts[-1]["patient"] = parts[-1]["patient"].astype(str).str.cat(f"-{split}")
    return xr.concat(parts, "image")


def dataset(image, target, patient, split, attrs) -> xr.Dataset:
    dims = ("image",) if np.ndim(target) == 1 else ("image", "finding")
    variables = {
        "image": (("image", "channel", "y", "x"), image),
        "target": (dims, np.asarray(target, dtype=np.int16)),
        "patient": ("image", np.asarray(patient).astype(str)),
        "split": ("image", np.asarray(split).astype(str)),
    }
    # A variable named like its dimension would become an index of pixels.
    variables["pixels"] = variables.pop("image")
    return xr.Dataset(variables, attrs=attrs)


def _dealt(dataset: xr.Dataset, spec: config.Data) -> xr.Dataset:
    """A prepared set split by folds, where these are asked for, in place of its own splits."""
    if spec.folds is None:
        return dataset
    fold = deal(dataset["target"].values, dataset["patient"].values, spec.folds, spec.folds_seed)
    split = np.full(len(fold), "train", object)
    split[fold == (spec.fold + 1) % spec.folds] = "valid"
    split[fold == spec.fold] = "test"
    return dataset.assign(split=("image", split.astype(str)))


def deal(target: np.ndarray, patient: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (image,) of each image: patients stay together, and the labels, or of findings how
    many an image has, are as evenly spread as that allows.

    Raises ValueError where a fold would lack a patient, or one of two answers.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # loads for a second

    label = target if target.ndim == 1 else (target > 0).sum(1)
    patients = len(np.unique(patient))
    if patients < folds or len(np.unique(label)) < 2:
        raise ValueError(f"{folds} folds need as many patients and two labels, got {patients}")
    dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    found = np.empty(len(label), int)
    with warnings.catch_warnings():  # a rare label may be in fewer folds than there are
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for number, (_, rows) in enumerate(dealer.split(label, label, patient)):
            found[rows] = number
    counts = [len(np.unique(label[found == number])) for number in range(folds)]
    if min(counts) < 2:
        raise ValueError(f"fold {int(np.argmin(counts))} of {folds} has images of one label alone")
    return found


def _subset(dataset: xr.Dataset, spec: config.Data) -> xr.Dataset:
    """`train`, `valid`, `test` images of a prepared set, at random: fewer lie within more."""
    check_patients(dataset["patient"], dataset["split"])
    if spec.train is spec.valid is spec.test is None:
        return dataset  # a copy of all pixels saved
    keep = [_take(dataset, split, getattr(spec, split), spec.seed) for split in SPLITS]
    return dataset.isel(image=np.sort(np.concatenate(keep)))


def _take(dataset: xr.Dataset, split: str, count: int | None, seed: int) -> np.ndarray:
    rows = np.flatnonzero(dataset["split"].values == split)
    if count is None:
        return rows
    if count > len(rows):
        raise ValueError(f"{split}={count} asked for, {dataset.attrs['name']} has {len(rows)}")
    return np.random.default_rng([seed, SPLITS.index(split)]).permutation(rows)[:count]


def check_patients(patient: ArrayLike, split: ArrayLike) -> None:
    """Raise ValueError, naming some, if patients (image,) are in more than one split (image,)."""
    frame = pd.DataFrame({"patient": np.asarray(patient), "split": np.asarray(split)})
    splits = frame.groupby("patient")["split"].nunique()
    if (splits > 1).any():
        shared = ", ".join(map(str, splits.index[splits > 1][:5]))
        raise ValueError(f"patients in more than one split: {shared} (split by patient)")

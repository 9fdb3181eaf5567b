"""Images of a task as one Dataset: image, target, patient, split; decoded once, uint8.

Synthetic sets are generated. Photographs and films come from a folder and a CSV table, are checked
and resized once (`prepare`), and are from then on called `name@digest`, the digest being that of
their content.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from transfusion import config, store, synthetic

SPLITS = ("train", "valid", "test")
SYNTHETIC: dict[str, tuple[Callable, dict]] = {
    "fundus": (synthetic.fundus, {"task": "grades", "outputs": 5, "positive_from": 2}),
    "cxr": (synthetic.cxr, {"task": "findings", "outputs": 5, "names": list(synthetic.FINDINGS)}),
    "objects": (synthetic.objects, {"task": "classes", "outputs": synthetic.CLASSES}),
}


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps what: a table, its columns, and what an image's file is called."""

    tables: tuple[str, ...] = ("labels.csv",)
    image: str = "image"
    target: tuple[str, ...] = ("label",)
    patient: str = "patient"
    split: str = "split"
    folder: str = ""
    suffix: str = ""
    grades: int | None = None  # labels run from 0 to grades - 1; None: as many as occur
    positive_from: int = 1  # the AUC is that of label >= positive_from


LAYOUTS = {
    "folder": Layout(),
    # EyePACS as Kaggle gives it (trainLabels.csv, `10_left`) or with patient and split columns.
    "eyepacs": Layout(
        tables=("labels.csv", "trainLabels.csv"),
        target=("level",),
        folder="images",
        suffix=".jpeg",
        grades=5,
        positive_from=2,  # moderate diabetic retinopathy and worse, as in the paper's Table 1
    ),
}


# --- what training asks for ------------------------------------------------------------------


def load(spec: config.Data) -> xr.Dataset:
    """All splits of a task.

    Returns a Dataset of pixels (image, channel, y, x) uint8; target (image,) int8 grades or
    (image, finding) 0/1; patient (image,); split (image,) one of SPLITS; attrs task, outputs.
    Raises ValueError for an unknown or unprepared data set, or patients in two splits.
    """
    check(spec)
    if spec.name in SYNTHETIC:
        return _cached(drawn_path(spec), lambda: _generate(spec))
    return _subset(store.read_zarr(prepared_path(spec.name, spec.size)), spec)


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
    """Images by name: a synthetic set of `n`, or a folder and its table (options of `ingest`).

    The public door: `prepare("fundus", size=64, n=2000)`, `prepare("eyepacs", size=64,
    folder=DIR)`. Splits of a synthetic set are 60, 15 and 25 %.
    """
    if name in SYNTHETIC:
        if not n or n < 20:
            raise ValueError(f"a synthetic set needs n >= 20 images, got n={n}")
        valid, test = 3 * n // 20, n // 4
        counts = dict(train=n - valid - test, valid=valid, test=test)
        return load(config.Data(name=name, size=size, seed=seed, **counts))
    return store.read_zarr(prepared_path(ingest(name, size=size, **options), size))


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
        image, target, patient = make(getattr(spec, split), spec.size, 3 * spec.seed + number)
        parts.append(_dataset(image, target, patient, np.full(len(image), split), attrs))
        parts[-1]["patient"] = parts[-1]["patient"].astype(str).str.cat(f"-{split}")
    return xr.concat(parts, "image")


def _dataset(image, target, patient, split, attrs) -> xr.Dataset:
    dims = ("image",) if np.ndim(target) == 1 else ("image", "finding")
    variables = {
        "image": (("image", "channel", "y", "x"), image),
        "target": (dims, np.asarray(target, dtype=np.int8)),
        "patient": ("image", np.asarray(patient).astype(str)),
        "split": ("image", np.asarray(split).astype(str)),
    }
    # A variable named like its dimension would become an index of pixels.
    variables["pixels"] = variables.pop("image")
    return xr.Dataset(variables, attrs=attrs)


def _subset(dataset: xr.Dataset, spec: config.Data) -> xr.Dataset:
    """`train`, `valid`, `test` images of a prepared set, whole patients in seeded order."""
    _check_patients(dataset)
    keep = [_take(dataset, split, getattr(spec, split), spec.seed) for split in SPLITS]
    return dataset.isel(image=np.sort(np.concatenate(keep)))


def _take(dataset: xr.Dataset, split: str, count: int | None, seed: int) -> np.ndarray:
    rows = np.flatnonzero(dataset["split"].values == split)
    if count is None:
        return rows
    if count > len(rows):
        raise ValueError(f"{split}={count} asked for, {dataset.attrs['name']} has {len(rows)}")
    patients = dataset["patient"].values[rows]
    order = np.random.default_rng([seed, SPLITS.index(split)]).permutation(np.unique(patients))
    rank = pd.Series(np.arange(len(order)), index=order)[patients].to_numpy()
    return rows[np.argsort(rank, kind="stable")[:count]]


def _check_patients(dataset: xr.Dataset) -> None:
    frame = dataset[["patient", "split"]].to_dataframe()
    splits = frame.groupby("patient")["split"].nunique()
    if (splits > 1).any():
        shared = ", ".join(map(str, splits.index[splits > 1][:5]))
        raise ValueError(f"patients in more than one split: {shared} (split by patient)")


# --- photographs and films -------------------------------------------------------------------


def ingest(
    name: str,
    *,
    size: int,
    folder: str | Path,
    labels: str | Path | None = None,
    target: tuple[str, ...] | None = None,
    patient: str | None = None,
    layout: str | None = None,
    tolerance: float = 0.01,
    seed: int = 0,
) -> str:
    """Check, decode and resize a folder of images once; returns its full name `name@digest`.

    Raises ValueError or FileNotFoundError naming what is wrong: the folder, the table, a missing
    column, a label out of range, patients in two splits, or more than the share `tolerance` of
    images that are missing, truncated or no images (fewer are left out and listed in the attrs).
    """
    folder = Path(folder)
    form = LAYOUTS[layout or (name if name in LAYOUTS else "folder")]
    form = replace(form, target=tuple(target or form.target), patient=patient or form.patient)
    table = _table(folder, labels, form, seed)
    paths = [_image_path(folder, form, value) for value in table[form.image]]
    digest, problems = _digest(paths, table, form)
    full, target_path = f"{name}@{digest}", prepared_path(f"{name}@{digest}", size)
    if not target_path.exists():
        pixels, more = _decode(paths, size, skip=problems)
        problems |= more
        _judge(problems, len(paths), tolerance)
        usable = [path for path in paths if path not in problems]
        dataset = _dataset(
            np.stack([pixels[path] for path in usable]),
            *_columns(table[[path not in problems for path in paths]], form),
            _attrs(full, table, form, problems),
        )
        _check_patients(dataset)
        store.write_zarr(dataset, target_path)
    return full


def _table(folder: Path, labels: str | Path | None, form: Layout, seed: int) -> pd.DataFrame:
    """The table with checked columns, targets as integers, patients and splits filled in."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    path = _table_path(folder, labels, form)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [c for c in (form.image, *form.target) if c not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing}; it has {list(table.columns)}")
    if table.empty:
        raise ValueError(f"{path} has no rows")
    for column in form.target:
        table[column] = _labels(table[column], form, path)
    if form.patient not in table:  # EyePACS names its files patient_eye
        table[form.patient] = table[form.image].str.split("_").str[0]
    if form.split not in table:
        table[form.split] = _random_splits(table[form.patient], seed)
    table[form.split] = table[form.split].replace({"val": "valid", "validation": "valid"})
    _check_splits(table[form.split], path)
    return table


def _check_splits(found: pd.Series, path: Path) -> None:
    unknown, empty = set(found) - set(SPLITS), set(SPLITS) - set(found)
    if unknown:
        raise ValueError(f"{path}: splits {sorted(unknown)}; possible: {', '.join(SPLITS)}")
    if empty:
        raise ValueError(f"{path}: no image of split {', '.join(sorted(empty))}")


def _table_path(folder: Path, labels: str | Path | None, form: Layout) -> Path:
    candidates = [Path(labels), folder / labels] if labels else [folder / t for t in form.tables]
    for path in candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no table of labels: looked for {', '.join(map(str, candidates))}")


def _labels(column: pd.Series, form: Layout, path: Path) -> pd.Series:
    top = 2 if len(form.target) > 1 else form.grades
    values = pd.to_numeric(column, errors="coerce")
    bad = values.isna() | (values != values.round()) | (values < 0)
    bad |= values >= (top or 128)
    if bad.any():
        rows = "; ".join(f"row {i + 2}: {column[i]!r}" for i in np.flatnonzero(bad)[:5])
        raise ValueError(
            f"{path}: {bad.sum()} labels of column {column.name!r} out of range "
            f"(integers 0 to {(top or 128) - 1}): {rows}"
        )
    return values.astype(int)


def _random_splits(patients: pd.Series, seed: int) -> np.ndarray:
    """70, 10 and 20 % of the patients."""
    names = np.random.default_rng(seed).permutation(patients.unique())
    edges = [int(0.7 * len(names)), int(0.8 * len(names))]
    where = dict(zip(names, np.repeat(SPLITS, np.diff([0, *edges, len(names)])), strict=True))
    return patients.map(where).to_numpy()


def _image_path(folder: Path, form: Layout, value: str) -> Path:
    suffix = "" if Path(value).suffix else form.suffix
    return folder / form.folder / f"{value}{suffix}"


def _digest(paths: list[Path], table: pd.DataFrame, form: Layout) -> tuple[str, dict[Path, str]]:
    """Digest of all files and table rows, and the files that cannot be read."""
    problems: dict[Path, str] = {}
    digest = hashlib.sha256()
    columns = table[[form.image, *form.target, form.patient, form.split]]
    digest.update(columns.to_csv(index=False).encode())
    for path in paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            problems[path] = error.strerror or "unreadable"
            digest.update(b"missing")
    return digest.hexdigest()[:12], problems


def _decode(
    paths: list[Path], size: int, *, skip: dict[Path, str]
) -> tuple[dict[Path, np.ndarray], dict[Path, str]]:
    """RGB pixels (3, size, size) uint8 by path; threads, since Pillow decodes without the GIL."""
    pixels: dict[Path, np.ndarray] = {}
    problems: dict[Path, str] = {}

    def one(path: Path) -> None:
        try:
            with Image.open(path) as image:
                # Padded, not cropped: a sign at the rim must not be lost.
                square = ImageOps.pad(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
            pixels[path] = np.asarray(square).transpose(2, 0, 1)
        except (OSError, UnidentifiedImageError, ValueError):
            problems[path] = "truncated or not an image"

    todo = [path for path in paths if path not in skip]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(one, todo), "decode", len(todo), unit="image", disable=None))
    return pixels, problems


def _judge(problems: dict[Path, str], total: int, tolerance: float) -> None:
    if len(problems) > tolerance * total:
        listed = "\n  ".join(f"{path}: {why}" for path, why in list(problems.items())[:10])
        raise ValueError(
            f"{len(problems)} of {total} images cannot be used, more than the "
            f"{tolerance:.0%} allowed:\n  {listed}"
        )


def _columns(table: pd.DataFrame, form: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    target = table[list(form.target)].to_numpy()
    target = target[:, 0] if len(form.target) == 1 else target
    return target, table[form.patient].to_numpy(), table[form.split].to_numpy()


def _attrs(full: str, table: pd.DataFrame, form: Layout, problems: dict[Path, str]) -> dict:
    grades = form.grades or int(table[form.target[0]].max()) + 1
    single = len(form.target) == 1
    task = {"task": "grades", "outputs": grades, "positive_from": form.positive_from}
    many = {"task": "findings", "outputs": len(form.target), "names": list(form.target)}
    skipped = [f"{path.name}: {why}" for path, why in problems.items()]
    return {"name": full, "skipped": skipped, **(task if single else many)}

"""How images and their labels lie in what people download: a function a layout.

To add one, write a function that reads one kind of folder or file into a Collection, and enter it
in LAYOUTS; its keywords are the options of `ingest.ingest` that it takes. Nothing is decoded here.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from transfusion import config
from transfusion.images import folds, listing
from transfusion.images import labels as written

FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion")
CHEXPERT = (*FINDINGS[:4], "Pleural Effusion")  # the same five
NIH = (*FINDINGS, "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule",
       "Pleural_Thickening", "Pneumonia", "Pneumothorax")  # fmt: skip
MOST = 128  # grades: a number beyond is an identifier, or a measure, and no label
UNCERTAIN = {"zeros": 0, "ones": 1, "ignore": -1}
RATED = {"retinamnist": {"outputs": 5, "positive_from": 2}}  # grades among the MedMNIST sets
# Where each split ends, as a share of the patients in random order: twice as many test as validate,
# for the test's error is what is reported.
ENDS = {"train": 0.7, "valid": 0.8, "test": 1.0}
PATIENTLESS = {"patients": "not given: every image counts as one"}


@dataclass
class Collection:
    """What a layout has found, one entry an image; nothing is decoded yet."""

    table: pd.DataFrame  # image (a name), one column a target, patient, split: in this order
    images: Sequence[Path | np.ndarray]  # a file, its bytes (1-D), or pixels (y, x[, channel])
    attrs: dict[str, Any]  # task, outputs and what else the Dataset says of itself
    policy: str = ""  # a choice that the digest must cover, because targets alone may not show it
    told: list[str] = field(default_factory=list)  # how it was read, where that was not obvious
    left_out: list[str] = field(default_factory=list)  # files that lie there and are no images


# --- layouts: a table and files --------------------------------------------------------------


def _folder(
    place: Path,
    *,
    seed: int,
    labels: str | Path | None = None,
    target: Sequence[str] = ("label",),
    patient: str | None = None,
    image: str | None = None,
    images: str = "",
    tables: Sequence[str] = ("labels.csv",),
    suffix: str = "",
    grades: int | None = None,
    positive_from: int = 1,
    whose: Callable[[str], str] | None = None,
) -> Collection:
    """Files and a CSV table: `image`, labels from 0, and, if it has them, `patient` and `split`.

    One label column holds grades (`grades` of them, or as many as occur), several hold findings.
    Without a column of patients every image is its own, unless file names tell `whose` it is.
    """
    path, table = _table(place, labels, tables)
    told: list[str] = []
    for name, given in {"image": image, "patient": patient, "split": None}.items():
        if given is not None:
            _need(table, [given], path)
            others = table.drop(columns=[name] if name in table and name != given else [])
            table = others.rename(columns={given: name})
        table = written.role(table, name, told, target)
    _need(table, ["image", *target], path)
    attrs = _targets(table, target, path, told, grades=grades, positive_from=positive_from)
    if "patient" in table:
        table["patient"] = written.patients(table["patient"], path)
    else:
        table["patient"] = table["image"].map(whose) if whose else table["image"]
        attrs |= {} if whose else PATIENTLESS
    columns = ["image", *target, "patient", *(["split"] if "split" in table else [])]
    table = written.once(table[columns], path, told)
    table["split"] = _splits(table, "patient", seed, path)
    files = listing.named(place / images, table["image"], suffix, told)
    told += listing.in_no_row(place / images, files, path)
    return Collection(table, files, attrs, told=told)


def _targets(
    table: pd.DataFrame,
    target: Sequence[str],
    path: Path,
    told: list[str],
    *,
    grades: int | None,
    positive_from: int,
) -> dict[str, Any]:
    """The labels of these columns as integers, in place; the attrs of such a task."""
    if len(target) > 1:
        for column in target:
            table[column] = written.integers(table[column], path, below=2)
        return _findings(target)
    (column,) = target
    table[column] = written.integers(table[column], path, below=grades or MOST)
    if grades is None:
        written.check_grades(table[column], path, told)
    outputs = grades or int(table[column].max()) + 1
    return {"task": "grades", "outputs": outputs, "positive_from": positive_from}


def _eyepacs(
    place: Path,
    *,
    seed: int,
    labels: str | Path | None = None,
    target: Sequence[str] = ("level",),
    patient: str | None = None,
    images: str = "images",
) -> Collection:
    """EyePACS as Kaggle gives it (trainLabels.csv, `10_left`), or with patient and split columns.

    The AUC is that of moderate diabetic retinopathy and worse, as in the paper's Table 1.
    """
    given: dict = dict(labels=labels, target=target, patient=patient, images=images)
    kaggle: dict = dict(tables=("labels.csv", "trainLabels.csv"), suffix=".jpeg", whose=_before_eye)
    return _folder(place, seed=seed, **given, **kaggle, grades=5, positive_from=2)


def _before_eye(name: str) -> str:
    """EyePACS names its files patient_eye."""
    return name.split("_")[0]


def _nih(
    place: Path,
    *,
    seed: int,
    labels: str | Path | None = None,
    target: Sequence[str] = FINDINGS,
    images: str = "",
) -> Collection:
    """NIH ChestX-ray14: its own table (`Finding Labels` joined by `|`), or a 0/1 column a finding.

    Images may lie in any folders, as the twelve archives unpack. Any number of the archives will
    do: rows without an image are left out, and counted in the attrs. The test set is that of
    `test_list.txt` if it is there, and an eighth of the other patients validate.
    """
    official = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv", "labels.csv")
    path, table = _table(place, labels, official)
    table = table.rename(columns={"Image Index": "image", "Patient ID": "patient"})
    if "Finding Labels" in table:
        table = table.assign(**_one_hot(table["Finding Labels"], target, path))
    _need(table, ["image", "patient", *target], path)
    for column in target:
        table[column] = written.integers(table[column], path, below=2)
    table["split"] = _nih_splits(table, place / "test_list.txt", seed, path)
    files = (
        table["image"].map(lambda name: Path(name).stem).map(listing.photographs(place / images))
    )
    there = files.notna()
    if not there.any():
        raise FileNotFoundError(f"no image of {path} lies under {place / images}")
    attrs = _findings(target) | {"absent": int((~there).sum())}
    columns = ["image", *target, "patient", "split"]
    return Collection(table.loc[there, columns], list(files[there]), attrs)


def _one_hot(column: pd.Series, target: Sequence[str], path: Path) -> dict[str, pd.Series]:
    for name in target:
        config.one_of(name, NIH, "finding")
    found = column.str.get_dummies("|")
    unknown = sorted(set(found) - {*NIH, "No Finding"})
    if unknown:
        raise ValueError(f"{path}: findings {unknown}; possible: {', '.join(NIH)}, No Finding")
    return dict(found.reindex(columns=list(target), fill_value=0))


def _nih_splits(table: pd.DataFrame, test_list: Path, seed: int, path: Path) -> np.ndarray:
    if test_list.is_file():
        test = table["image"].isin(test_list.read_text().split())
        rest = divided(table["patient"][~test], seed, {"train": 0.875, "valid": 1.0})
        splits = np.full(len(table), "test", object)
        splits[~test] = rest
        return splits
    return _splits(table, "patient", seed, path)


def _chexpert(
    place: Path,
    *,
    seed: int,
    labels: str | Path | None = None,
    target: Sequence[str] = CHEXPERT,
    uncertain: str = "zeros",
) -> Collection:
    """CheXpert: frontal views of train.csv (or `labels`) and, if it is there, valid.csv.

    A blank label means not mentioned, and counts as absent. An uncertain one (-1) becomes 0, 1, or
    stays -1, which the loss leaves out (`ignore`). train.csv's patients are divided 70, 10 and
    20 %, unless it has a column `split`; valid.csv's 200 join the test set, for which they are too
    few alone.
    """
    choice = UNCERTAIN[config.one_of(uncertain, UNCERTAIN, "policy for uncertain labels")]
    path, train = _chexpert_table(place, labels, "train.csv", target)
    parts = [train.assign(split=_splits(train, "patient", seed, path))]
    if (place / "valid.csv").is_file():
        _, valid = _chexpert_table(place, None, "valid.csv", target)
        parts.append(valid.assign(split="test"))
    table = pd.concat(parts, ignore_index=True)[["image", *target, "patient", "split"]]
    table[list(target)] = table[list(target)].replace(-1, choice)
    files = [place / image for image in table["image"]]
    attrs = _findings(target) | {"uncertain": uncertain}
    return Collection(table, files, attrs, policy=f"uncertain={uncertain}\n")


def _chexpert_table(
    place: Path, labels: str | Path | None, usual: str, target: Sequence[str]
) -> tuple[Path, pd.DataFrame]:
    """Frontal rows of a table: labels -1, 0 or 1, files without the release's name in front."""
    path, table = _table(place, labels, [usual])
    _need(table, ["Path", "Frontal/Lateral", *target], path)
    for column in target:
        blank = table[column].replace("", "0")
        table[column] = written.integers(blank, path, low=-1, below=2)
    table["image"] = table["Path"].str.replace(r"^.*?(?=(?:train|valid)/)", "", regex=True)
    table["patient"] = table["Path"].str.extract(r"(patient\d+)", expand=False)
    if table["patient"].isna().any():
        nameless = table.loc[table["patient"].isna(), "Path"].iloc[0]
        raise ValueError(f"{path}: expected .../patient00001/... in column 'Path', got {nameless}")
    return path, table[table["Frontal/Lateral"] == "Frontal"].copy()


def _table(
    place: Path, labels: str | Path | None, usual: Sequence[str]
) -> tuple[Path, pd.DataFrame]:
    """The table `labels`, or the first of the usual ones that is there; all values as text."""
    if not place.is_dir():
        raise FileNotFoundError(f"no folder {place}")
    candidates = [Path(labels), place / labels] if labels else [place / name for name in usual]
    for path in candidates:
        if path.is_file():
            return path, written.read(path)
    raise FileNotFoundError(f"no table of labels: looked for {', '.join(map(str, candidates))}")


def _need(table: pd.DataFrame, columns: Sequence[str], path: Path) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{path} has no column {missing}; it has {list(table.columns)}")


def _splits(table: pd.DataFrame, patient: str, seed: int, path: Path) -> np.ndarray:
    """The table's own, or 70, 10 and 20 % of its patients."""
    if "split" in table:
        return written.splits(table["split"], path)
    return divided(table[patient], seed, ENDS)


def divided(patients: pd.Series, seed: int, ends: dict[str, float]) -> np.ndarray:
    """A split for each row: patients in seeded order, cut where `ends` says."""
    names = np.random.default_rng(seed).permutation(patients.unique())
    edges = [int(end * len(names)) for end in ends.values()]
    where = dict(zip(names, np.repeat(list(ends), np.diff([0, *edges])), strict=True))
    return patients.map(where).to_numpy()


def _findings(names: Sequence[str]) -> dict[str, Any]:
    return {"task": "findings", "outputs": len(names), "names": list(names)}


# --- layouts: classes, every image its own patient -------------------------------------------


def _imagefolder(place: Path, *, seed: int) -> Collection:
    """A folder a class, in `train` and, if they are there, `val` and `test`; or directly.

    Whatever split has no folder is a tenth of the training images, drawn by `seed`.
    """
    if not place.is_dir():
        raise FileNotFoundError(f"no folder {place}")
    told: list[str] = []
    splits = _split_folders(place, told) or {"train": place}
    names = _classes(splits["train"])
    rows = [(f, names.index(c), s) for s, p in splits.items() for c, f in _members(p, names)]
    files, label, split = map(list, zip(*rows, strict=True))
    found = [file.relative_to(place).as_posix() for file in files]
    table = _own_patients(found, {"class": label}, split)
    drawn = table["split"] == "train"
    ends = _tenths([split for split in folds.SPLITS if split not in splits])
    table.loc[drawn, "split"] = divided(table["patient"][drawn], seed, ends)
    others = [
        str(p.relative_to(place))
        for folder in splits.values()
        for p in listing.others_below(folder)
    ]
    left_out = [f"{other}: no image, by its suffix" for other in others]
    return Collection(table, files, _class_attrs(names), told=told, left_out=left_out)


def _split_folders(place: Path, told: list[str]) -> dict[str, Path]:
    """The folders of splits, by any of their usual names; none where folders are classes."""
    within = listing.subfolders(place)
    found: dict[str, Path] = {}
    for folder in within:
        split = written.split_named(folder.name)
        if split in found:
            raise ValueError(
                f"{place}: {found[split].name} and {folder.name} are one split, {split}"
            )
        if split is not None:
            found[split] = folder
    if not found or ("train" in found and not listing.subfolders(found["train"])):
        return {}
    others = [folder.name for folder in within if folder not in found.values()]
    if "train" not in found:
        raise ValueError(
            f"{place}: {', '.join(f.name for f in found.values())} beside no folder to train on; "
            f"expected train, or folders of classes alone, got {', '.join(others) or 'no other'}"
        )
    told += [f"folder {name!r} is no split, and is left out" for name in others]
    plain = [s for s, p in found.items() if p.name.lower() not in (s, "val")]
    told += [f"folder {found[split].name!r} is taken for {split}" for split in plain]
    return found


def _tenths(missing: Sequence[str]) -> dict[str, float]:
    """Where the splits end, if each that is missing is a tenth."""
    return {s: 1 - 0.1 * (len(missing) - i) for i, s in enumerate(["train", *missing])}


def _classes(folder: Path) -> list[str]:
    names = [path.name for path in listing.subfolders(folder)]
    if len(names) < 2:
        raise ValueError(f"{folder}: expected a folder a class, at least two, got {names}")
    return names


def _members(folder: Path, names: Sequence[str]) -> Iterable[tuple[str, Path]]:
    """Class and path of every image below a folder of classes."""
    for name in _classes(folder):
        files = listing.images_below(folder / config.one_of(name, names, f"class in {folder}:"))
        if not files:
            raise ValueError(
                f"no image in {folder / name}; possible: {', '.join(listing.PHOTOGRAPHS)}"
            )
        yield from ((name, file) for file in files)


def _jpegs(place: Path, *, seed: int) -> Collection:
    """JPEG files end to end in train.npz and val.npz: `jpeg`, `offset`, `label`, `wnid`.

    File i is `jpeg[offset[i]:offset[i + 1]]`, `label[i]` counts in the class names `wnid`. The
    validation file gives, by `seed`, half of its images to validation and half to the test.
    """
    images, parts, names = list[Path | np.ndarray](), [], None
    for part in ("train", "val"):
        held = _npz(place / f"{part}.npz", ("jpeg", "offset", "label", "wnid"))
        names = held["wnid"].tolist() if names is None else names
        _check_jpegs(place / f"{part}.npz", held, names)
        images += np.split(held["jpeg"], held["offset"][1:-1])
        found = [f"{part}/{names[label]}/{i}" for i, label in enumerate(held["label"])]
        parts.append(_own_patients(found, {"class": held["label"]}, part))
    valid = parts[1]
    valid["split"] = divided(valid["patient"], seed, {"valid": 0.5, "test": 1.0})
    return Collection(pd.concat(parts, ignore_index=True), images, _class_attrs(names or []))


def _check_jpegs(path: Path, held: dict[str, np.ndarray], names: list[str]) -> None:
    jpeg, offset, label = held["jpeg"], held["offset"], held["label"]
    if held["wnid"].tolist() != names:
        raise ValueError(f"{path}: its class names `wnid` are not those of train.npz")
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1:
        raise ValueError(f"{path}: jpeg: expected bytes in a row, got {jpeg.dtype} {jpeg.shape}")
    whole = len(offset) == len(label) + 1 and (np.diff(offset) > 0).all()
    if not whole or offset[0] != 0 or offset[-1] != len(jpeg):
        raise ValueError(
            f"{path}: offset: expected {len(label) + 1} rising numbers from 0 to {len(jpeg)}, "
            f"got {len(offset)}: {offset[0]} to {offset[-1]}"
        )
    _check_classes(path, "label", label, len(names))


def _medmnist(place: Path, *, name: str) -> Collection:
    """The npz file of a MedMNIST set: `train_images`, `train_labels`, and so for val and test.

    Images (image, y, x) or (image, y, x, 3) uint8. Several columns of labels are findings; one is
    grades where they have an order (RATED) or are but two, else classes. The sets do not name
    patients: each image counts as its own, and the splits are those of the file.
    """
    images, labels, parts = list[Path | np.ndarray](), [], []
    for part, split in zip(("train", "val", "test"), folds.SPLITS, strict=True):
        held = _npz(place, (f"{part}_images", f"{part}_labels"))
        pixels, target = held[f"{part}_images"], held[f"{part}_labels"]
        _check_pixels(place, part, pixels, target)
        images += list(pixels)
        labels.append(target)
        parts += [(f"{part}/{i}", split) for i in range(len(target))]
    target = np.concatenate(labels)
    attrs = _medmnist_task(place, name, target)
    columns = attrs.get("names") or ["label"]
    found, splits = zip(*parts, strict=True)
    table = _own_patients(found, dict(zip(columns, target.T, strict=True)), splits)
    return Collection(table, images, attrs)


def _check_pixels(place: Path, part: str, pixels: np.ndarray, target: np.ndarray) -> None:
    colours = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
    if not colours or pixels.dtype != np.uint8:
        raise ValueError(
            f"{place}: {part}_images: expected uint8 (image, y, x) or (image, y, x, 3), "
            f"got {pixels.dtype} {pixels.shape}"
        )
    if target.ndim != 2 or len(target) != len(pixels):
        raise ValueError(
            f"{place}: {part}_labels: expected ({len(pixels)}, labels), got {target.shape}"
        )


def _medmnist_task(place: Path, name: str, target: np.ndarray) -> dict[str, Any]:
    if target.shape[1] > 1:
        _check_classes(place, "labels", target, 2)
        return _findings([f"label {i}" for i in range(target.shape[1])]) | PATIENTLESS
    rated = _rated(name, place)
    outputs = rated["outputs"] if rated else int(target.max()) + 1
    _check_classes(place, "labels", target, outputs)
    if rated is None and outputs > 2:
        return {"task": "classes", "outputs": outputs} | PATIENTLESS
    return {"task": "grades", **(rated or {"outputs": 2, "positive_from": 1})} | PATIENTLESS


def _rated(name: str, place: Path) -> dict[str, int] | None:
    """What is known of a set by its name or that of its file, `retinamnist_64`."""
    sets = [re.sub(r"_\d+$", "", word.lower()) for word in (name, place.stem)]
    return next((RATED[each] for each in sets if each in RATED), None)


def _npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with path.open("rb") as file, np.load(file) as held:
            missing = [name for name in names if name not in held.files]
            if not missing:
                return {name: held[name] for name in names}
            there = list(held.files)
    except (BadZipFile, zlib.error, ValueError, TypeError, EOFError) as error:
        raise ValueError(f"{path} is not a whole npz file: {error}") from None
    raise ValueError(f"{path} has no {', '.join(missing)}; it has {there}")


def _check_classes(path: Path, what: str, label: np.ndarray, outputs: int) -> None:
    bad = np.flatnonzero((label < 0) | (label >= outputs))
    if len(bad) or label.dtype.kind not in "iu":
        where = f"number {bad[0]}: {label.ravel()[bad[0]]}" if len(bad) else f"type {label.dtype}"
        raise ValueError(f"{path}: {what} out of range (integers 0 to {outputs - 1}), {where}")


def _own_patients(names: Sequence[str], target: dict, split: Any) -> pd.DataFrame:
    return pd.DataFrame({"image": names, **target, "patient": names, "split": split})


def _class_attrs(names: list[str]) -> dict[str, Any]:
    return {"task": "classes", "outputs": len(names), "names": names} | PATIENTLESS


LAYOUTS: dict[str, Callable[..., Collection]] = {
    "folder": _folder,
    "eyepacs": _eyepacs,
    "nih": _nih,
    "chexpert": _chexpert,
    "medmnist": _medmnist,
    "imagefolder": _imagefolder,
    "jpegs": _jpegs,
}

"""Which images train, validate and test: by the set's own splits, or by folds of patients."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from transfusion import config

SPLITS = ("train", "valid", "test")


def dealt(dataset: xr.Dataset, spec: config.Data) -> xr.Dataset:
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


def subset(dataset: xr.Dataset, spec: config.Data) -> xr.Dataset:
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

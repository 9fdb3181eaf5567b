"""The only module that knows `data_cache`: where things lie, and what is whole.

Layout and schema are described in data_cache/README.md. A result counts only when its `done.json`,
written last, names the checksums of its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from transfusion import config, files, provenance, waiting
from transfusion.files import (  # noqa: F401  what is above asks `store` alone for the disk
    HOME,
    Damaged,
    atomic,
    discard,
    read_sealed,
    require_writable,
    root,
    write_json,
    write_sealed,
)

LAYOUT = "result/2"
SEAL = "attrs_sha256"  # the attribute with the checksum of the others
REST = "rest_sha256"  # that with the checksum of all but what may stay on disk
PIECE = 1 << 21  # bytes that are hashed at once, of values that may lie on disk


def run_folder(key: str) -> Path:
    return root() / "runs" / key


def weights_file(name: str) -> Path:
    return root() / "weights" / f"{name}.safetensors"


# --- Datasets ---------------------------------------------------------------------------------


def write_zarr(dataset: xr.Dataset, path: Path) -> None:
    """Write a Dataset as zarr, atomically, with the checksums of its values and of its attrs."""
    with atomic(path) as temporary:
        to_zarr(dataset, temporary)


def to_zarr(dataset: xr.Dataset, path: Path, there: Collection[str] = ()) -> None:
    """Write a Dataset and its checksums into a folder that the caller puts in its place, all but
    the variables that are `there` already.

    Strings become objects and nothing is consolidated: zarr 3 warns about the other forms.
    """
    plain = dataset.drop_encoding().assign_attrs(sha256=checksum(dataset))
    if there:
        plain.attrs[REST] = checksum(dataset.drop_vars(there))
    plain.attrs[SEAL] = _attrs_checksum(plain)
    plain = plain.drop_vars(there)
    for name, values in plain.variables.items():
        if values.dtype.kind == "U":
            plain[name] = plain[name].astype(object)
    plain.to_zarr(path, mode="a", consolidated=False)


def read_zarr(
    path: Path, given: Mapping[str, xr.Variable] | None = None, *, trusted: bool = False
) -> xr.Dataset:
    """Read a Dataset into memory; raises FileNotFoundError, or Damaged (zarr reads holes as 0).

    Variables that are `given`, having been read by the caller, take the place of those on disk,
    and are hashed as all others unless they are `trusted`.
    """
    return files.steadily(path, partial(_read_zarr, given=given or {}, trusted=trusted))


def _read_zarr(path: Path, given: Mapping[str, xr.Variable], trusted: bool) -> xr.Dataset:
    dataset = _loaded(path, given)
    _check_attrs(dataset, path)
    expected = {name: dataset.attrs.pop(name, None) for name in ("sha256", REST)}
    found = checksum(dataset.drop_vars(given) if trusted else dataset)
    if found != expected[REST if trusted else "sha256"]:
        raise Damaged(f"{path}: values differ from those written; delete it")
    return _plain_strings(dataset)


def _loaded(path: Path, given: Mapping[str, xr.Variable]) -> xr.Dataset:
    how: dict[str, Any] = {"consolidated": False, "chunks": None, "drop_variables": list(given)}
    try:
        with xr.open_zarr(path, **how) as stored:
            return stored.load().assign(given)
    except Exception as error:  # a truncated store fails in as many ways as it has files
        raise Damaged(f"{path} cannot be read ({error}); delete it") from error


def read_attrs(path: Path) -> dict[str, Any]:
    """The attributes of a Dataset alone; raises as `read_zarr` does."""
    return files.steadily(path, _read_attrs)


def _read_attrs(path: Path) -> dict[str, Any]:
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as stored:
            _check_attrs(stored, path)
            return {n: value for n, value in stored.attrs.items() if n not in ("sha256", REST)}
    except Damaged:
        raise
    except Exception as error:
        raise Damaged(f"{path} cannot be read ({error}); delete it") from error


def _check_attrs(dataset: xr.Dataset, path: Path) -> None:
    """Take the seal off the attributes; what was prepared before there were seals has none."""
    seal = dataset.attrs.pop(SEAL, None)
    if seal is not None and seal != _attrs_checksum(dataset):
        raise Damaged(f"{path}: attributes differ from those written; delete it")


def _attrs_checksum(dataset: xr.Dataset) -> str:
    """sha256 of a Dataset's attributes and of those of its variables, as JSON keeps them."""
    attrs = {"": dataset.attrs} | {str(n): v.attrs for n, v in dataset.variables.items()}
    told = {name: {k: _as_json(v) for k, v in each.items()} for name, each in attrs.items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _plain_strings(dataset: xr.Dataset) -> xr.Dataset:
    """zarr's variable-length strings as numpy's own, as they were before writing."""
    strings = {n: v for n, v in dataset.variables.items() if v.dtype.kind in "OT"}
    plain = {n: (v.dims, np.array(v.values.tolist(), dtype=str)) for n, v in strings.items()}
    coords = {n: value for n, value in plain.items() if n in dataset.coords}
    return dataset.assign({n: plain[n] for n in plain.keys() - coords.keys()}).assign_coords(coords)


def checksum(values: xr.Dataset | Path) -> str:
    """sha256 of a file, or of a Dataset's names, dims, types and values; without a copy of them."""
    if isinstance(values, Path):
        with values.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, variable in sorted(values.variables.items(), key=lambda item: str(item[0])):
        digest.update(f"{name} {variable.dims} {variable.shape} ".encode())
        for part in _content(variable):
            digest.update(part)
    return digest.hexdigest()


def _content(variable: xr.Variable) -> Iterator[bytes | memoryview]:
    if variable.dtype.kind in "OUT":  # strings, however zarr gives them back
        yield json.dumps([str(value) for value in variable.values.ravel()]).encode()
        return
    yield str(variable.dtype).encode()
    for values in _pieces(variable):
        yield np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _pieces(variable: xr.Variable) -> Iterator[np.ndarray]:
    """Its values in their order, some at a time: they may lie on disk, and exceed the memory."""
    if variable.ndim == 0:
        yield variable.values
        return
    step = max(1, PIECE * len(variable) // max(1, variable.nbytes))
    for start in range(0, len(variable), step):
        yield variable[start : start + step].values


# --- results by key --------------------------------------------------------------------------


@contextlib.contextmanager
def lease(key: str, name: str = "lock") -> Iterator[None]:
    """Hold a key, so that two processes never compute it at once; falls with the process."""
    provenance.facts()  # of now
    provenance.identity()
    with waiting.lock(run_folder(key) / name, f"{key} is being computed"):
        yield


def finish(
    spec: Any, dataset: xr.Dataset, *, status: str = "done", seconds: float = 0.0
) -> xr.Dataset:
    """Keep a result under its key, and return it as it will be read.

    `status` is `done` or `failed` (with attrs saying why).
    """
    folder = run_folder(spec.key)
    facts = {"schema": LAYOUT, "key": spec.key, "status": status, "seconds": seconds}
    facts |= {n: dataset.attrs[n] for n in ("precision",) if n in dataset.attrs}
    write_json(folder / "spec.json", config.dump(spec))
    began = provenance.facts()
    if provenance.has_changed():  # what was loaded late is of no commit
        began = began | {"commit": began["commit"].rstrip("+") + "+"}
    attrs = began | dataset.attrs | facts  # a result from elsewhere says where it was made
    write_zarr(dataset.assign_attrs(attrs), folder / "result.zarr")
    weights = [*folder.glob("*.safetensors")]
    size = sum(map(_size, [folder / "result.zarr", *weights]))
    sums = {path.name: checksum(path) for path in weights}
    told = facts | {"bytes": size, "sha256": sums}
    write_json(folder / "done.json", told | {"seal": _seal(told)})
    return read_zarr(folder / "result.zarr")


def read(key: str) -> xr.Dataset | None:
    """The result kept under a key, or None where there is none or its files are not whole."""
    if _done(key) is None:
        return None
    try:
        return _result(key)
    except (FileNotFoundError, Damaged):
        return None


def _result(key: str) -> xr.Dataset:
    """As `read_zarr`; another's that was put there is Damaged."""
    found = read_zarr(run_folder(key) / "result.zarr")
    if found.attrs.get("key") != key:
        raise Damaged(f"{run_folder(key)} has the result of {found.attrs.get('key')}; delete it")
    return found


def save_weights(key: str, content: bytes) -> None:
    """Keep weights, as safetensors has them, beside a result still to be finished. Written here,
    since its own writer tells of a full disk in its own way, and closes the file to others."""
    with atomic(run_folder(key) / "weights.safetensors") as path:
        path.write_bytes(content)


def weights_path(key: str) -> Path | None:
    """The weights kept under a key, or None where there are none or they are not whole."""
    path = run_folder(key) / "weights.safetensors"
    done = _done(key) or {"sha256": {}}
    if not path.is_file() or done["sha256"].get(path.name) != checksum(path):
        return None
    return path


def complete(key: str) -> bool:
    """Whether a run ended and left what it should: whole weights, or the reason why it failed."""
    done = _done(key)
    return done is not None and (done["status"] == "failed" or weights_path(key) is not None)


def _done(key: str) -> dict | None:
    """What was said of a finished result, or None where there is none that this version made."""
    told = _told(key)
    return told if told is not None and told["schema"] == LAYOUT else None


def _told(key: str) -> dict | None:
    try:
        told = json.loads((run_folder(key) / "done.json").read_text())
    except (OSError, ValueError):  # absent, a folder, cut, no text
        return None
    return told if isinstance(told, dict) and _is_of(key, told) else None


def _is_of(key: str, told: dict) -> bool:
    """Whether this was said of a result under this key, as far as types and the seal tell; what was
    computed before there were seals has none."""
    numbers = all(isinstance(told.get(name, 0), (int, float)) for name in ("seconds", "bytes"))
    said = told.get("key") == key and "schema" in told and told.get("status") in ENDED
    sealed = told.get("seal") in (None, _seal(told))
    return said and numbers and isinstance(told.get("sha256"), dict) and sealed


def _seal(told: dict) -> str:
    """sha256 of all else that done.json says."""
    rest = {name: value for name, value in told.items() if name != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def verify(key: str) -> None:
    """Read and hash again all that is kept under a key; raises Damaged or FileNotFoundError."""
    _result(key)
    for name, expected in (_done(key) or {"sha256": {}})["sha256"].items():
        if checksum(run_folder(key) / name) != expected:
            raise Damaged(f"{run_folder(key) / name} is not what was written; delete it")


def verify_weights(path: Path) -> None:
    """Hash named weights again, whose name says what they are; raises Damaged."""
    if not checksum(path).startswith(path.stem.rpartition("@")[2]):
        raise Damaged(f"{path} is not the file its name says; import it again")


ENDED = ("done", "failed")  # a run that failed by itself (no finite loss) has ended, too
STATES = (*ENDED, "running", "started", "stale", "missing")


def state(key: str) -> str:
    """One of STATES, as the files' names say; `read` checks contents.

    `started` has a checkpoint that nobody works on, `stale` was made by another version.
    """
    return facts(key).get("status") or _unfinished(key)


def look(keys: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Of each key that has a folder, or of these, what names of files and done.json tell: the facts
    of a result, `state`, `seconds`, `bytes` on disk, and whether `weights` are there."""
    there = _listed(root() / "runs")
    return {key: _look(key) for key in sorted(there if keys is None else there.intersection(keys))}


def _listed(folder: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir()}
    return set()


def _look(key: str) -> dict[str, Any]:
    done, folder = facts(key), run_folder(key)
    return {
        "seconds": 0.0,
        **done,
        "state": done.get("status") or _unfinished(key),
        "bytes": done.get("bytes") or _size(folder),
        "weights": (folder / "weights.safetensors").is_file(),
    }


def _unfinished(key: str) -> str:
    if waiting.is_held(run_folder(key) / "lock"):
        return "running"
    if _told(key) is not None:
        return "stale"
    return "started" if (run_folder(key) / "checkpoint.pt").exists() else "missing"


def seconds(key: str) -> float:
    """What a result took, 0 where there is none."""
    return facts(key).get("seconds", 0.0)


def facts(key: str) -> dict[str, Any]:
    """Status, seconds and, of a training, precision of a result; empty where there is none."""
    return _done(key) or {}


def share_trained(key: str) -> float:
    """How much of a training its log tells of, 0 to 1."""
    try:
        steps = re.findall(r"step (\d+) of (\d+)", (run_folder(key) / "log.txt").read_text())
    except OSError:
        return 0.0
    return int(steps[-1][0]) / int(steps[-1][1]) if steps else 0.0


def disk_size(key: str) -> int:
    """Bytes on disk."""
    return _size(run_folder(key))


def _size(path: Path) -> int:
    files = [path, *path.rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


# --- collected results -----------------------------------------------------------------------


def results_path(study: str, chapter: str) -> Path:
    return root() / "collected" / study / f"{chapter}.zarr"


def records_folder(study: str) -> Path:
    """Where the records of a study's runs lie, in git (module `records`)."""
    return root() / "results" / study


def open(study: str, chapter: str) -> xr.Dataset:
    """The collected results of one chapter of one study (dims as in data_cache/README.md).

    Raises FileNotFoundError if they were never collected, Damaged if they are not whole.
    """
    return read_zarr(results_path(study, chapter))


def save(study: str, chapter: str, dataset: xr.Dataset) -> None:
    """Keep collected results; the study's manifest follows."""
    path = results_path(study, chapter)
    with files.locked(path.parent / ".lock"):
        write_zarr(dataset, path)
    keep_manifest(study)


def keep_manifest(study: str) -> None:
    """Let a study's manifest have a line for each run of each chapter that is collected: derived
    from these, so that whoever calls this after a kill mends it."""
    folder = root() / "collected" / study
    with files.locked(folder / ".lock"):
        expected, path = _manifest(folder), folder / "manifest.csv"
        if not path.is_file() or path.read_text() != expected:
            with atomic(path) as temporary:
                temporary.write_text(expected)


def _manifest(folder: Path) -> str:
    lines = []
    for path in sorted(folder.glob("*.zarr")):
        try:
            runs = json.loads(json.loads((path / "zarr.json").read_text())["attributes"]["runs"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # whoever opens these results is told
        lines += [{"chapter": path.stem} | {n: str(value) for n, value in r.items()} for r in runs]
    return pd.DataFrame(lines).to_csv(index=False)


def verify_manifest(study: str) -> None:
    """Raise Damaged unless a study's manifest lists the very runs of its collected results."""
    folder = root() / "collected" / study
    if (folder / "manifest.csv").read_text() != _manifest(folder):
        raise Damaged(f"{folder / 'manifest.csv'} does not list the runs of the results beside it")

"""Care for data_cache: what lies there, whether it is whole, and what no study needs any more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import pandas as pd
from tqdm import tqdm

from transfusion import config, records, store
from transfusion.images import stored
from transfusion.studies import grouping, params


def ls() -> pd.DataFrame:
    """Every result by key: kind, model, init, state, MB, hours, and the studies that need it."""
    needed = _needed()
    rows = {}
    for key, told in store.look().items():
        fields = _fields(store.run_folder(key))
        rows[key] = {
            "kind": fields.get("kind", "?"),
            "model": fields.get("model", ""),
            "init": fields.get("init", {}).get("name", ""),
            "state": told["state"],
            "MB": told["bytes"] / 1e6,
            "hours": told["seconds"] / 3600,
            "needed by": ", ".join(needed.get(key, [])),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("key")


def _needed() -> dict[str, list[str]]:
    """Keys that a study asks for on any machine, collected or not, and which studies."""
    needed: dict[str, list[str]] = {}
    for study in params.studies():
        asked = [spec for c in params.chapters(study) for spec in params.of_all_machines(study, c)]
        for spec in grouping.everything(asked):
            needed.setdefault(spec.key, []).append(study)
    return needed


def _folders() -> list[Path]:
    return sorted(path for path in (store.root() / "runs").glob("*") if path.is_dir())


def _fields(folder: Path) -> dict:
    try:
        told = json.loads((folder / "spec.json").read_text())
    except (OSError, ValueError):  # absent, a folder, cut, no text
        return {}
    return told if isinstance(told, dict) and isinstance(told.get("init", {}), dict) else {}


def verify() -> pd.Series:
    """Read and hash again all that is kept; what is not whole, and what is wrong with it."""
    found = dict(_damaged())
    return pd.Series(found, dtype=object, name="damage").rename_axis("where")


def _damaged() -> Iterator[tuple[str, str]]:
    root = store.root()
    ended = [f for f in _folders() if store.state(f.name) in ("done", "failed")]
    checks: list[tuple[Path, Callable]] = [(f, partial(store.verify, f.name)) for f in ended]
    for path in sorted(root.glob("collected/*/*.zarr")):
        checks.append((path, partial(store.read_zarr, path)))
    for path in sorted(root.glob("datasets/*/*.zarr")):
        checks.append((path, partial(stored.verify, path)))
    for part in sorted(p for folder in root.glob("results/*") for p in records.parts(folder)):
        checks.append((part, partial(records.verify, part)))
    for path in sorted(root.glob("collected/*/manifest.csv")):
        checks.append((path, partial(store.verify_manifest, path.parent.name)))
    for path in sorted(root.glob("weights/*.safetensors")):
        checks.append((path, partial(store.verify_weights, path)))
    for path, check in tqdm(checks, "verified", disable=None):
        try:
            check()
        except (ValueError, OSError) as error:
            yield str(path.relative_to(root)), str(error)


def superfluous() -> list[str]:
    """Keys of what no study needs and nobody works on."""
    needed = _needed()
    states = {f.name: store.state(f.name) for f in _folders() if f.name not in needed}
    return [key for key, state in states.items() if state != "running"]


def forget(key: str) -> list[str]:
    """Remove a result and its records, whichever studies have them, so that whoever needs it has it
    computed again; where they lay. Raises ValueError for one that is at work, or is nowhere."""
    if store.state(key) == "running":
        raise ValueError(f"{key} is at work: stop that first")
    found, folder = list[str](), store.run_folder(config.plain(key))
    names = {key, *(f"{key}-{precision}" for precision in get_args(config.Native))}
    for study in sorted(path for path in (store.root() / "results").glob("*") if path.is_dir()):
        for name in sorted(names & records.index(study).keys()):
            records.remove(study, name)
            found.append(str(study / name))
    if folder.exists():
        store.discard(folder)
        found.append(str(folder))
    if not found:
        raise ValueError(f"nothing is kept under {key!r}; `transfusion cache ls` lists what is")
    return found


def prune(keys: list[str]) -> int:
    """Remove results; returns the bytes set free. One that is at work is left alone."""
    freed = 0
    for key in keys:
        if store.state(key) != "running":
            freed += store.disk_size(key)
            store.discard(store.run_folder(key))
    return freed

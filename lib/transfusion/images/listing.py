"""What lies in people's folders: images by their suffixes, what is none, files by their names."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

PHOTOGRAPHS = (
    *(".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")  # nobody put them there


def named(folder: Path, names: pd.Series, suffix: str, told: list[str]) -> list[Path]:
    """The file of each name: as it is written, with `suffix`, or, where it has none or another,
    the one image below the folder that is called so but for its suffix."""
    paths = [folder / _portable(name) for name in names]
    paths = [p if p.suffix.lower() in PHOTOGRAPHS else p.with_name(p.name + suffix) for p in paths]
    absent = [i for i, path in enumerate(paths) if not path.is_file()]
    if not absent or not folder.is_dir():
        return paths
    there = photographs(folder, {_stem(names.iloc[i]) for i in absent})
    found = {i: there[_stem(names.iloc[i])] for i in absent if _stem(names.iloc[i]) in there}
    if found:
        first = min(found)
        told.append(
            f"{len(found)} images are found by their names but for the suffix or folder, such as "
            f"{names.iloc[first]!r}: {found[first].relative_to(folder)}"
        )
    return [found.get(i, path) for i, path in enumerate(paths)]


def in_no_row(folder: Path, files: list[Path], table: Path) -> list[str]:
    """What to tell of images that lie below the folder and are none of a table's files."""
    named = {os.path.normpath(file) for file in files}
    rest = [path for path in images_below(folder) if os.path.normpath(path) not in named]
    if not rest:
        return []
    such = rest[0].relative_to(folder)
    return [f"{len(rest)} images lie there in no row of {table.name}, such as {such}"]


def _portable(name: str) -> str:
    """A path as Windows writes it, as it is written elsewhere."""
    return name.replace("\\", "/")


def _stem(name: str) -> str:
    """A file's name without its folders and the suffix of an image."""
    path = Path(_portable(name))
    return path.stem if path.suffix.lower() in PHOTOGRAPHS else path.name


def photographs(folder: Path, wanted: set[str] | None = None) -> dict[str, Path]:
    """Images anywhere below a folder, by name without suffix; one name twice is an error."""
    found: dict[str, Path] = {}
    for path in images_below(folder):
        if wanted is not None and path.stem not in wanted:
            continue
        if path.stem in found:
            both = [str(p.relative_to(folder)) for p in (found[path.stem], path)]
            raise ValueError(f"{path.stem} is {' and '.join(both)}: say which (images=)")
        found[path.stem] = path
    return found


def subfolders(place: Path) -> list[Path]:
    """Those that somebody put there, in the order of their names."""
    return sorted(p for p in place.iterdir() if p.is_dir() and not _is_hidden(p.name))


def _is_hidden(name: str) -> bool:
    """Named with a dot in front, as a Mac and editors leave them, or by the system."""
    return name.startswith(".") or name in SYSTEM


def images_below(folder: Path) -> list[Path]:
    return [path for path in _everything(folder) if path.suffix.lower() in PHOTOGRAPHS]


def others_below(folder: Path) -> list[Path]:
    return [path for path in _everything(folder) if path.suffix.lower() not in PHOTOGRAPHS]


def _everything(folder: Path) -> list[Path]:
    """Files below a folder, but for what is hidden, in the order of their names."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in paths if not any(map(_is_hidden, p.relative_to(folder).parts)))

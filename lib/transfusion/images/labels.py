"""Tables of labels as people write them: read as they are meant, or refused in words.

What was taken for something else than it is called is told (`told`), never guessed silently.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

# What columns are called beside their own names, in any case, with blank, `-` or `_` or nothing
# between words; of several the first.
COLUMNS = {
    "image": (
        *("imageid", "imageindex", "imagename", "imagepath", "filename", "file", "filepath"),
        *("path", "idcode", "img", "name"),
    ),
    "patient": ("patientid", "subject", "subjectid", "person", "caseid"),
    "split": ("set", "subset", "partition", "trainvaltest"),
}
WORDS = {
    "train": ("train", "training", "trainset"),
    "valid": ("valid", "val", "validation", "validate", "dev", "validset", "valset"),
    "test": ("test", "testing", "testset", "holdout"),
}
SEPARATORS = (",", ";", "\t", "|")
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read(path: Path) -> pd.DataFrame:
    """All values as text without blanks around them, columns by their names.

    Separated by commas, semicolons, tabs or bars, whichever the header has most of; in UTF-8, or
    UTF-16 that is marked as such. Raises ValueError where it is not: no rows, another encoding, two
    columns of one name, a row of another length than the header.
    """
    text = _text(path)
    header = text.lstrip().partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows = [row for row in lines if any(map(str.strip, row))]
    if len(rows) < 2:
        raise ValueError(f"{path} has no rows")
    names, *values = ([value.strip() for value in row] for row in rows)
    while names and not names[-1]:  # a separator at the end of each line
        names.pop()
    _check_names(names, path)
    frame = [_fitted(row, len(names), number, path) for number, row in enumerate(values, start=2)]
    return pd.DataFrame(frame, columns=names)


def _text(path: Path) -> str:
    content = path.read_bytes()
    encoding = next((e for mark, e in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        where = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {where} is not UTF-8: save the table as UTF-8") from None


def _check_names(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: several columns are called {', '.join(map(repr, twice))}")


def _fitted(row: list[str], length: int, number: int, path: Path) -> list[str]:
    """A row without empty values beyond the header."""
    if len(row) < length or any(row[length:]):
        raise ValueError(f"{path}: row {number} has {len(row)} values, the header has {length}")
    return row[:length]


def plain(name: str) -> str:
    """A name without what people spell differently: case, blanks, `-` and `_`."""
    return re.sub(r"[\s_-]", "", name).lower()


def role(
    table: pd.DataFrame, name: str, told: list[str], targets: Sequence[str] = ()
) -> pd.DataFrame:
    """The table with the column that is meant by `image`, `patient` or `split` called so, which is
    none of its `targets`."""
    if name in table:
        return table
    others = [column for column in reversed(list(table.columns)) if column not in targets]
    usual = {plain(column): column for column in others}
    found = next((usual[word] for word in (name, *COLUMNS[name]) if word in usual), None)
    if found is None:
        return table
    told.append(f"column {found!r} is taken for the {name}")
    return table.rename(columns={found: name})


def split_named(word: str) -> str | None:
    """`train`, `valid` or `test` by any of its usual names; None for what is no split."""
    return next((split for split, words in WORDS.items() if plain(word) in words), None)


def splits(column: pd.Series, path: Path) -> np.ndarray:
    found = column.map(split_named)
    if found.isna().any():
        unknown = sorted(set(column[found.isna()]))[:5]
        raise ValueError(
            f"{path}: column {column.name!r} has {', '.join(map(repr, unknown))}; expected "
            f"{', '.join(WORDS)}, or such words as {', '.join(w[1] for w in WORDS.values())}"
        )
    return found.to_numpy()


def patients(column: pd.Series, path: Path) -> pd.Series:
    """One spelling a patient: `700.0`, which spreadsheets make of numbers, is `700`."""
    blank = np.flatnonzero(column == "")
    if len(blank):
        raise ValueError(
            f"{path}: {_rows(blank)} no patient; name each patient, or leave the column out, and "
            "every image counts as its own"
        )
    return column.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)


def integers(column: pd.Series, path: Path, *, low: int = 0, below: int) -> pd.Series:
    """Labels as integers from `low` to `below` - 1; `1,0` and `1.0` are 1."""
    values = pd.to_numeric(column.astype(str).str.replace(",", "."), errors="coerce")
    bad = values.isna() | (values != values.round()) | (values < low) | (values >= below)
    if bad.any():
        rows = "; ".join(f"row {i + 2}: {column[i]!r}" for i in np.flatnonzero(bad)[:5])
        raise ValueError(
            f"{path}: {bad.sum()} labels of column {column.name!r} out of range "
            f"(integers {low} to {below - 1}): {rows}"
        )
    return values.astype(int)


def check_grades(column: pd.Series, path: Path, told: list[str]) -> None:
    """Labels count from 0: raises ValueError where no image has it, and tells of other gaps."""
    absent = sorted(set(range(int(column.max()) + 1)) - set(column))
    if 0 in absent:
        there = ", ".join(map(str, sorted(set(column))[:10]))
        raise ValueError(
            f"{path}: labels of column {column.name!r} are {there}: no image has 0; labels count "
            "from 0"
        )
    if absent:
        told.append(f"no image has label {', '.join(map(str, absent))} of column {column.name!r}")


def once(table: pd.DataFrame, path: Path, told: list[str]) -> pd.DataFrame:
    """Each image in one row: what is said twice is told, what is said differently an error."""
    again = table["image"].duplicated(keep=False)
    if not again.any():
        return table
    alike = table.drop_duplicates()
    twice = alike["image"][alike["image"].duplicated()].unique()
    if len(twice):
        where = [f"{name} in {_rows(np.flatnonzero(table['image'] == name), '')}" for name in twice]
        raise ValueError(f"{path} says different things of one image: {'; '.join(where[:5])}")
    told.append(f"{len(table) - len(alike)} rows say again what another says, and count once")
    return alike.reset_index(drop=True)


def _rows(places: Sequence[int] | np.ndarray, verb: str = " have") -> str:
    """`row 2 has`, `rows 2, 25 have`; numbers are those of a spreadsheet."""
    numbers = ", ".join(str(place + 2) for place in places[:5]) + (
        ", ..." if len(places) > 5 else ""
    )
    if len(places) == 1:
        return f"row {numbers}{' has' if verb else ''}"
    return f"rows {numbers}{verb}"

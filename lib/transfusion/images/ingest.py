"""From what people download to one prepared store: checked, decoded once, pinned by content.

A layout reads one kind of folder or file; what follows is the same for all: patients in one split
only, a digest of the content, RGB, resized, written.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image, ImageOps

from transfusion import config
from transfusion.images import folds, layouts, stored, tasks

T = TypeVar("T")
STRETCH = 16  # images a thread takes at a time: few, as some stretches are held
TOO_DEEP = "more than 8 bits a channel"
MISSING = b"missing"  # in place of a checksum


def prepare(name: str, *, size: int, n: int | None = None, seed: int = 0, **options) -> xr.Dataset:
    """Images by name: a drawn set of `n`, or a collection (options of `ingest`).

    The public door: `prepare("fundus", size=64, n=2000)`, `prepare("eyepacs", size=64,
    folder=DIR)`. Splits of a drawn set are 60, 15 and 25 %; of a collection `n` takes as many
    images, at random by `seed`, which also deals its splits where it has none.
    """
    if name in tasks.SYNTHETIC:
        if not n or n < 20:
            raise ValueError(f"a synthetic set needs n >= 20 images, got n={n}")
        valid, test = 3 * n // 20, n // 4
        counts = dict(train=n - valid - test, valid=valid, test=test)
        return tasks.load(config.Data(name=name, size=size, seed=seed, **counts))
    full = ingest(name, size=size, seed=seed, **options)
    found = stored.read(tasks.prepared_path(full, size))
    if n is None:
        return found
    if n > found.sizes["image"]:
        raise ValueError(f"n={n} asked for, {full} has {found.sizes['image']} images")
    # Another stream than that which deals splits, or those of the first split would be taken.
    rows = np.random.default_rng([seed, n]).permutation(found.sizes["image"])[:n]
    return found.isel(image=np.sort(rows))


def ingest(
    name: str,
    *,
    size: int,
    folder: str | Path | None = None,
    layout: str | None = None,
    labels: str | Path | None = None,
    target: Sequence[str] | None = None,
    patient: str | None = None,
    image: str | None = None,
    images: str | None = None,
    uncertain: str | None = None,
    tolerance: float = 0.01,
    allow_outside: bool = False,
    seed: int = 0,
    told: list[str] | None = None,
) -> str:
    """Check, decode and resize a collection once; returns its full name `name@digest`.

    `folder` is where it lies: a folder, or the npz file of a MedMNIST set, which alone may be None
    (downloaded). `layout` is one of LAYOUTS, by default the one that the name or the place stands
    for. `labels` is another table, `target` its label columns, `patient` and `image` its columns of
    patients and of images, `images` the subfolder of the images, `uncertain` one of UNCERTAIN
    (CheXpert). `size` in pixels. `allow_outside` takes images, too, that a table or a link leads to
    out of `folder` (or the `images` that are named). What was taken for something else than it is
    called, or looks amiss, is added to `told`, and in the attrs.
    Raises ValueError or FileNotFoundError naming what is wrong: the folder, the table, a missing
    column, a label out of range, an option that the layout lacks, patients in two splits, images
    outside, or more than the share `tolerance` of images that are missing, truncated or no images
    (fewer are left out and listed in the attrs).
    """
    _check_request(name, size)
    place = Path(folder).expanduser() if folder else _download(name, size)
    usual = _usual_layout(name, place, labels)
    options = dict(labels=labels, target=target, patient=patient, image=image, images=images)
    found = _read(layout or usual, place, name, seed, options | {"uncertain": uncertain})
    _check(found, place)
    if not allow_outside:
        _check_inside(found.images, [place, place / (images or "")])
    problems = _missing(found, tolerance)
    # A layout that is not the usual one may read other tasks from the same bytes.
    marks = found.policy + (layout if layout and layout != usual else "")
    sums = _sums(found, problems)
    found.told += _one_sided(found) + _identical(found, sums)
    if told is not None:
        told += found.told
    head = marks + found.table.to_csv(index=False)
    full = f"{name}@{hashlib.sha256(head.encode() + b''.join(sums)).hexdigest()[:12]}"
    path = tasks.prepared_path(full, size)
    if not path.exists():
        _write(path, found, full, size, tolerance, problems)
    return full


def _check_request(name: str, size: int) -> None:
    config.Data(name=name, size=size)  # raises where training could not ask for it
    if name in tasks.SYNTHETIC:
        raise ValueError(f"{name!r} names drawn images; give yours another name")
    config.plain(name)


def _usual_layout(name: str, place: Path, labels: str | Path | None) -> str:
    """The layout that a name stands for, or else what lies there."""
    if name in layouts.LAYOUTS:
        return name
    if name.endswith("mnist") or place.suffix == ".npz":
        return "medmnist"
    if (place / "train.npz").is_file():
        return "jpegs"
    tables = labels or any(place.glob("*.csv"))
    folders = place.is_dir() and any(path.is_dir() for path in place.iterdir())
    return "imagefolder" if folders and not tables else "folder"


def _read(layout: str, place: Path, name: str, seed: int, options: dict) -> layouts.Collection:
    """What the layout finds; an option that it does not take is an error."""
    reader = layouts.LAYOUTS[config.one_of(layout, layouts.LAYOUTS, "layout")]
    takes = signature(reader).parameters
    given = {option: value for option, value in options.items() if value is not None}
    foreign = [option for option in given if option not in takes]
    if foreign:
        possible = ", ".join(option for option in options if option in takes) or "none"
        raise ValueError(f"layout {layout!r} takes no {', '.join(foreign)}; it takes: {possible}")
    always = {"name": name, "seed": seed}
    return reader(place, **{k: v for k, v in (always | given).items() if k in takes})


def _check(found: layouts.Collection, place: Path) -> None:
    splits = found.table["split"]
    unknown, empty = set(splits) - set(folds.SPLITS), set(folds.SPLITS) - set(splits)
    if unknown:
        raise ValueError(f"{place}: splits {sorted(unknown)}; possible: {', '.join(folds.SPLITS)}")
    if empty:
        raise ValueError(f"{place}: no image of split {', '.join(sorted(empty))}")
    folds.check_patients(found.table.iloc[:, -2], splits)


def _check_inside(images: Sequence[Path | np.ndarray], places: list[Path]) -> None:
    """Raise ValueError for images that a table or a link leads to out of all these: who wrote it
    may be a stranger, and whatever it names would be read."""
    within = tuple(os.path.join(os.path.realpath(place), "") for place in places)
    files = [image for image in images if isinstance(image, Path)]
    outside = [file for file in files if not os.path.realpath(file).startswith(within)]
    if outside:
        raise ValueError(
            f"{len(outside)} of {len(images)} images lie outside {places[-1]}, such as "
            f"{outside[0]} ({os.path.realpath(outside[0])}); if that is meant: --allow-outside"
        )


def _download(name: str, size: int) -> Path:
    """The npz file of a MedMNIST set of the next size up, fetched and verified by its package."""
    if not name.endswith("mnist"):
        raise ValueError(f"where does {name!r} lie? Only MedMNIST sets are downloaded; give --from")
    try:
        import medmnist
    except ImportError:
        raise ValueError(
            f"to download {name} install the package medmnist: pip install medmnist; "
            f"or give its file: --from {name}.npz"
        ) from None
    about = medmnist.INFO[config.one_of(name, medmnist.INFO, "MedMNIST set")]
    kind = getattr(medmnist, about["python_class"])
    stored = min([s for s in kind.available_sizes if s >= size] or [max(kind.available_sizes)])
    found = kind(split="val", download=True, size=stored)
    return Path(found.root) / f"{name}{found.size_flag}.npz"


def _missing(found: layouts.Collection, tolerance: float) -> dict[int, str]:
    """Files that are not there, by number; too many are told before anything is read."""
    absent = [i for i, f in enumerate(found.images) if isinstance(f, Path) and not f.is_file()]
    problems = dict.fromkeys(absent, "No such file")
    _judge(problems, found, tolerance)
    return problems


def _judge(problems: dict[int, str], found: layouts.Collection, tolerance: float) -> None:
    if len(problems) > tolerance * len(found.images):
        listed = [f"\n  {_called(found, i)}: {problems[i]}" for i in sorted(problems)[:10]]
        raise ValueError(
            f"{len(problems)} of {len(found.images)} images cannot be used, more than the "
            f"{tolerance:.0%} allowed:{''.join(listed)}"
        )


def _called(found: layouts.Collection, i: int) -> str:
    image = found.images[i]
    return str(image if isinstance(image, Path) else found.table["image"].iloc[i])


def _sums(found: layouts.Collection, problems: dict[int, str]) -> list[bytes]:
    """Of each image its sha256; unreadable files join `problems`."""

    def one(i: int) -> bytes:
        try:
            return MISSING if i in problems else hashlib.sha256(_content(found.images[i])).digest()
        except OSError as error:
            problems[i] = error.strerror or "unreadable"
            return MISSING

    return list(_each(one, len(found.images), "read"))


def _identical(found: layouts.Collection, sums: list[bytes]) -> list[str]:
    """Images that are the same to the byte and lie in several splits, or have several labels."""
    said = found.table.iloc[:, 1:].drop(columns=found.table.columns[-2]).apply(tuple, axis=1)
    frame = pd.DataFrame({"sum": sums, "said": said, "image": found.table["image"]})
    frame = frame[frame["sum"] != MISSING]
    groups = frame[frame["sum"].duplicated(keep=False)].groupby("sum", sort=False)
    apart = [group["image"].tolist() for _, group in groups if group["said"].nunique() > 1]
    if not apart:
        return []
    some = "; ".join(" = ".join(names[:3]) for names in apart[:3])
    count = sum(map(len, apart))
    return [f"{count} images are identical to others of another split or label, such as {some}"]


def _one_sided(found: layouts.Collection) -> list[str]:
    """Splits in which a question has one answer alone, so that they have no AUC of it."""
    asked, task = found.table.iloc[:, 1:-2], found.attrs
    if task["task"] == "classes":
        return []
    positive = asked >= task.get("positive_from", 1)
    lost = [
        f"all images of {split} have one answer to {column!r}: it has no AUC"
        for split, rows in positive.groupby(found.table["split"])
        for column in asked.columns
        if rows[column].nunique() == 1
    ]
    return lost


def _content(image: Path | np.ndarray) -> bytes:
    return image.read_bytes() if isinstance(image, Path) else image.tobytes()


def _write(
    path: Path,
    found: layouts.Collection,
    full: str,
    size: int,
    tolerance: float,
    problems: dict[int, str],
) -> None:
    """Decode and write, holding few images; what cannot be decoded joins `problems`."""

    def rest() -> xr.Dataset:
        _judge(problems, found, tolerance)
        names = found.table["image"].to_numpy()
        skipped = [f"{names[i]}: {problems[i]}" for i in sorted(problems)] + found.left_out
        table = found.table[[i not in problems for i in range(len(names))]]
        target = table.iloc[:, 1:-2].to_numpy(np.int16)
        return tasks.labels(
            target if found.attrs["task"] == "findings" else target[:, 0],
            table.iloc[:, -2],
            table["split"],
            {"name": full, "skipped": skipped, "told": found.told, **found.attrs},
        )

    shape = (len(found.images), 3, size, size)
    stored.write(path, _decoded(found.images, size, problems), shape, rest)


def _decoded(
    images: Sequence[Path | np.ndarray], size: int, problems: dict[int, str]
) -> Iterator[np.ndarray]:
    """RGB pixels (3, size, size) uint8 of each image but those that join `problems`."""

    def one(i: int) -> np.ndarray | None:
        try:
            if i not in problems:
                with _open(images[i]) as image:
                    return _square(image, size)
        except Image.DecompressionBombError:
            problems[i] = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: make it smaller"
        except (OSError, ValueError, SyntaxError) as error:
            deep = str(error) == TOO_DEEP
            problems[i] = TOO_DEEP if deep else "truncated or not an image"
        return None

    return (found for found in _each(one, len(images), "decode") if found is not None)


def _open(image: Path | np.ndarray) -> Image.Image:
    if isinstance(image, Path):
        return Image.open(image)
    return Image.open(io.BytesIO(image.tobytes())) if image.ndim == 1 else Image.fromarray(image)


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Upright, on black, resized with antialiasing and padded, not cropped: a sign at the rim must
    not be lost."""
    if _is_deep(image):  # Pillow would cut off what is above 255, or below its highest eight bits
        raise ValueError(TOO_DEEP)
    upright = ImageOps.exif_transpose(image)
    if "A" in upright.getbands() or "transparency" in upright.info:
        seen = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", seen.size, "black"), seen)
    square = ImageOps.pad(upright.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(square).transpose(2, 0, 1)


def _is_deep(image: Image.Image) -> bool:
    """By the mode that Pillow chose, and by that of the file, of which it may keep less."""
    stored = [str(tile[3]) for tile in getattr(image, "tile", [])]
    return image.mode[0] in "IF" or any(";16" in mode or ";32" in mode for mode in stored)


def _each(work: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """What `work` gives for every number below `count`, in order; in threads, as reading and
    decoding leave the GIL, which are a few stretches ahead of whoever takes it and no further."""
    from tqdm import tqdm  # not in a box, which loads this module, too

    def stretch(start: int) -> list[T]:
        return [work(i) for i in range(start, min(start + STRETCH, count))]

    workers = os.cpu_count() or 1
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=count, desc=what, unit="image", disable=None) as bar,
    ):
        begun = (pool.submit(stretch, start) for start in range(0, count, STRETCH))
        ahead = deque(islice(begun, 2 * workers))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(islice(begun, 1))
            yield from done
            bar.update(len(done))

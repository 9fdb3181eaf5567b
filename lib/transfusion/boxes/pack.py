"""Making a box: what a study still asks for, as a folder that travels."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from transfusion import config, provenance, records, store
from transfusion.boxes import box
from transfusion.experiments import plan
from transfusion.images import stored, tasks
from transfusion.studies import grouping, params, schedule

# Operations a second, to say beforehand how long a box takes. A core with AMX
# is `grouping.CORE`, and with AVX2 alone it does a third of that.
SPEEDS = {
    "an H200": grouping.GPU,
    "a core with AMX": grouping.CORE,
    "a core with AVX2 alone": grouping.CORE / 3,
}
IN_A_BOX = ("LICENSE", "README.md", "box.json", "images", "sources", "transfusion", "weights")
BESIDE = 4000  # bytes of licence, README and what else box.json says
UNITS = {"": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
README = """# A box of {studies}

{runs} trainings and comparisons, most valuable first, packed at commit {commit}.
It needs Python 3.11 to 3.13 with torch 2.11 or later, torchvision, numpy, xarray, pandas,
scikit-learn and safetensors, and timm if a network is one of its; and zarr and pydantic, which
most machines lack (`pip install zarr pydantic`, or from wheels where there is no network).

There, for nine minutes; again with the same folder it goes on:

    python -m transfusion work . --minutes 9 --out ../back

At home, in the checkout that made it:

    .venv/bin/transfusion merge back
"""


class Packed(NamedTuple):
    """What is in a box, and what is not."""

    size: int  # bytes
    entries: list[box.Entry]
    left_out: list[box.Entry]  # did not fit
    pixels: int  # that its trainings see
    operations: float


def pack(
    names: list[str],
    out: Path,
    *,
    lossy: int | None = None,
    limit: str | None = None,
) -> Packed:
    """Make a box of what has no record yet of these studies, or chapters as `cells:performance`.

    They are given in order of value; `lossy` is a WebP quality, 1 to 100; `limit` a size such as
    `60MB`: what does not fit is left out, from the end. Raises ValueError for what cannot run or be
    packed, or where nothing is missing, FileExistsError where `out` holds other things.
    """
    if lossy is not None and not 1 <= lossy <= 100:
        raise ValueError(f"lossy {lossy}: expected a quality of 1 to 100")
    most = None if limit is None else _bytes(limit)
    if out.is_dir() and {path.name for path in out.iterdir()} - set(IN_A_BOX):
        raise FileExistsError(f"{out} holds other things than a box: give another folder")
    wanted = list(_wanted(names))
    if not wanted:
        raise ValueError("nothing to pack: all that was asked for is recorded, or needs no run")
    schedule.check([entry.spec for entry in wanted])
    with store.atomic(out) as folder:
        folder.mkdir()
        _library(folder)
        needed = {entry.spec.key: _files(entry.spec, lossy) for entry in wanted}
        written: dict[str, int] = {}
        for name, write in [item for files in needed.values() for item in files.items()]:
            if name not in written:
                write(folder / name)
                written[name] = _size(folder / name)
        kept = _fitting(wanted, needed, written, most, _size(folder / "transfusion"))
        used = {name for entry in kept for name in needed[entry.spec.key]}
        for name in written.keys() - used:
            store.discard(folder / name)
        _describe(folder, names, kept)
        runs = [e.spec for e in kept if isinstance(e.spec, config.Run)]
        return Packed(
            _size(folder),
            kept,
            wanted[len(kept) :],
            sum(r.optim.steps * r.optim.batch * r.data.size**2 for r in runs),
            sum(schedule.cost(entry.spec) for entry in kept),
        )


def _bytes(limit: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(\w*)", limit)
    if not found or found[2] not in UNITS:
        raise ValueError(f"limit {limit!r}: expected a size such as 60MB")
    return float(found[1]) * UNITS[found[2]]


def _wanted(names: list[str]) -> Iterator[box.Entry]:
    """What is missing, each once, as named, by repetition; sources before their targets.

    Networks of a comparison are among them, as weights do not travel; a source that was pretrained
    here is not, for it does. What was begun in bfloat16 goes on in it: such a machine is borrowed.
    """
    seen: set[str] = set()
    for study, chapter in _chapters(names):
        started = records.begun(store.records_folder(study))
        asked = params.specs(study, chapter)
        done = records.done(study, asked, fast="bfloat16")
        missing = [spec for spec in asked if spec.key not in done]
        missing.sort(key=lambda spec: (getattr(spec, "seed", 0), spec.data.fold))
        for spec in (each for wanted in missing for each in _with_needs(wanted)):
            if spec.key not in seen:
                seen.add(spec.key)
                yield box.Entry(study, spec, started.get(records.repetition(spec)))


def _chapters(names: list[str]) -> Iterator[tuple[str, str]]:
    for study, _, chapter in (name.partition(":") for name in names):
        config.one_of(study, params.studies(), "study")
        for each in [chapter] if chapter else params.chapters(study):
            yield study, config.one_of(each, params.chapters(study), f"chapter of {study}")


def _with_needs(spec: config.Spec) -> Iterator[config.Spec]:
    for need in schedule.needs(spec):
        if isinstance(need, config.Run) and not (_is_source(need) and store.complete(need.key)):
            yield need
    yield spec


def _is_source(run: config.Run) -> bool:
    return run.seed == plan.SOURCE_SEED


def _files(spec: config.Spec, lossy: int | None) -> dict[str, Callable[[Path], None]]:
    """The files that a run or comparison needs in a box, and what writes each."""
    found: dict[str, Callable[[Path], None]] = {}
    for need in [*schedule.needs(spec), spec]:
        if isinstance(need, config.Data) and need.name not in tasks.SYNTHETIC:
            found[box.packed_images(need)] = _images(need, lossy)
        elif isinstance(need, config.Run | config.Baseline):
            if isinstance(need.init.source, str):
                name = need.init.source
                found[box.packed_weights(name)] = _weights(name)
            elif need.init.source is not None and store.complete(need.init.source.key):
                found[f"sources/{need.init.source.key}"] = _source(need.init.source)
    pretrained = [n for n in found if n.startswith("sources/")]
    return {n: w for n, w in found.items() if not _only_of_source(n, spec, pretrained)}


def _only_of_source(name: str, spec: config.Spec, pretrained: list[str]) -> bool:
    """Whether images are needed by nothing but a pretraining that is not done again."""
    if not pretrained or not name.startswith("images/"):
        return False
    runs = spec.runs if isinstance(spec, config.Comparison) else (spec,)
    return name not in {box.packed_images(run.data) for run in runs}


def _images(spec: config.Data, lossy: int | None) -> Callable[[Path], None]:
    whole = tasks.prepared_path(spec.name, spec.size)
    return lambda path: box.pack_images(stored.read(whole), path, lossy)


def _weights(name: str) -> Callable[[Path], None]:
    return lambda path: box.pack_weights(name, path)


def _source(run: config.Run) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        result = store.read(run.key)
        assert result is not None  # it is complete
        for record in [*records.made_of("", run, result), *box.weights_records("", run.key)]:
            records.append(path, record)

    return write


def _library(folder: Path) -> None:
    kinds = shutil.ignore_patterns("__pycache__")
    shutil.copytree(provenance.LIBRARY, folder / "transfusion", ignore=kinds)
    (folder / "transfusion" / "COMMIT").write_text(provenance.facts()["commit"])
    shutil.copy(store.HOME / "LICENSE", folder)


def _fitting(
    wanted: list[box.Entry],
    needed: dict[str, dict],
    written: dict[str, int],
    most: float | None,
    library: int,
) -> list[box.Entry]:
    """As many, from the first, as fit with all that they need."""
    kept, used, size = list[box.Entry](), set[str](), float(library + BESIDE)
    for entry in wanted:
        more = needed[entry.spec.key].keys() - used
        size += sum(written[name] for name in more)
        indented = json.dumps(config.dump(entry.spec), indent=1)
        size += 1.2 * len(indented)  # as it stands in box.json, three levels deeper
        if most is not None and size > most:
            break
        used |= more
        kept.append(entry)
    if not kept:
        raise ValueError(f"not even the first run fits: it takes {size / 1e3:,.0f} kB")
    return kept


def _describe(folder: Path, names: list[str], kept: list[box.Entry]) -> None:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "transfusion" not in p.parts]
    commit = provenance.facts()["commit"]
    told = {
        "commit": commit,
        "code": provenance.code(),
        "entries": [
            {"study": e.study, "precision": e.precision, "spec": config.dump(e.spec)} for e in kept
        ],
        "files": {
            str(p.relative_to(folder)): store.checksum(p) for p in files if p.parent != folder
        },
    }
    store.write_json(folder / "box.json", told | {"sha256": box.box_digest(told)})
    words = README.format(studies=", ".join(names), runs=len(kept), commit=commit)
    (folder / "README.md").write_text(words)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files)


def told(packed: Packed, out: Path) -> str:
    """What a box holds and takes, in words."""
    lines = [
        f"{out}: {packed.size / 1e6:.1f} MB, {len(packed.entries)} trainings and comparisons, "
        f"{packed.pixels:.3g} pixels to be seen"
    ]
    lines += [
        f"about {packed.operations / speed / 60:.1f} min of {what}"
        for what, speed in SPEEDS.items()
    ]
    lines[1:] = ["; ".join(lines[1:]) + " (reckoned, without starting)"]
    if packed.left_out:
        lines.append(f"left out, as they do not fit: {len(packed.left_out)}")
        lines += [f"  {entry.study} {_named(entry.spec)}" for entry in packed.left_out]
    return "\n".join(lines)


def _named(spec: config.Spec) -> str:
    if isinstance(spec, config.Comparison):
        return f"{spec.key} comparison of {len(spec.runs)} networks"
    if isinstance(spec, config.Baseline):
        what = f"{spec.features} {spec.model} {spec.init.name}" if spec.model else spec.features
        return f"{spec.key} baseline {what} fold {spec.data.fold}"
    return f"{spec.key} {spec.model} {spec.init.name} fold {spec.data.fold} seed {spec.seed}"

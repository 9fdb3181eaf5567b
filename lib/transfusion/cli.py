"""The command `transfusion`: a thin skin over the library."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


INSTALL = "`make install` brings all, `pip install --editable '.[read,train]'` what it needs"
BEGUN = time.monotonic()  # before libraries are loaded, which takes some of a borrowed minute


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 only if everything asked for was done."""
    arguments = _parser().parse_args(argv)
    for name in ("TRANSFUSION_CACHE", "TRANSFUSION_BUILD"):
        if os.environ.get(name):  # relative to here, wherever a notebook or a job works
            os.environ[name] = os.path.abspath(os.environ[name])
    try:
        arguments.command(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        if arguments.debug:
            raise
        print(f"transfusion: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if arguments.debug:
            raise
        print(f"transfusion: {error.name} is missing here; {INSTALL}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("transfusion: interrupted; finished runs are kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="transfusion", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _verb(verbs, "run", _run, "compute what a study misses and render its chapters")
    run.add_argument("study")
    run.add_argument("--chapter", action="append", help="only this one (may be repeated)")
    run.add_argument("--jobs", type=_count, help="jobs at once; default: cores, or the profile's")
    run.add_argument("--profile", default="local", help="a folder of params/profiles")
    run.add_argument("--dry-run", action="store_true", help="only tell what would run, and why")

    group = _verb(verbs, "group", _group, "compute groups of runs, as a batch job does")
    group.add_argument("study")
    group.add_argument("name", nargs="+")
    group.add_argument("--jobs", type=_count, help="workers; default: this process alone")

    share = _verb(verbs, "share", _share, "take part in a run on several devices (for torchrun)")
    share.add_argument("spec", help="the run, as JSON")
    share.add_argument("checkpoint_seconds", type=float)

    chapter = _verb(verbs, "chapter", _chapter, "render chapters, as a batch job does")
    chapter.add_argument("study")
    chapter.add_argument("name", nargs="+")
    chapter.add_argument("--jobs", type=_count, help="processes; default: this one alone")

    status = _verb(verbs, "status", _status, "what is done, started, failed or missing")
    status.add_argument("study")
    status.add_argument("--json", action="store_true", help="one JSON object, a field a chapter")

    plan = _verb(verbs, "plan", _plan, "what a study would compute, and for how long")
    plan.add_argument("study")
    plan.add_argument("--json", action="store_true", help="one JSON object, a field a chapter")

    pack = _verb(verbs, "pack", _pack, "make a box: a study that travels to another machine")
    pack.add_argument("study", nargs="+", help="or STUDY:CHAPTER, in order of value")
    pack.add_argument("--out", type=Path, required=True, metavar="BOX")
    pack.add_argument(
        "--lossy", type=int, metavar="Q", help="images as WebP of quality Q, 1 to 100"
    )
    pack.add_argument("--limit", metavar="SIZE", help="such as 60MB; the rest is left out")

    work = _verb(verbs, "work", _work, "compute in a box what fits into the minutes")
    work.add_argument("box", type=Path)
    work.add_argument("--minutes", type=float, required=True)
    work.add_argument("--jobs", type=int, help="processes; default: cores, or measured on a GPU")
    work.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the records")

    merge = _verb(verbs, "merge", _merge, "add the records that a box or another clone has brought")
    merge.add_argument("folder", nargs="+", type=Path)

    cache = _verb(verbs, "cache", _cache, "what is kept: list it, hash it again, clear it")
    cache.add_argument("what", choices=["ls", "verify", "prune", "compact"])
    cache.add_argument("study", nargs="?", help="compact: whose records are joined in few files")
    cache.add_argument("--yes", action="store_true", help="prune: remove, not only list")

    book = _verb(verbs, "book", _book, "render what results are there, and build the book")
    book.add_argument("--study", default="quick", help="the study shown on the main pages")
    book.add_argument("--zip", action="store_true", help="also as one file, to pass on")

    strip = _verb(verbs, "strip", _strip, "take what an execution left out of notebooks, in place")
    strip.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")

    data = _verb(verbs, "data", _data, "check and prepare a collection of images")
    data.add_argument("name", help="eyepacs, nih, chexpert, a MedMNIST set, or a name of your own")
    data.add_argument("--from", dest="folder", type=Path, help="default: MedMNIST's download")
    data.add_argument("--size", type=int, required=True, help="pixels, square")
    data.add_argument("--layout", help="how it lies there; default: what NAME or the place tells")
    data.add_argument("--labels", type=Path, help="the table, if it is not the layout's own")
    data.add_argument("--target", action="append", help="label column (may be repeated)")
    data.add_argument("--patient", help="column that tells patients apart")
    data.add_argument("--images", help="the subfolder that holds the images")
    data.add_argument("--uncertain", help="CheXpert's uncertain labels: zeros, ones or ignore")

    weights = _verb(verbs, "weights", _weights, "check and keep pretrained weights")
    weights.add_argument("model", help="a model of transfusion.models, such as resnet50")
    weights.add_argument("--from", dest="path", type=Path, help="default: torchvision's download")
    weights.add_argument("--name", default="imagenet")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text}")
    return int(text)


def _verb(verbs, name: str, command, text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(command=command)
    return verb


# Each command imports what it needs: `--help` should not wait for torch.


def _run(arguments: argparse.Namespace) -> None:
    from transfusion.studies import batch

    names = ("jobs", "profile", "dry_run")
    options = {n: getattr(arguments, n) for n in names}
    batch.run(arguments.study, arguments.chapter, **options)


def _group(arguments: argparse.Namespace) -> None:
    from transfusion.studies import grouping

    grouping.compute(arguments.study, *arguments.name, jobs=arguments.jobs)


def _share(arguments: argparse.Namespace) -> None:
    from transfusion import config
    from transfusion.training import fit

    run = config.load(json.loads(arguments.spec))
    if not isinstance(run, config.Run):
        raise ValueError(f"only a run can be shared by several devices, got {arguments.spec}")
    fit.take_part(run, arguments.checkpoint_seconds)


def _chapter(arguments: argparse.Namespace) -> None:
    from transfusion.pages import build
    from transfusion.studies import render

    if arguments.jobs:
        for name in arguments.name:
            render.checked_parameters(arguments.study, name)
        places = [(arguments.study, name) for name in arguments.name]
        return build.chapters(places, arguments.jobs)
    for name in arguments.name:
        render.chapter(arguments.study, name)


def _status(arguments: argparse.Namespace) -> None:
    from transfusion.studies import status

    _show(status.status(arguments.study), arguments.json)


def _plan(arguments: argparse.Namespace) -> None:
    from transfusion.studies import grouping, status

    _show(status.plan(arguments.study), arguments.json)
    if not arguments.json:
        rates = f"{grouping.CORE / 1e9:.0f} GFLOP/s a core, {grouping.GPU / 1e12:.0f} TFLOP/s a GPU"
        print(f"Reckoned at {rates} (measured); runs that another chapter has are counted once.")
        could = status.could_show(arguments.study)
        print("\nWhat claims on final AUC could show, four times in five, in points:")
        print(could.to_string() if len(could) else "known after the tuning")


def _pack(arguments: argparse.Namespace) -> None:
    from transfusion.boxes import pack

    chosen = {name: getattr(arguments, name) for name in ("lossy", "limit")}
    made = pack.pack(arguments.study, arguments.out, **chosen)
    print(pack.told(made, arguments.out))


def _work(arguments: argparse.Namespace) -> None:
    try:
        from transfusion.boxes import work
    except ImportError as error:
        raise ValueError(f"{error.name} is missing here: see the README of the box") from error
    options = {"jobs": arguments.jobs, "begun": BEGUN}
    work.work(arguments.box, arguments.minutes, arguments.out, **options)


def _merge(arguments: argparse.Namespace) -> None:
    from transfusion.boxes import box

    found = box.merge(arguments.folder)
    print(f"{len(found.added)} records added, {len(found.there)} were there already")
    if found.weights:
        print(f"weights of {len(found.weights)} pretrainings: {', '.join(found.weights)}")
    if found.other_code:
        some = ", ".join(found.other_code[:3]) + (" ..." if len(found.other_code) > 3 else "")
        print(f"{len(found.other_code)} made by other code, and as good: {some}")
    if found.refused:
        lines = "\n  ".join(f"{name}: {why}" for name, why in found.refused.items())
        raise ValueError(f"{len(found.refused)} records refused:\n  {lines}")


def _cache(arguments: argparse.Namespace) -> None:
    from transfusion import config, records
    from transfusion.studies import cache, params

    if arguments.what == "compact":
        if not arguments.study:
            raise ValueError("compact: expected a study")
        config.one_of(arguments.study, params.studies(), "study")
        print(f"{records.compact(arguments.study)} files")
        return
    if arguments.what == "ls":
        print(cache.ls().round(2).to_string())
        return
    if arguments.what == "verify":
        damage = cache.verify()
        if len(damage):
            raise ValueError("not whole:\n  " + "\n  ".join(f"{w}: {d}" for w, d in damage.items()))
        print("all that is kept is whole")
        return
    table = cache.ls().loc[cache.superfluous()]
    print(table.round(2).to_string() if len(table) else "nothing that no study needs")
    if arguments.yes:
        print(f"removed, {cache.prune([*table.index]) / 1e6:.1f} MB set free")
    elif len(table):
        print(f"{table['MB'].sum():.1f} MB; nothing was removed: that takes --yes")


def _show(table: pd.DataFrame, as_json: bool) -> None:
    print(table.to_json(orient="index") if as_json else table.round(2).to_string())


def _book(arguments: argparse.Namespace) -> None:
    from transfusion.pages import build

    print(f"The book is at {build.book(arguments.study)}")
    if arguments.zip:
        print(f"and in {build.zipped()}")


def _strip(arguments: argparse.Namespace) -> None:
    from transfusion.studies import render

    for notebook in arguments.notebooks:
        render.strip_file(notebook)


def _data(arguments: argparse.Namespace) -> None:
    from transfusion import config
    from transfusion.images import ingest, tasks

    names = ("size", "folder", "layout", "labels", "target", "patient", "images", "uncertain")
    name = ingest.ingest(arguments.name, **{n: getattr(arguments, n) for n in names})
    print(f"target: {name}")
    attrs = tasks.attrs(config.Data(name=name, size=arguments.size))
    for skipped in attrs["skipped"]:
        print(f"left out: {skipped}", file=sys.stderr)
    if attrs.get("absent"):
        print(f"left out: {attrs['absent']} rows without an image", file=sys.stderr)


def _weights(arguments: argparse.Namespace) -> None:
    from transfusion.networks import weights

    name = weights.import_weights(arguments.model, arguments.path, arguments.name)
    print(f"weights: {{{arguments.model}: {name}}}")

"""The command `transfusion`: a thin skin over the library.

Each command stands below with its arguments, and imports what it needs: `--help` should not wait
for torch. argparse it is, not a library that reads signatures: a box works where nothing but torch
and a few wheels are installed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

INSTALL = "`make install` brings all, `pip install --editable '.[read,train]'` what it needs"
BEGUN = time.monotonic()  # before libraries are loaded, which takes some of a borrowed minute
Argument = tuple[tuple[str, ...], dict[str, Any]]
COMMANDS: dict[str, tuple[Callable, tuple[Argument, ...]]] = {}


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 only if everything asked for was done. An error is told in words."""
    given = vars(_parser().parse_args(argv))
    command, debug = given.pop("command"), given.pop("debug")
    for name in ("TRANSFUSION_CACHE", "TRANSFUSION_BUILD"):
        if os.environ.get(name):  # relative to here, wherever a notebook or a job works
            os.environ[name] = os.path.abspath(os.path.expanduser(os.environ[name]))
    try:
        command(**given)
    except KeyboardInterrupt:
        print("transfusion: interrupted; finished runs are kept", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        print(f"transfusion: {_words(error)}", file=sys.stderr)
        return 1
    return 0


def _words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is missing here; {INSTALL}"
    if isinstance(error, ValueError | OSError | RuntimeError):  # ours say what was expected
        return str(error)
    return f"{type(error).__name__}: {error} (where: transfusion --debug ...)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="transfusion", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, arguments) in COMMANDS.items():
        verb = verbs.add_parser(name, help=function.__doc__, description=function.__doc__)
        verb.set_defaults(command=function)
        for names, options in arguments:
            verb.add_argument(*names, **options)
    return parser


def _takes(*arguments: Argument) -> Callable[[Callable], Callable]:
    """Enter a function as a command: its name, what its docstring says, and these arguments."""

    def enter(function: Callable) -> Callable:
        COMMANDS[function.__name__] = function, arguments
        return function

    return enter


def _arg(*names: str, **options: Any) -> Argument:
    return names, options


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1, got {text}")
    return int(text)


JSON = _arg("--json", action="store_true", help="one JSON object, a field a chapter")


@_takes(
    _arg("study"),
    _arg("--chapter", action="append", help="only this one (may be repeated)"),
    _arg("--jobs", type=_count, help="jobs at once; default: cores, or the profile's"),
    _arg("--profile", default="local", help="a folder of params/profiles"),
    _arg("--dry-run", action="store_true", help="only tell what would run, and why"),
    _arg("--resume-anyway", action="store_true", help="go on from checkpoints of other code"),
)
def run(study, chapter, resume_anyway, **options) -> None:
    """compute what a study misses and render its chapters"""
    from transfusion.studies import batch

    if resume_anyway:  # heard of by every process below
        os.environ["TRANSFUSION_RESUME_ANYWAY"] = "1"
    batch.run(study, chapter, **options)


@_takes(
    _arg("study"),
    _arg("name", nargs="+"),
    _arg("--jobs", type=_count, help="workers; default: this process alone"),
)
def group(study, name, jobs) -> None:
    """compute groups of runs, as a batch job does"""
    from transfusion.studies import grouping

    grouping.compute(study, *name, jobs=jobs)


@_takes(
    _arg("study"),
    _arg("name", nargs="+"),
    _arg("--jobs", type=_count, help="processes; default: this one alone"),
)
def chapter(study, name, jobs) -> None:
    """render chapters, as a batch job does"""
    from transfusion.studies import render

    if jobs:
        from transfusion.pages import build

        for each in name:
            render.checked_parameters(study, each)
        return build.render_all([(study, each) for each in name], jobs)
    for each in name:
        render.chapter(study, each)


@_takes(_arg("study"), JSON)
def status(study, json) -> None:
    """what is done, started, failed or missing"""
    from transfusion.studies import status

    print(_shown(status.status(study), json))


@_takes(_arg("study"), JSON)
def plan(study, json) -> None:
    """what a study would compute, and for how long"""
    from transfusion.studies import grouping, status

    print(_shown(status.plan(study), json))
    if not json:
        rates = f"{grouping.CORE / 1e9:.0f} GFLOP/s a core, {grouping.GPU / 1e12:.0f} TFLOP/s a GPU"
        print(f"Reckoned at {rates} (measured); runs that another chapter has are counted once.")
        could = status.could_show(study)
        print("\nWhat claims on final AUC could show, four times in five, in points:")
        print(could.to_string() if len(could) else "known after the tuning")


def _shown(table, as_json: bool) -> str:
    return table.to_json(orient="index") if as_json else table.round(2).to_string()


@_takes(
    _arg("study", nargs="+", help="or STUDY:CHAPTER, in order of value"),
    _arg("--out", type=Path, required=True, metavar="BOX"),
    _arg("--lossy", type=int, metavar="Q", help="images as WebP of quality Q, 1 to 100"),
    _arg("--limit", metavar="SIZE", help="such as 60MB; the rest is left out"),
)
def pack(study, out, **options) -> None:
    """make a box: a study that travels to another machine"""
    from transfusion.boxes import pack

    print(pack.told(pack.pack(study, out, **options), out))


@_takes(
    _arg("box", type=Path),
    _arg("--minutes", type=float, required=True),
    _arg("--jobs", type=int, help="processes; default: cores, or measured on a GPU"),
    _arg("--out", type=Path, required=True, metavar="DIR", help="for the records"),
)
def work(box, minutes, jobs, out) -> None:
    """compute in a box what fits into the minutes"""
    try:
        from transfusion.boxes import work
    except ImportError as error:
        raise ValueError(f"{error.name} is missing here: see the README of the box") from error
    work.work(box, minutes, out, jobs=jobs, begun=BEGUN)


@_takes(_arg("folder", nargs="+", type=Path))
def merge(folder) -> None:
    """add the records that a box or another clone has brought"""
    from transfusion.boxes import box

    found = box.merge(folder)
    print(f"{len(found.added)} records added, {len(found.there)} were there already")
    if found.weights:
        print(f"weights of {len(found.weights)} pretrainings: {', '.join(found.weights)}")
    if found.other_code:
        some = ", ".join(found.other_code[:3]) + (" ..." if len(found.other_code) > 3 else "")
        print(f"{len(found.other_code)} made by other code, and as good: {some}")
    if found.refused:
        lines = "\n  ".join(f"{name}: {why}" for name, why in found.refused.items())
        raise ValueError(f"{len(found.refused)} records refused:\n  {lines}")


@_takes(
    _arg("what", choices=["ls", "verify", "prune", "forget", "compact"]),
    _arg("name", nargs="*", help="forget: keys; compact: a study, its records joined in few files"),
    _arg("--yes", action="store_true", help="prune: remove, not only list"),
)
def cache(what, name, yes) -> None:
    """what is kept: list it, hash it again, clear it"""
    from transfusion import config, records
    from transfusion.studies import cache, params

    if what in ("compact", "forget") and not name:
        raise ValueError(f"{what}: expected {'a study' if what == 'compact' else 'keys'}")
    if what == "compact":
        for study in name:
            print(f"{records.compact(config.one_of(study, params.studies(), 'study'))} files")
    elif what == "forget":
        for key in name:
            print("removed:\n  " + "\n  ".join(cache.forget(key)))
    elif what == "ls":
        print(_shown(cache.ls(), False))
    elif what == "verify":
        damage = cache.verify()
        if len(damage):
            raise ValueError("not whole:\n  " + "\n  ".join(f"{w}: {d}" for w, d in damage.items()))
        print("all that is kept is whole")
    else:
        table = cache.ls().loc[cache.superfluous()]
        print(_shown(table, False) if len(table) else "nothing that no study needs")
        if yes:
            print(f"removed, {cache.prune([*table.index]) / 1e6:.1f} MB set free")
        elif len(table):
            print(f"{table['MB'].sum():.1f} MB; nothing was removed: that takes --yes")


@_takes(
    _arg("--study", default="quick", help="the study shown on the main pages"),
    _arg("--zip", action="store_true", help="also as one file, to pass on"),
)
def book(study, zip) -> None:
    """render what results are there, and build the book"""
    from transfusion.pages import build

    print(f"The book is at {build.book(study)}")
    if zip:
        print(f"and in {build.zipped()}")


@_takes(_arg("notebooks", nargs="+", type=Path, metavar="NOTEBOOK"))
def strip(notebooks) -> None:
    """take what an execution left out of notebooks, in place"""
    from transfusion.studies import render

    for notebook in notebooks:
        render.strip_file(notebook)


@_takes(
    _arg("name", help="eyepacs, nih, chexpert, a MedMNIST set, or a name of your own"),
    _arg("--from", dest="folder", type=Path, help="default: MedMNIST's download"),
    _arg("--size", type=int, required=True, help="pixels, square"),
    _arg("--layout", help="how it lies there; default: what NAME or the place tells"),
    _arg("--labels", type=Path, help="the table, if it is not the layout's own"),
    _arg("--target", action="append", help="label column (may be repeated)"),
    _arg("--patient", help="column that tells patients apart"),
    _arg("--image", help="column that names the images"),
    _arg("--images", help="the subfolder that holds the images"),
    _arg("--uncertain", help="CheXpert's uncertain labels: zeros, ones or ignore"),
    _arg("--allow-outside", action="store_true", help="images, too, that lie outside the folder"),
)
def data(name, size, **options) -> None:
    """check and prepare a collection of images"""
    from transfusion import config
    from transfusion.images import ingest, tasks

    notes: list[str] = []
    full = ingest.ingest(name, size=size, told=notes, **options)
    print(f"target: {full}")
    attrs = tasks.attrs(config.Data(name=full, size=size))
    for words in notes:
        print(f"note: {words}", file=sys.stderr)
    for skipped in attrs["skipped"]:
        print(f"left out: {skipped}", file=sys.stderr)
    if attrs.get("absent"):
        print(f"left out: {attrs['absent']} rows without an image", file=sys.stderr)


@_takes(
    _arg("model", help="a model of networks.models, such as resnet50"),
    _arg(
        "--from",
        dest="path",
        type=Path,
        help="default: torchvision's or timm's download",
    ),
    _arg("--name", default="imagenet"),
)
def weights(model, path, name) -> None:
    """check and keep pretrained weights"""
    from transfusion.networks import weights

    told: list[str] = []
    full = weights.import_weights(model, path, name, told)
    for words in told:
        print(f"note: {words}", file=sys.stderr)
    print(f"weights: {{{model}: {full}}}")

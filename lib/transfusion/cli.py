"""The command `transfusion`: a thin skin over the library."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0 only if everything asked for was done."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        if arguments.debug:
            raise
        print(f"transfusion: {error}", file=sys.stderr)
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
    run.add_argument("--jobs", type=int, help="processes at once; default: cores, or 1 on a GPU")

    run.add_argument(
        "--collected", action="store_true", help="compute nothing: only chapters with all results"
    )

    status = _verb(verbs, "status", _status, "what is done, started, failed or missing")
    status.add_argument("study")

    plan = _verb(verbs, "plan", _plan, "what a study would compute, and for how long")
    plan.add_argument("study")

    book = _verb(verbs, "book", _book, "build the book from rendered chapters")
    book.add_argument("--study", default="quick", help="the study shown on the main pages")

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

    bench = _verb(verbs, "bench", _bench, "how fast this machine is, against the plain way")
    bench.add_argument("--quick", action="store_true", help="fewer rounds: about 4 min, not 13")
    bench.add_argument("--json", action="store_true", help="one JSON object a line")
    bench.add_argument("--csv", type=Path, help="also write the table there")
    bench.add_argument("--section", action="append", help="only this one (may be repeated)")
    return parser


def _verb(verbs, name: str, command, text: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text, description=text)
    verb.set_defaults(command=command)
    return verb


# Each command imports what it needs: `--help` should not wait for torch.


def _run(arguments: argparse.Namespace) -> None:
    from transfusion import render

    options = {"jobs": arguments.jobs, "collected": arguments.collected}
    render.study(arguments.study, arguments.chapter, **options)


def _status(arguments: argparse.Namespace) -> None:
    from transfusion import experiments

    print(experiments.status(arguments.study).to_string())


def _plan(arguments: argparse.Namespace) -> None:
    from transfusion import experiments

    print(experiments.plan(arguments.study).round(2).to_string())
    rates = (
        f"{experiments.CORE / 1e9:.0f} GFLOP/s a core, {experiments.GPU / 1e12:.0f} TFLOP/s a GPU"
    )
    print(f"Reckoned at {rates} (assumed); runs that another chapter has are counted once.")


def _book(arguments: argparse.Namespace) -> None:
    from transfusion import render

    print(f"The book is at {render.book(arguments.study)}")


def _data(arguments: argparse.Namespace) -> None:
    from transfusion import config, data, ingest

    names = ("size", "folder", "layout", "labels", "target", "patient", "images", "uncertain")
    name = ingest.ingest(arguments.name, **{n: getattr(arguments, n) for n in names})
    print(f"target: {name}")
    attrs = data.attrs(config.Data(name=name, size=arguments.size))
    for skipped in attrs["skipped"]:
        print(f"left out: {skipped}", file=sys.stderr)
    if attrs.get("absent"):
        print(f"left out: {attrs['absent']} rows without an image", file=sys.stderr)


def _weights(arguments: argparse.Namespace) -> None:
    from transfusion import inits

    name = inits.import_weights(arguments.model, arguments.path, arguments.name)
    print(f"weights: {{{arguments.model}: {name}}}")


def _bench(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # numpy reads it when it is loaded
    from transfusion import bench

    bench.report(arguments.section, arguments.quick, arguments.json, arguments.csv)

"""`transfusion run`: one command that computes and renders, safe to kill and to start again.

On the processors of one machine a pool of workers computes; on GPUs and clusters Snakemake runs a
job a group, and one a page.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from transfusion import config, files, machine, records, store, waiting
from transfusion.experiments import plan
from transfusion.studies import grouping, params, render, schedule

PROFILES = store.HOME / "params" / "profiles"
START = 1e12  # floating-point operations that a page counts as: five seconds of a core
OUTCOMES = ("done", "up to date", "failed", "not begun")
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left"
LINES = 15.0  # seconds between two lines of progress where there is no terminal
LEAVE = 5.0  # seconds to end in, after Ctrl-C
MEASURED = 20.0  # seconds before a rate is believed: at first all cores load, or small networks run


class Job(NamedTuple):
    """A file to be made, with its log."""

    kind: str  # group or chapter
    name: str
    file: Path

    @property
    def log(self) -> Path:
        return self.file.with_suffix(".log")


def run(
    study: str,
    only: list[str] | None = None,
    *,
    jobs: int | None = None,
    profile: str = "local",
    dry_run: bool = False,
) -> None:
    """Compute what a study misses and render its chapters; what is up to date is left alone.

    Pages without runs are `pages.build.book`'s, unless asked for. A second call for the same study
    and cache waits for the first. Raises ValueError for whatever cannot run before anything is
    computed, schedule.Failed after doing all else if something failed.
    """
    config.one_of(study, params.studies(), "study")
    chapters = only or [c for c in params.chapters(study) if c in plan.CHAPTERS]
    for chapter in chapters:
        render.checked_parameters(study, chapter)
    wanted = _wanted(study, chapters)
    if dry_run and _in_a_pool(profile):
        return _foretell(study, wanted)
    if dry_run:
        stale = [str(j.file) for j in _stale(study, wanted) if j.file.exists()]
        options = ["--forcerun", *stale] if stale else []
        subprocess.run(_snakemake(study, wanted, jobs, profile, "--dry-run", *options), check=True)
        return
    store.require_writable()
    with _alone(study) as lock:
        _remove_stale(study, wanted)
        todo = [job for job in wanted if not job.file.exists()]
        before, code = {job: _last_written(job.log) for job in todo}, 0
        if todo:
            schedule.check(_missing(study, todo))
            code = _make(study, wanted, todo, jobs, profile, lock)
        early = [job for job in _stale(study, todo) if job.file.exists()]
        if early:  # pages whose verdicts were corrected before the last results were there
            _remove_stale(study, early)
            code = _make(study, early, early, jobs, profile, lock) or code
    tried = [job for job in todo if _last_written(job.log) != before[job]]
    _report(study, wanted, todo, tried, code)


def _make(
    study: str, wanted: list[Job], todo: list[Job], jobs: int | None, profile: str, lock: int
) -> int:
    """Make what is wanted, of which this is to do; an exit code that is 0 only if all went well."""
    runs = {spec.key: schedule.cost(spec) for spec in _missing(study, todo)}

    def watched(command: list[str]) -> int:
        with _log(study).open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[lock])
            try:
                return _watch(study, runs, todo, process)
            except KeyboardInterrupt:  # Snakemake has heard it, too: it empties a cluster's queue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LEAVE)
                raise  # what is still there ends with this process

    if _in_a_pool(profile):
        return _by_workers(study, todo, jobs, watched)
    return watched(_snakemake(study, wanted, jobs, profile))


def _in_a_pool(profile: str) -> bool:
    return profile == "local" and not machine.gpus()


def _foretell(study: str, wanted: list[Job]) -> None:
    """Print what would run, and why. Snakemake, which has no part in it here, takes long to say."""
    for job in _stale(study, wanted):
        why = "is not what it should be" if job.file.exists() else "is not there"
        print(f"{job.kind} {job.name} {why}: {job.file}")


def _by_workers(
    study: str, todo: list[Job], jobs: int | None, watched: Callable[[list[str]], int]
) -> int:
    """All groups in one pool, then the pages whose groups are whole."""

    def command(verb: str, names: list[str]) -> list[str]:
        workers = str(jobs or os.cpu_count() or 1)
        return machine.bound("transfusion", verb, study, *names, "--jobs", workers)

    groups = [job.name for job in todo if job.kind == "group"]
    code = watched(command("group", groups)) if groups else 0
    pages = [job.name for job in todo if job.kind == "chapter" and _can_be_shown(study, job.name)]
    return (watched(command("chapter", pages)) if pages else 0) or code


def _can_be_shown(study: str, chapter: str) -> bool:
    there = records.index(store.records_folder(study))
    return all(grouping.is_done(study, n, there) for n in grouping.groups_of(study, chapter))


def _wanted(study: str, chapters: list[str]) -> list[Job]:
    """The pages, and before them all groups that they need."""
    names = list(dict.fromkeys(g for c in chapters for g in grouping.groups_of(study, c)))
    groups = [Job("group", name, grouping.done_file(study, name)) for name in names]
    return groups + [Job("chapter", c, render.executed(study, c)) for c in chapters]


def _remove_stale(study: str, wanted: list[Job]) -> None:
    """Files that are not what they should be: Snakemake sees no more than whether they exist."""
    for job in _stale(study, wanted):
        store.discard(job.file)


def _stale(study: str, jobs: list[Job]) -> list[Job]:
    """What is not there, or not what it should be."""
    there = records.index(store.records_folder(study))

    def is_fresh(job: Job) -> bool:
        if job.kind == "group":
            return grouping.is_done(study, job.name, there)
        return render.is_fresh(study, job.name)

    return [job for job in jobs if not is_fresh(job)]


@contextlib.contextmanager
def _alone(study: str) -> Iterator[int]:
    """Hold a study in this cache; yields the lock's file descriptor.

    What works for it inherits it, and the kernel frees it with the last process that has it:
    whoever gets it knows that nobody is at work, even after a kill -9.
    """
    path = _log(study).with_suffix(".lock")
    for each in (path, _log(study)):
        files.clear(each)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(waiting.PATIENCE)  # by then it has signed
            waiting.tell(f"another `transfusion run {study}` is at work", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        waiting.sign(path)
        yield handle
    finally:
        os.close(handle)


def _snakemake(
    study: str, wanted: list[Job], jobs: int | None, profile: str, *options: str
) -> list[str]:
    """The command that makes these files."""
    folder = PROFILES / config.one_of(profile, [p.name for p in PROFILES.iterdir()], "profile")
    command = machine.bound("snakemake", "--snakefile", str(store.HOME / "Snakefile"))
    command += ["--profile", str(folder), "--nolock", *options]
    if profile == "local":
        cores = os.cpu_count() or 1
        at_once = jobs or cores  # no more, or pages would come before the results they tell of
        trainings = machine.gpus() or jobs or cores
        command += ["--cores", str(at_once), "--resources", f"gpu={trainings}"]
    elif jobs:
        command += ["--jobs", str(jobs)]
    return [*command, "--config", f"study={study}", "--", *(str(job.file) for job in wanted)]


def _watch(study: str, runs: dict[str, float], todo: list[Job], process: subprocess.Popen) -> int:
    """Show how much is done, by what runs and pages cost, until a process ends; its exit code."""
    pages = [job.file for job in todo if job.kind == "chapter"]
    start, said = time.monotonic(), 0.0
    ahead, first = _left(runs, pages)
    total = sum(runs.values()) + START * len(pages)
    with tqdm(total=total, initial=total - first, bar_format=BAR, disable=None) as bar:
        while process.poll() is None:
            time.sleep(1)
            ahead, left = _left(ahead, pages)
            ended = f"{len(runs) - len(ahead)} of {len(runs)} runs"
            there = sum(page.exists() for page in pages)
            words = f"{study}: {ended}, {there} of {len(pages)} pages"
            bar.n, bar.desc = bar.total - left, words
            bar.refresh()
            if bar.disable and time.monotonic() - said > LINES:
                said = time.monotonic()
                print(f"{words}, {_time_left(said - start, first - left, left)}", file=sys.stderr)
    return process.returncode


def _left(runs: dict[str, float], pages: list[Path]) -> tuple[dict[str, float], float]:
    """The runs that have not ended, and the cost of these and of the pages that are not there."""
    begun = {key: told["state"] for key, told in store.look(runs).items()}
    ahead = {key: cost for key, cost in runs.items() if begun.get(key) not in store.ENDED}
    trained = sum(cost * store.share_trained(key) for key, cost in ahead.items() if key in begun)
    return ahead, sum(ahead.values()) - trained + START * sum(not page.exists() for page in pages)


def _time_left(seconds: float, done: float, left: float) -> str:
    """From the cost of what was done in so many seconds, and of what is left."""
    if seconds < MEASURED or done < 0.01 * (done + left):
        return "how long it takes here is being measured"
    return f"about {seconds * left / done / 60:.1f} min left"


def _missing(study: str, todo: list[Job]) -> list[config.Spec]:
    groups = [grouping.groups(study)[job.name] for job in todo if job.kind == "group"]
    specs = [spec for group in groups for spec in group.specs]
    looked = store.look(spec.key for spec in grouping.everything(specs))
    ahead = schedule.missing(specs, study, looked)
    return [task for task in ahead if not isinstance(task, config.Data)]


def _last_written(log: Path) -> tuple[int, ...] | None:
    """What differs once a log was written again: no date is compared with the clock, which another
    machine's may be ahead of."""
    if not log.exists():
        return None
    found = log.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _report(study: str, wanted: list[Job], todo: list[Job], tried: list[Job], code: int) -> None:
    """Print what was done, left alone and failed; raises Failed unless all is there."""
    states = {job: _state(job, todo, tried) for job in wanted}
    rows = {}
    for kind in ("group", "chapter"):
        of_kind = [state for job, state in states.items() if job.kind == kind]
        rows[f"{kind}s"] = {state: of_kind.count(state) for state in OUTCOMES}
    print(pd.DataFrame.from_dict(rows, orient="index", columns=list(OUTCOMES)).to_string())
    failed = [job for job, state in states.items() if state == "failed"]
    for job in failed:
        print(f"{job.kind} {job.name}: {_last_words(job.log)} (log: {job.log})", file=sys.stderr)
    if code and not failed and _log(study).exists():
        print(_last_words(_log(study)), file=sys.stderr)
    if code or set(states.values()) & {"failed", "not begun"}:
        lost = sum(state in ("failed", "not begun") for state in states.values())
        raise schedule.Failed(
            f"{lost} of {len(wanted)} groups and chapters of {study} are not there; "
            f"what is done is kept, and the same command goes on (log: {_log(study)})"
        )


def _state(job: Job, todo: list[Job], tried: list[Job]) -> str:
    if job not in todo:
        return "up to date"
    if job.file.exists():
        return "done"
    return "failed" if job in tried else "not begun"


def _last_words(log: Path) -> str:
    """The error that a job ended with; one that was killed leaves none."""
    errors = re.findall(
        r"^transfusion: (.*(?:\n  .*)*)\s*\Z", log.read_text(errors="replace"), re.M
    )
    return errors[0] if errors else "its process was killed (out of memory?)"


def _log(study: str) -> Path:
    return store.root() / "groups" / f"{study}.log"

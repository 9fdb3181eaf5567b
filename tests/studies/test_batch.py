"""Studies that are killed, starved, corrupted and run several times at once."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest
from transfusion import config, store
from transfusion.studies import batch, grouping

from ..conftest import KNOBS, ROOT, link_tracked

STUDY = {**KNOBS, "study": "tiny", "own_inits": {}, "tuned": {}, "optimizer": "adam", "devices": 1}
STUDY |= {"source_image_size": None, "models": ["cbr_tiny"], "inits": ["random"], "seeds": 3}


class Place:
    """A cache and a build of its own, for the project as it is."""

    project = ROOT

    def __init__(self, folder):
        self.cache, self.build = folder / "a user's cache", folder / "what's built"
        link_tracked(self.cache)
        self.environment = {
            **os.environ,
            "TRANSFUSION_CACHE": str(self.cache),
            "TRANSFUSION_BUILD": str(self.build),
        }

    def start(self, *arguments):
        return self.start_python("-m", "transfusion", *arguments)

    def start_python(self, *arguments):
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Else whoever was started in the background, with SIGINT ignored, hands that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def call(self, *arguments):
        process = self.start(*arguments)
        process.out, process.err = process.communicate()
        return process

    def page(self, study, chapter):
        return self.build / f"_build/executed/{study}/{chapter}.ipynb"

    def done_files(self):
        return sorted(self.cache.glob("groups/*/*.json"))

    def finished(self):
        """What vouches for each finished run: its checksums, and the time that it took."""
        return {f.parent.name: f.read_text() for f in self.cache.glob("runs/*/done.json")}

    def values(self):
        """Checksums of all results, collected ones included, but for what they cost."""
        found = [*self.cache.glob("runs/*/result.zarr"), *self.cache.glob("collected/*/*.zarr")]
        results = {p.relative_to(self.cache): store.read_zarr(p) for p in found}
        return {
            path: store.checksum(result.drop_vars("seconds", errors="ignore"))
            for path, result in results.items()
        }


class Checkout(Place):
    """A copy of the project with one small study, `tiny`."""

    def __init__(self, folder):
        super().__init__(folder)
        self.project = folder / "my user's project"
        ignored = shutil.ignore_patterns("_build", "__pycache__")
        for name in ("lib", "book", "params"):
            shutil.copytree(ROOT / name, self.project / name, ignore=ignored)
        shutil.copy(ROOT / "Snakefile", self.project)
        self.environment["PYTHONPATH"] = str(self.project / "lib")
        self.write("performance")

    def write(self, chapter, common=None, **own):
        folder = self.project / "params" / "tiny"
        folder.mkdir(exist_ok=True)
        (folder / "common.yml").write_text(json.dumps(STUDY | (common or {})))
        (folder / f"{chapter}.yml").write_text(json.dumps({"study": "tiny", **own}))


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_notebook_that_breaks_stops_only_what_needs_it(checkout):
    """A notebook that fails and one that is whole; then the cause is removed."""
    notebook = checkout.project / "book/weight_scaling.ipynb"
    whole = notebook.read_text()
    broken = nbformat.reads(whole, as_version=4)
    broken.cells[-1].source = "import os; os._exit(9)"
    broken.cells[-1].cell_type = "code"
    checkout.write("weight_scaling", inits=["random", "mean_var"])
    notebook.write_text(nbformat.writes(broken))
    ended = checkout.call("run", "tiny")
    assert ended.returncode == 1
    assert "weight_scaling" in ended.err and "kernel" in ended.err and ".log" in ended.err
    assert (
        checkout.page("tiny", "performance").exists()
        and not checkout.page("tiny", "weight_scaling").exists()
    )
    assert "1 of" in ended.err
    before = checkout.values()
    notebook.write_text(whole)
    again = checkout.call("run", "tiny")
    assert again.returncode == 0, again.err
    assert checkout.page("tiny", "weight_scaling").exists() and checkout.values() == before


def test_a_second_call_waits_for_the_first_and_does_nothing_twice(checkout):
    checkout.write("tuning", rates=[0.001])
    calls = [checkout.start("run", "tiny", "--chapter", "tuning", "--jobs", "1") for _ in range(2)]
    ended = [(*call.communicate(), call.returncode) for call in calls]
    assert [code for *_, code in ended] == [0, 0], ended
    assert sum("is at work: waiting" in err for _, err, _ in ended) == 1
    logs = [log.read_text() for log in checkout.cache.glob("runs/*/log.txt")]
    ends = [log.count(f"step {STUDY['steps']} of") for log in logs]
    assert ends == [1] * STUDY["seeds"], "each was trained once"


def test_time_left_is_told_once_it_has_been_measured():
    measured = "how long it takes here is being measured"
    assert batch._time_left(10, done=50, left=50) == measured, "at first all is loaded"
    assert batch._time_left(60, done=0.5, left=99.5) == measured
    assert batch._time_left(60, done=25, left=75) == "about 3.0 min left"


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_no_bit(tmp_path):
    """The smoke study, killed at 20 moments and begun again, against one that was left in peace."""
    undisturbed, killed = Place(tmp_path / "undisturbed"), Place(tmp_path / "killed")
    begun = time.monotonic()
    assert undisturbed.call("run", "smoke").returncode == 0
    longest = (time.monotonic() - begun) / 5
    rng = np.random.default_rng(0)
    print("\nkilled after [s]  runs finished  of these lost or computed again")
    for _ in range(20):
        before, moment = killed.finished(), float(rng.uniform(2, longest))
        process = killed.start("run", "smoke")
        try:
            process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        after = killed.finished()
        changed = [key for key, done in before.items() if after.get(key) != done]
        print(f"{moment:16.1f}{len(after):15d}{len(changed):32d}")
        assert not changed
    assert killed.finished(), "each call was killed before its first run ended"
    last = killed.call("run", "smoke")
    assert last.returncode == 0, last.err
    assert killed.values() == undisturbed.values()


@pytest.mark.slow
def test_eight_at_once_do_no_run_twice(tmp_path):
    smoke = Place(tmp_path)
    calls = [smoke.start("run", "smoke") for _ in range(8)]
    ended = [(*call.communicate(), call.returncode) for call in calls]
    assert [code for *_, code in ended] == [0] * 8, ended
    print("\n" + ended[0][0], *(err.splitlines()[0] for _, err, _ in ended), sep="\n")
    specs = {s.key: s for g in grouping.groups("smoke").values() for s in g.specs}
    assert smoke.finished().keys() == specs.keys()
    for key, spec in specs.items():
        if isinstance(spec, config.Run):
            log = (smoke.cache / f"runs/{key}/log.txt").read_text()
            assert log.count(f"step {spec.optim.steps} of") == 1, "trained once"


def kill_a_worker(checkout, process):
    """Whether a worker of this command had begun to train, and so was killed."""
    if not list(checkout.cache.glob("runs/*/log.txt")):
        return False
    for worker in psutil.Process(process.pid).children(recursive=True):
        if "--multiprocessing-fork" in worker.cmdline():
            worker.send_signal(signal.SIGKILL)
            return True
    return False


@pytest.mark.slow
def test_a_killed_worker_costs_only_what_ran(checkout):
    """With one worker at a time the others do what is left, and the same command does the rest."""
    checkout.write("weight_scaling", inits=["mean_var"], steps=400)
    process = checkout.start("run", "tiny", "--jobs", "1")
    wait_for(lambda: kill_a_worker(checkout, process))
    _, err = process.communicate()
    assert process.returncode == 1
    assert re.search("group .*: its process was killed", err), err
    assert len(checkout.finished()) >= 5, "of seven and a pretraining"
    again = checkout.call("run", "tiny")
    assert again.returncode == 0, again.err


def in_little_memory(checkout, command, megabytes):
    limited = f"ulimit -v {1000 * megabytes}; exec {sys.executable} -m transfusion {command}"
    return subprocess.run(
        ["bash", "-c", limited],
        cwd=checkout.project,
        env=checkout.environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_too_little_memory_costs_only_the_runs_that_need_more(checkout):
    large = {"models": ["cbr_tiny", "resnet50"], "seeds": 1, "batch": 256, "image_size": 128}
    checkout.write("performance", {**large, "train_size": 256, "evaluations": 1, "steps": 1})
    said = in_little_memory(checkout, "run tiny --dry-run", 20_000)
    (name,) = re.findall(r"group (performance-\w+)", said.stdout + said.stderr)[:1]
    ended = in_little_memory(checkout, f"group tiny {name}", 9_000)
    assert ended.returncode == 1 and "1 of 3 could not be computed" in ended.stderr, ended.stderr
    assert "memory" in ended.stderr and "log.txt" in ended.stderr
    assert len(checkout.finished()) == 1


@pytest.mark.slow
def test_a_corrupted_result_is_computed_again_to_the_same_bits(checkout):
    assert checkout.call("run", "tiny").returncode == 0
    before, victim = checkout.values(), sorted(checkout.finished())[0]
    chunk = next(checkout.cache.glob(f"runs/{victim}/result.zarr/*/c/0"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    for kept in ("results", "collected"):
        shutil.rmtree(checkout.cache / kept / "tiny")
    found = checkout.call("cache", "verify")
    assert found.returncode == 1 and victim in found.err
    again = checkout.call("run", "tiny")
    assert again.returncode == 0, again.err
    assert checkout.values() == before and checkout.call("cache", "verify").returncode == 0


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_study_goes_on_when_there_is_space(checkout):
    checkout.cache.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "none", str(checkout.cache)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        filler = checkout.cache / "filler"
        filler.write_bytes(b"0" * 78_000_000)
        ended = checkout.call("run", "tiny")
        assert ended.returncode == 1 and "No space left" in ended.err + "".join(
            log.read_text() for log in checkout.cache.glob("groups/tiny/*.log")
        )
        filler.unlink()
        assert checkout.call("cache", "verify").returncode == 0
        again = checkout.call("run", "tiny")
        assert again.returncode == 0, again.err
    finally:
        subprocess.run(["umount", str(checkout.cache)], check=True)


def test_what_cannot_run_is_told_before_anything_starts(checkout):
    checkout.write("performance", {"models": ["cbr_tini"]})
    ended = checkout.call("run", "tiny")
    assert ended.returncode == 1 and "Did you mean 'cbr_tiny'" in ended.err
    assert not checkout.done_files() and not (checkout.cache / "runs").exists()


def test_a_dry_run_tells_and_does_nothing(checkout):
    page = checkout.page("tiny", "performance")
    page.parent.mkdir(parents=True)
    page.write_text("stale")
    ended = checkout.call("run", "tiny", "--dry-run")
    assert ended.returncode == 0 and "performance" in ended.out + ended.err
    assert not checkout.done_files() and page.read_text() == "stale"


WILD = 'a user\'s $(touch planted) `touch planted`; touch planted & "q" | #\n * project'


@pytest.mark.slow
def test_no_part_of_a_path_is_executed(tmp_path):
    """By Snakemake, as where there are GPUs: dry, then for good."""
    (tmp_path / WILD).mkdir()
    checkout = Checkout(tmp_path / WILD)
    checkout.write("performance", seeds=1)
    for dry in (True, False):
        code = "from transfusion import machine; from transfusion.studies import batch\n"
        code += f"machine.gpus = lambda: 1; batch.run('tiny', dry_run={dry})"
        process = checkout.start_python("-c", code)
        out, err = process.communicate()
        assert process.returncode == 0, out + err
    assert checkout.page("tiny", "performance").exists()
    assert not [*tmp_path.rglob("planted")]

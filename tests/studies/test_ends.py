"""Nobody is left at work when whoever started them has ended, in whatever way."""

import contextlib
import os
import shutil
import signal

import nbformat
import psutil
import pytest
from transfusion.studies import render

from ..conftest import ROOT
from .test_batch import Checkout, wait_for

SLEEP = "import time; from transfusion import store\n(store.root() / 'begun').touch()\n"
SCRIPT = """
from transfusion import config, machine
from transfusion.studies import batch, schedule
from transfusion.training import fit


def run(seed=0, devices=1):
    data = config.Data(name="fundus", size=32, train=48, valid=32, test=40)
    optim = config.Optim(steps=10**5, batch=16, evaluations=1000, devices=devices)
    return config.Run(data=data, model="cbr_tiny", init=config.Init(), optim=optim, seed=seed)


if __name__ == "__main__":
"""
SCRIPTS = {
    "pool": "schedule.compute([run(), run(1)], jobs=2)",
    "devices": "fit.fit(run(devices=2), checkpoint_seconds=0)",
    "snakemake": "machine.gpus = lambda: 1; batch.run('tiny')",
}
COMMANDS = {
    "run": ("run", "tiny"),
    "page": ("chapter", "tiny", "performance"),
    "pages": ("chapter", "tiny", "performance", "--jobs", "2"),
    "box": ("work", "box", "--minutes", "9", "--jobs", "2", "--out", "back"),
}
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
QUICK = [("devices", "KILL"), ("page", "KILL")]
CASES = [
    pytest.param(starter, end, marks=[] if (starter, end) in QUICK else pytest.mark.slow)
    for starter in (*SCRIPTS, *COMMANDS)
    for end in (*SIGNALS, "Ctrl-C")
]


@pytest.fixture
def endless(tmp_path):
    """A checkout whose study trains for hours, and whose page takes as long."""
    checkout = Checkout(tmp_path)
    shutil.copy(ROOT / "LICENSE", checkout.project)
    checkout.write("performance", common={"steps": 10**5, "evaluations": 1000})
    cells = ["study = ''\nsetting = {}", SLEEP + "time.sleep(600)"]
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    page.metadata["kernelspec"], page.cells[0].metadata["tags"] = render.KERNEL, ["parameters"]
    nbformat.write(page, checkout.project / "book/performance.ipynb")
    yield checkout
    for process in at_work(checkout):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            process.kill()


def begin(checkout, starter):
    """Start it; returns once something that it has started is at work."""
    if starter == "box":
        packed = checkout.call("pack", "tiny", "--out", "box")
        assert packed.returncode == 0, packed.err
    if starter in COMMANDS:
        process = checkout.start(*COMMANDS[starter])
    else:
        (checkout.project / "script.py").write_text(SCRIPT + f"    {SCRIPTS[starter]}\n")
        process = checkout.start_python("script.py")
    wait_for(lambda: [*checkout.cache.glob("runs/*/log.txt"), *checkout.cache.glob("begun")])
    return process


def at_work(checkout):
    """All processes that have this checkout's cache."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("TRANSFUSION_CACHE") == str(checkout.cache)
        except psutil.Error:  # another user's, or ended meanwhile
            continue
        if mine and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.mark.parametrize(("starter", "end"), CASES)
def test_what_a_process_has_started_ends_with_it(endless, starter, end):
    """Ctrl-C reaches all of them at once, and nobody tells of it at length."""
    process = begin(endless, starter)
    assert len(at_work(endless)) > 1
    if end == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(SIGNALS[end])
    _, err = process.communicate(timeout=20)
    wait_for(lambda: not at_work(endless), seconds=5)
    if starter in COMMANDS:
        assert "Traceback" not in err

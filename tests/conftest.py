import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import threadpoolctl
import torch
from ipykernel.jsonutil import encode_images, json_clean
from IPython.core.displayhook import CapturingDisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from papermill.engines import Engine, papermill_engines
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transfusion import config, experiments, store, studies
from transfusion.images import tasks
from transfusion.studies import grouping, params, render, schedule

ROOT = Path(__file__).resolve().parents[1]

# One thread, here and in what tests start: the last bits of a sum depend on their number.
os.environ["OMP_NUM_THREADS"] = "1"
threadpoolctl.threadpool_limits(1)
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What takes longest first, or one process works at it after the other has ended."""
    items.sort(key=lambda item: item.path.stem not in ("test_smoke", "test_batch"))


KNOBS = {
    "study": "made_up",
    "target": "fundus",
    "source": "objects",
    "weights": {},
    "lr": 0.001,
    "precision": "float32",
    "models": ["cbr_tiny"],
    "inits": ["random", "transfer"],
    "seeds": 2,
    "image_size": 32,
    "train_size": 32,
    "valid_size": 32,
    "test_size": 40,
    "source_size": 40,
    "steps": 4,
    "source_steps": 2,
    "batch": 16,
    "evaluations": 2,
}


def results_of(chapter, *, afresh=False, **knobs):
    """A chapter's Dataset, computed in this process: starting others takes longer than the work.

    What another test has computed is copied into this one's cache, unless `afresh`.
    """
    specs, study = experiments.runs(chapter, **knobs), knobs["study"]
    chosen = schedule._precisions(specs, study)
    for task in schedule.missing(specs, study):
        drawn = isinstance(task, config.Data)
        place = tasks.drawn_path(task) if drawn else store.run_folder(task.key)
        made = f"{place.name} {chosen.get(task.key, '')}"
        if made in _computed and not afresh:
            shutil.copytree(_computed[made], place, dirs_exist_ok=True)
        else:
            schedule._perform(config.dump(task), chosen.get(task.key))
            kept = Path(_kept.name, made)
            _computed[made] = shutil.copytree(place, kept, dirs_exist_ok=True)
    return studies.collect(chapter, **knobs)


_kept = tempfile.TemporaryDirectory(prefix="transfusion-tests-")
os.environ["IPYTHONDIR"] = _kept.name  # a home that cannot be written is told of by a warning
_computed: dict[str, Path] = {}


@pytest.fixture(autouse=True)
def fresh_groups():
    """A study's groups are reckoned once a process; tests have several of one name."""
    grouping.groups.cache_clear()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def no_torch(tmp_path_factory):
    """Environment of a process, and of all that it starts, without what only training takes."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in ("torch", "torchvision", "timm", "sklearn", "snakemake"):
        words = f"raise RuntimeError('{name} is imported to read results')"
        (folder / f"{name}.py").write_text(words)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty data_cache of its own."""
    monkeypatch.setenv("TRANSFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_run():
    """A run of a second: `tiny_run(seed=1, steps=4, ...)`."""

    def make(*, init=None, seed=0, model="cbr_tiny", **optim):
        images = config.Data(name="fundus", size=32, train=48, valid=32, test=40)
        recipe = config.Optim(**{"steps": 6, "batch": 16, "evaluations": 3, **optim})
        return config.Run(
            data=images, model=model, init=init or config.Init(), optim=recipe, seed=seed
        )

    return make


@pytest.fixture
def photographs(tmp_path, rng):
    """A folder of 40 images and its table: two a patient, grades 0 to 4."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    lines = ["image,label,patient,split"]
    for i in range(40):
        pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        split = "train" if i < 24 else "valid" if i < 30 else "test"
        lines.append(f"{i}.png,{i % 5},{i // 2},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def poison(name, size):
    """Replace the test images of a prepared data set, and deal their labels anew."""
    path = tasks.prepared_path(name, size)
    images, rng = store.read_zarr(path), np.random.default_rng(1)
    test = np.flatnonzero(images.split == "test")
    images.pixels[test] = rng.integers(0, 255, images.pixels[test].shape, dtype=np.uint8)
    images.target[test] = rng.permutation(images.target[test])
    store.write_zarr(images, path)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A cache and a build of its own."""
    cache, build = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("build")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "BUILD", build / "_build")
        yield {**os.environ, "TRANSFUSION_CACHE": str(cache), "TRANSFUSION_BUILD": str(build)}


def link_tracked(cache):
    """Let a cache see the results in git, which some pages show whatever their study."""
    (cache / "results").mkdir(parents=True)
    for folder in (ROOT / "data_cache/results").glob("[a-z]*/"):
        if folder.name not in ("smoke", "quick"):
            (cache / "results" / folder.name).symlink_to(folder)


def transfusion(environment, *arguments):
    command = [sys.executable, "-m", "transfusion", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def smoke(environment):
    """The smallest study, all of it computed, two of its pages rendered by their command."""
    found = transfusion(environment, "group", "smoke", *grouping.groups("smoke"), "--jobs", "2")
    assert found.returncode == 0, found.stderr
    found = transfusion(environment, "run", "smoke", *(f"--chapter={c}" for c in RENDERED))
    assert found.returncode == 0, found.stderr
    return environment


RENDERED = ("data", "performance")


class Here(Engine):
    """Executes a notebook in this process: a kernel of its own takes longer than the page."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        shell = InteractiveShell.instance()
        shell.reset()
        for cell in nb_man.nb.cells:
            if cell.cell_type == "code":
                with capture_output() as captured:
                    shell.display_trap.hook = CapturingDisplayHook(shell, captured._outputs)
                    shell.run_cell(cell.source).raise_error()
                cell.outputs = [cls.output(one) for one in captured.outputs]

    @staticmethod
    def output(shown):
        data = json_clean(encode_images(dict(shown.data)))
        return nbformat.v4.new_output("display_data", data=data, metadata=shown.metadata or {})


papermill_engines.register("here", Here)


@pytest.fixture(scope="session")
def pages(smoke):
    """All pages of the smallest study."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRANSFUSION_CACHE", "TRANSFUSION_BUILD"):
            patch.setenv(name, smoke[name])
        patch.setattr(render, "ENGINE", "here")
        for chapter in params.chapters("smoke"):
            if chapter not in RENDERED:
                render.chapter("smoke", chapter)
    return smoke


def cells(path):
    return json.loads(path.read_text())["cells"]


class Operators(TorchDispatchMode):
    """Counts the operators that do work."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))

import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
import transfusion
import yaml

from .conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tracked():
    return subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


def test_environment_yml_says_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, last = environment["dependencies"]
    assert python == f"python {PROJECT['requires-python']}" and pip == "pip"
    assert last == {"pip": ["--constraint constraints.txt", "--editable .[dev]"]}
    assert "dev" in PROJECT["optional-dependencies"]


def test_every_dependency_has_an_exact_version_and_a_reason():
    exact = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    reasons = (ROOT / "CONTRIBUTING.md").read_text()
    extras = [name for extra in PROJECT["optional-dependencies"].values() for name in extra]
    for name in [*PROJECT["dependencies"], *extras]:
        package = re.split(r"[<>=\s]", name)[0]
        if not package.startswith(PROJECT["name"]):  # extras that name other extras
            assert package.lower() in exact and package in reasons, package


def test_the_library_is_tracked_and_results_alone_of_the_cache():
    files = tracked()
    assert "lib/transfusion/__init__.py" in files
    allowed = ("data_cache/README.md", "data_cache/results/")
    assert all(name.startswith(allowed) for name in files if name.startswith("data_cache/"))
    again = ("data_cache/results/smoke", "data_cache/results/quick")
    assert not [name for name in files if name.startswith(again)]
    assert not [n for n in files if n.endswith((".jpeg", ".jpg", ".pth", ".safetensors", ".npz"))]


def test_git_sees_a_record_of_a_new_study_and_none_of_those_that_come_back_in_minutes():
    def ignored(path):
        command = ["git", "check-ignore", "-q", f"data_cache/{path}"]
        return subprocess.run(command, cwd=ROOT).returncode == 0

    record = "0123456789ab/c/0"
    assert not ignored(f"results/a_new_study/{record}")
    assert not ignored("results/a_new_study/zarr.json")
    assert ignored("results/a_new_study/.0123456789ab.1a2b3c4d.tmp/zarr.json"), "half written"
    assert ignored(f"results/quick/{record}") and ignored(f"results/smoke/{record}")
    assert ignored("collected/a_new_study/performance.zarr/zarr.json")


def test_public_names_exist():
    for name in [*transfusion.__all__, *transfusion.ALIASES]:
        assert getattr(transfusion, name) is not None
    promised = "models.build inits.apply data.prepare data.load train.fit activations.extractor"
    promised += " activations.capture activations.moments similarity.SecondMoments store.open"
    for name in [*promised.split(), "experiments.runs"]:
        module, function = name.split(".")
        assert callable(getattr(getattr(transfusion, module), function))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        transfusion.nothing  # noqa: B018


def test_reading_results_needs_no_torch(no_torch):
    wings = "cli experiments figures machine pages records similarity statistics store"
    modules = {"": wings, ".images": "folds tasks", ".boxes": "box outbox pack"}
    modules[".experiments"] = "accuracy claims features filters learning plan tables tuning"
    modules[".studies"] = "batch cache collected grouping params render schedule status"
    lines = [f"from transfusion{w} import {', '.join(n.split())}" for w, n in modules.items()]
    code = "\n".join(lines)
    subprocess.run([sys.executable, "-c", code], env=os.environ | no_torch, check=True)


def test_a_box_works_without_what_a_borrowed_machine_may_lack(tmp_path):
    """A stub of YAML would stop zarr, where its settings are YAML: whoever loads it is asked."""
    (tmp_path / "tqdm.py").write_text("raise ImportError('tqdm is loaded in a box')")
    code = "import sys, zarr\nbefore = set(sys.modules)\nfrom transfusion.boxes import work\n"
    code += "lost = {'papermill', 'snakemake', 'holoviews', 'sklearn'} & set(sys.modules)\n"
    code += "sys.exit(bool(lost or 'yaml' in set(sys.modules) - before))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_help_imports_no_library():
    code = (
        "import sys\nfrom transfusion import cli\ntry: cli.main(['--help'])\n"
        "except SystemExit: sys.exit(bool({'numpy', 'xarray', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_page_is_rendered_without_what_decides_claims():
    """That is its notebook's work; each process would load for a second longer."""
    code = "import sys\nfrom transfusion import cli\n"
    code += "cli.main(['chapter', 'quick', 'nothing'])\nassert 'papermill' in sys.modules\n"
    code += "sys.exit(bool({'scipy.stats', 'sklearn', 'holoviews'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_code_in_the_guide_runs(cache, rng, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"layers": rng.normal(size=(2, 500, 20))}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "book/guide/run.md").read_text(), re.S)
    for block in blocks:
        exec(block.replace("n=2000", "n=200"), names)
    assert len(blocks) == 4 and names["study"] == "cells"
    assert 0 < names["found"].null < names["found"].mean


def test_functions_are_short():
    lengths = []
    for path in (ROOT / "lib/transfusion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                documented = ast.get_docstring(node) is not None
                first = node.body[1 if documented and len(node.body) > 1 else 0]
                lengths.append((node.end_lineno or 0) - first.lineno + 1)
    assert sorted(lengths)[len(lengths) // 2] < 10
    assert sorted(lengths)[int(0.9 * len(lengths))] < 40


def test_margins_are_those_of_the_scope_page():
    from transfusion.experiments import accuracy, filters, learning
    from transfusion.similarity import second_moments

    scope = (ROOT / "book/scope.md").read_text()
    assert f"Margin | {accuracy.POINT:g} point of AUC, or a quarter of 1" in scope
    assert accuracy.ERROR_SHARE == 0.25
    assert f"Level | {100 * learning.REACH:.0f} % of the gain over chance" in scope
    assert f"within ±{filters.GABORS:g} points" in scope
    assert f"within ±{accuracy.LOOSE:g}" in scope and f"at least {accuracy.NETWORKS}" in scope
    assert f"there are {second_moments.ENOUGH} datapoints a channel" in scope


def test_the_readmes_say_first_how_good_the_networks_are():
    from transfusion import pages

    told = pages.how_good(["cells", "chest"])
    for name in ("README.md", "params/README.md"):
        text = (ROOT / name).read_text()
        assert all(sentence in text for sentence in told.values()), told


def test_every_claim_has_its_command():
    from transfusion.experiments import claims
    from transfusion.studies import params

    rows = (ROOT / "params/README.md").read_text().splitlines()
    for claim in claims.CLAIMS.values():
        (row,) = [row for row in rows if f"| {claim.says} |" in row]
        study, chapter = re.findall(r"`transfusion run (\w+) --chapter (\w+)`", row)[0]
        assert chapter == claim.chapter and chapter in params.chapters(study)
        assert f"| {claim.paper()} |" in row
        assert ("exploratory" in row) == claim.exploratory

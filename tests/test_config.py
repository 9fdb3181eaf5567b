import re
from dataclasses import replace

import pytest
import yaml
from pydantic import ValidationError
from transfusion import config, studies

from .conftest import ROOT


def test_key_changes_with_every_field(tiny_run):
    run = tiny_run()
    others = [
        replace(run, seed=1),
        replace(run, model="cbr_small"),
        replace(run, data=replace(run.data, size=48)),
        replace(run, data=replace(run.data, seed=1)),
        replace(run, optim=replace(run.optim, precision="bfloat16")),
        replace(run, optim=replace(run.optim, optimizer="sgd")),
        replace(run, init=config.Init(name="transfer", source=run)),
        replace(run, init=config.Init(name="mean_var", source=run)),
    ]
    assert len({spec.key for spec in [run, *others]}) == len(others) + 1


def test_key_is_stable(tiny_run):
    assert tiny_run().key == tiny_run().key
    assert re.fullmatch("[0-9a-f]{12}", tiny_run().key)


def test_a_field_that_came_later_leaves_older_keys_alone(tiny_run):
    """The key that this run had before there was a choice of optimiser, in the first edition."""
    assert tiny_run(optimizer="adam").key == tiny_run().key
    assert config.key(tiny_run(), config.FIRST_EDITION) == "74219434b4df"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transfusion", "needs a block, such as transfusion:block2"),
        (
            "transfer:block1",
            "possible are transfusion, suffix, only, frozen, mean_var with a block",
        ),
        ("only:", "with a block"),
        ("transfuson:block1", "Did you mean 'transfusion'"),
    ],
)
def test_names_of_inits_are_checked(name, message):
    with pytest.raises(ValueError, match=message):
        config.init_name(name)


def test_dump_and_load_are_inverse(tiny_run):
    transferred = tiny_run(init=config.Init(name="transfer", source=tiny_run()))
    for spec in (transferred, config.Comparison(runs=(tiny_run(), transferred))):
        assert config.load(config.dump(spec)) == spec
        assert config.load(config.dump(spec)).key == spec.key


@pytest.mark.parametrize(
    "field",
    [{"size": "32"}, {"size": 3}, {"train": 0}, {"pixels": 32}, {"seed": 1.5}],
)
def test_specifications_are_strict(field):
    with pytest.raises((ValidationError, TypeError)):
        config.Data(**{"name": "fundus", "size": 32, **field})


def test_yaml_reads_exponents_as_numbers(tmp_path):
    path = tmp_path / "a.yml"
    path.write_text("a: 1e-3\nb: [1e3, 2E+2]\nc: 0.001\nd: e3\n")
    assert studies.read_yaml(path) == {"a": 0.001, "b": [1000.0, 200.0], "c": 0.001, "d": "e3"}


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n"])
def test_yaml_that_is_no_parameter_file(tmp_path, text):
    (tmp_path / "a.yml").write_text(text)
    with pytest.raises(ValueError, match="a.yml"):
        studies.read_yaml(tmp_path / "a.yml")


@pytest.mark.parametrize("path", sorted((ROOT / "params").rglob("*.yml")), ids=str)
def test_plain_yaml_reads_parameter_files_alike(path):
    assert yaml.safe_load(path.read_text()) == studies.read_yaml(path)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'cbr_tiny'"):
        config.one_of("cbr_tinny", ["cbr_tiny", "resnet50"], "model")

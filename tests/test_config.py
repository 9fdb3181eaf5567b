import re
from dataclasses import replace

import pytest
import yaml
from pydantic import ValidationError
from transfusion import config
from transfusion.studies import params

from .conftest import ROOT


def test_key_changes_with_every_field(tiny_run):
    run = tiny_run()
    others = [
        replace(run, seed=1),
        replace(run, model="cbr_small"),
        replace(run, data=replace(run.data, size=48)),
        replace(run, data=replace(run.data, seed=1)),
        replace(run, data=replace(run.data, folds=5)),
        replace(run, data=replace(run.data, folds=5, fold=1)),
        replace(run, data=replace(run.data, folds=4, fold=1)),
        replace(run, data=replace(run.data, folds_seed=1)),
        replace(run, optim=replace(run.optim, evaluate_at=(1,))),
        replace(run, optim=replace(run.optim, augmentation="mirror and crops")),
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
    """The key that this run has had since weights are those of the last step."""
    assert tiny_run(optimizer="adam", devices=1).key == tiny_run().key == "ef64b68581c3"
    assert config.key(tiny_run(), 2) != tiny_run().key


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fold": 1}, "fold 1: expected 0 to 0"),
        ({"folds": 5, "fold": 5}, "fold 5: expected 0 to 4"),
        ({"folds": 5, "fold": -1}, "greater than or equal to 0"),
        ({"folds": 2}, "greater than or equal to 3"),
    ],
)
def test_a_fold_is_one_of_the_folds(fields, message):
    with pytest.raises(ValidationError, match=message):
        config.Data(name="fundus", size=32, **fields)
    assert config.Data(name="fundus", size=32, folds=3, fold=2).fold == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate_at": (3, 11)}, r"evaluate_at \[11\]: expected steps up to 10"),
        ({"evaluate_at": (0,)}, "greater than or equal to 1"),
        ({"augmentation": "crops"}, "'mirror' or 'mirror and crops'"),
    ],
)
def test_recipes_are_checked(fields, message):
    with pytest.raises(ValidationError, match=message):
        config.Optim(steps=10, **fields)
    assert config.Optim(steps=10, evaluate_at=(1, 10)).evaluate_at == (1, 10)


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
    transferred = replace(transferred, data=replace(transferred.data, folds=5, fold=2))
    probe = config.Baseline(
        data=transferred.data, features="frozen", model="cbr_tiny", init=transferred.init
    )
    late = tiny_run(evaluate_at=(1, 2), augmentation="mirror and crops")
    for spec in (transferred, config.Comparison(runs=(tiny_run(), transferred)), probe, late):
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
    assert params.read_yaml(path) == {"a": 0.001, "b": [1000.0, 200.0], "c": 0.001, "d": "e3"}


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [1\n"])
def test_yaml_that_is_no_parameter_file(tmp_path, text):
    (tmp_path / "a.yml").write_text(text)
    with pytest.raises(ValueError, match="a.yml"):
        params.read_yaml(tmp_path / "a.yml")


@pytest.mark.parametrize("path", sorted((ROOT / "params").rglob("*.yml")), ids=str)
def test_plain_yaml_reads_parameter_files_alike(path):
    assert yaml.safe_load(path.read_text()) == params.read_yaml(path)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'cbr_tiny'"):
        config.one_of("cbr_tinny", ["cbr_tiny", "resnet50"], "model")

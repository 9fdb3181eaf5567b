"""Weights as people have them: taken for what they are, which is told, or refused in words."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transfusion import cli, store
from transfusion.networks import models, renaming, weights


@pytest.fixture(scope="module")
def state():
    return models.build("resnet18", outputs=10, seed=1).state_dict()


@pytest.fixture(scope="module")
def kept(state):
    """What is kept of it: all but the classifier."""
    return {n: t for n, t in state.items() if not n.startswith("fc.")}


def taken(path, told=None):
    full = weights.import_weights("resnet18", path, told=told)
    return weights.named_weights(full)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name].float() if expected[name].ndim else expected[name])
        for name in found
    )


@pytest.mark.parametrize(
    ("around", "place"),
    [
        (lambda s: s, None),
        (lambda s: {"model": s, "epoch": 3}, "['model']"),
        (
            lambda s: {"state_dict": s, "optimizer": {"state": {}, "param_groups": []}},
            "['state_dict']",
        ),
        (lambda s: {"model_state_dict": s}, "['model_state_dict']"),
        (lambda s: {"student": {"a": torch.zeros(1)}, "teacher": s, "loss": 0.5}, "['teacher']"),
        (lambda s: {"checkpoint": {"net": s}}, "['checkpoint']['net']"),
    ],
)
def test_a_state_is_found_within_what_was_saved(cache, tmp_path, state, kept, around, place):
    torch.save(around(dict(state)), tmp_path / "w.pth")
    told = []
    assert same(taken(tmp_path / "w.pth", told), kept)
    assert told == ([f"the weights are those under {place}"] if place else [])


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "backbone.", "module.encoder_q.", "a.b.c."]
)
def test_prefixes_of_what_wrapped_a_network_go(cache, tmp_path, state, kept, prefix):
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    torch.save(wrapped | {"queue": torch.zeros(3, 4)}, tmp_path / "w.pth")
    told = []
    assert same(taken(tmp_path / "w.pth", told), kept)
    assert told == [f"names without their prefix {prefix!r}"]


def test_of_two_wrapped_networks_the_one_that_is_whole_is_taken(cache, tmp_path, state, kept):
    part = {f"encoder_k.{n}": t + 1 for n, t in state.items() if n.startswith(("conv1", "bn1"))}
    torch.save(part | {f"encoder_q.{n}": t for n, t in state.items()}, tmp_path / "w.pth")
    assert same(taken(tmp_path / "w.pth"), kept)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    prefix=st.from_regex(r"([a-z_]{1,6}\.){0,3}", fullmatch=True),
    wrappers=st.lists(st.sampled_from(weights.WRAPPERS), max_size=3),
    beside=st.dictionaries(st.sampled_from(["epoch", "step", "loss"]), st.integers(0, 9)),
)
def test_however_deep_and_prefixed_the_same_tensors_come_out(
    state, kept, tmp_path_factory, prefix, wrappers, beside
):
    held = {prefix + name: tensor for name, tensor in state.items()}
    for wrapper in wrappers:
        held = {wrapper: held, **beside}
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(held, path)
    net = models.build("resnet18", outputs=5)
    found = weights.fit_source(
        net, renaming.adapted(net, "resnet18", weights.read_weights(path), [])
    )
    assert same(found, kept)


@pytest.mark.parametrize("ending", ["pth", "pt", "ckpt", "bin", "npz", "safetensors", "index"])
def test_every_kind_of_file_gives_the_same(cache, tmp_path, state, kept, ending):
    path = tmp_path / f"w.{ending}"
    if ending == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    elif ending == "safetensors":
        save_file(state, path)
    elif ending == "index":
        path = tmp_path / "w.safetensors.index.json"
        names, place = list(state), {}
        for i, part in enumerate((names[:50], names[50:])):
            save_file({name: state[name] for name in part}, tmp_path / f"part{i}.safetensors")
            place |= dict.fromkeys(part, f"part{i}.safetensors")
        path.write_text(json.dumps({"weight_map": place}))
    else:
        torch.save(state, path)
    assert same(taken(path), kept)


def test_only_the_classifiers_may_differ(cache, tmp_path, state, kept):
    layers = {"fc.0.weight": torch.zeros(8, 512), "fc.3.weight": torch.zeros(2, 8)}
    torch.save({**kept, **layers}, tmp_path / "w.pth")
    assert same(taken(tmp_path / "w.pth"), kept)
    torch.save({**kept, "neck.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not in the network: neck.weight"):
        taken(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_left_out(name):
    import torchvision

    whole = getattr(torchvision.models, name)(weights=None, aux_logits=True, init_weights=False)
    net = models.build(name, outputs=5)
    found = weights.fit_source(net, whole.state_dict())
    assert not any(name.startswith(weights.AUXILIARY) for name in found)
    assert found.keys() == {n for n in net.state_dict() if not models.in_head(net, n)}


def test_densenets_are_taken_as_torchvision_published_them():
    net = models.build("densenet121", outputs=5, seed=1)
    new = net.state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", n): t for n, t in new.items()
    }
    told = []
    assert old.keys() != new.keys()
    assert renaming.adapted(net, "densenet121", old, told).keys() == new.keys() and len(told) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_by_name(cache, tmp_path, state, bad):
    broken = dict(state) | {"layer1.0.conv1.weight": torch.full((64, 64, 3, 3), bad)}
    torch.save(broken, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="no numbers .*: layer1.0.conv1.weight"):
        taken(tmp_path / "w.pth")


def test_a_first_layer_for_grey_images_gives_the_same_of_grey(cache, tmp_path, state):
    grey = dict(state) | {"conv1.weight": state["conv1.weight"].sum(1, keepdim=True)}
    torch.save(grey, tmp_path / "w.pth")
    told = []
    found = taken(tmp_path / "w.pth", told)["conv1.weight"]
    image = torch.rand(1, 1, 16, 16)
    of_grey = torch.nn.functional.conv2d(image, grey["conv1.weight"])
    of_colours = torch.nn.functional.conv2d(image.expand(-1, 3, -1, -1), found)
    torch.testing.assert_close(of_colours, of_grey)
    assert told == ["conv1.weight is for grey images: each of three colours gets a third of it"]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"epoch": 3}, "holds no weights by name; it has 'epoch'"),
        (torch.zeros(3), "holds no weights by name, but a Tensor"),
        ({}, "holds no weights by name"),
        ({"a.weight": torch.zeros(1)}, "The network has conv1.weight.*; the weights have a.weight"),
    ],
)
def test_what_is_there_is_said_where_nothing_fits(cache, tmp_path, held, message):
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        taken(tmp_path / "w.pth")


def test_what_was_done_is_printed_beside_the_name(cache, tmp_path, state, capsys):
    torch.save({"state_dict": dict(state)}, tmp_path / "w.pth")
    assert cli.main(["weights", "resnet18", "--from", str(tmp_path / "w.pth")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("weights: {resnet18: imagenet@")
    assert printed.err == "note: the weights are those under ['state_dict']\n"
    assert [p.suffix for p in (store.root() / "weights").iterdir()] == [".safetensors"]


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", ".hidden", "", "a b"])
def test_a_name_leads_nowhere_out_of_the_cache(cache, tmp_path, name):
    torch.save(models.build("cbr_tiny", outputs=2).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="expected letters, digits"):
        weights.import_weights("cbr_tiny", tmp_path / "weights.pth", name)
    assert not cache.exists()

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.resnet import BasicBlock, ResNet
from transfusion import config, store, terms
from transfusion.networks import classics, gabors, inits, models, parts, weights

# What each init makes of convolutions, batch norm's scale and shift, and its statistics.
MADE_OF = {
    "transfer": ("copied", "copied", "copied"),
    "mean_var": ("redrawn", "kept", "kept"),
    "mean_var_bn_copied": ("redrawn", "copied", "copied"),
    "mean_var_bn_redrawn": ("redrawn", "redrawn", "kept"),
    "permuted": ("redrawn", "kept", "kept"),
    "scale_matched": ("redrawn", "kept", "kept"),
    "batch_norm": ("kept", "copied", "copied"),
}
BLOCKS = ("conv1", "block1", "block2", "block3", "block4")
BY_BLOCK_ALONE = [name.rstrip(":") for name in terms.INITS if name.endswith(":")]
BY_BLOCK = [f"{name}:{block}" for name in BY_BLOCK_ALONE for block in BLOCKS]
EVERY = [*MADE_OF, "gabor", *BY_BLOCK]
MODULES = {"conv1": "conv1", "bn1": "conv1", **{f"layer{i}": f"block{i}" for i in range(1, 5)}}


class Narrow(ResNet):
    """Names and kinds of tensors as in every ResNet, but few of them, and small."""

    def _make_layer(self, block, planes, *rest, **options):
        return super()._make_layer(block, planes // 8, *rest, **options)


def narrow(outputs, seed):
    torch.manual_seed(seed)
    net = Narrow(BasicBlock, [1, 2, 1, 1], num_classes=outputs)
    return parts.named(net, parts.Plan(classics.RESNET, ("fc",)))


@pytest.fixture(scope="module")
def source():
    """A "pretrained" network with another classifier and unusual statistics."""
    return unusual(narrow(outputs=20, seed=9))


@pytest.fixture(scope="module")
def built():
    return narrow(outputs=5, seed=2)


@pytest.fixture
def fresh(built):
    return copy.deepcopy(built)


def unusual(net):
    generator = torch.Generator().manual_seed(1)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator) + 0.1)
    return net.state_dict()


def started(name, built, source, seed=4):
    net = copy.deepcopy(built)
    record = inits.apply(name, net, source=source, seed=seed)
    return net.state_dict(), record


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def chosen(name):
    """The blocks that an init by block is about."""
    start, block = name.split(":")
    at = BLOCKS.index(block)
    return {"suffix": BLOCKS[at:], "only": BLOCKS[at : at + 1]}.get(start, BLOCKS[: at + 1])


def kind(name, tensor):
    return 0 if tensor.ndim == 4 else 1 if name.endswith(("weight", "bias")) else 2


def expected(name, built, source):
    """What becomes of each tensor, from the table above and the modules' names."""
    found, name = {}, "transfer" if name.startswith("frozen") else name
    for tensor, value in built.state_dict().items():
        block = MODULES.get(tensor.split(".")[0])
        if block is None:  # the classifier
            found[tensor] = "kept"
        elif ":" in name:
            made_of = MADE_OF["mean_var" if name.startswith("mean_var") else "transfer"]
            found[tensor] = made_of[kind(tensor, value)] if block in chosen(name) else "kept"
        elif name == "gabor":
            found[tensor] = "redrawn" if tensor == "conv1.weight" else "kept"
        else:
            found[tensor] = MADE_OF[name][kind(tensor, value)]
    return found


def test_every_init_of_the_table_is_tried_here():
    there = {name.partition(":")[0] + ":" * (":" in name) for name in EVERY}
    assert {"random", *there} == set(terms.INITS)
    for name in EVERY:
        assert inits._function(name).__module__ == inits.__name__


def test_a_row_without_a_function_is_told(monkeypatch):
    for name in ("nothing", "weights", "apply"):
        monkeypatch.setitem(terms.INITS, name, terms.Start("a title", "circle"))
        with pytest.raises(ValueError, match=f"init '{name}' has no function {name}"):
            inits._function(name)


@pytest.mark.parametrize("name", EVERY)
def test_each_tensor_is_copied_redrawn_or_kept(name, built, source):
    state, record = started(name, built, source)
    assert record == expected(name, built, source)
    for tensor, value in state.items():
        assert torch.equal(value, built.state_dict()[tensor]) or record[tensor] != "kept", tensor
        same_as_source = value.shape == source[tensor].shape and torch.equal(value, source[tensor])
        assert same_as_source == (record[tensor] == "copied") or value.ndim == 0, tensor


@pytest.mark.parametrize("name", ["mean_var", "mean_var_bn_copied", "mean_var_bn_redrawn"])
def test_mean_var_keeps_mean_and_deviation_and_nothing_else(name, built, source):
    state, record = started(name, built, source)
    for tensor in (tensor for tensor, what in record.items() if what == "redrawn"):
        redrawn, given, n = state[tensor], source[tensor], state[tensor].numel()
        deviation = given.std(correction=0)
        assert abs(redrawn.mean() - given.mean()) < 5 * deviation / n**0.5
        assert redrawn.std(correction=0) == pytest.approx(deviation.item(), rel=5 / (2 * n) ** 0.5)
        correlation = np.corrcoef(redrawn.ravel().numpy(), given.ravel().numpy())[0, 1]
        assert abs(correlation) < 5 / n**0.5


def test_permuted_weights_are_the_same_in_another_order(built, source):
    state, record = started("permuted", built, source)
    for tensor in (tensor for tensor, what in record.items() if what == "redrawn"):
        ours, given = state[tensor].flatten(), source[tensor].flatten()
        assert torch.equal(ours.sort().values, given.sort().values)
        assert (ours == given).float().mean() < 0.02


def test_scale_matched_weights_keep_their_direction(built, source):
    state, record = started("scale_matched", built, source)
    for tensor in (tensor for tensor, what in record.items() if what == "redrawn"):
        ours, before, given = state[tensor], built.state_dict()[tensor], source[tensor]
        torch.testing.assert_close(ours / ours.norm(), before / before.norm())
        torch.testing.assert_close(ours.std(correction=0), given.std(correction=0))


def test_biases_that_are_built_as_zeros_cannot_be_scaled():
    net = models.build("mobilenetv3_small_100", outputs=5)
    record = inits.apply("scale_matched", net, source=unusual(copy.deepcopy(net)))
    assert record["conv_head.bias"] == "kept" and record["conv_head.weight"] == "redrawn"
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_prefix_and_suffix_copy_every_tensor_but_the_head_once(built, source):
    for block, following in zip(BLOCKS, BLOCKS[1:], strict=False):
        parts = [
            started(name, built, source)[1]
            for name in (f"transfusion:{block}", f"suffix:{following}")
        ]
        copied = [name for part in parts for name, what in part.items() if what == "copied"]
        assert sorted(copied) == sorted(n for n in source if not models.in_head(built, n))


def test_single_blocks_and_the_whole_prefix_add_up_to_transfer(built, source):
    whole = started("transfer", built, source)
    for name in ("transfusion:block4", "suffix:conv1", "frozen:block4"):
        state, record = started(name, built, source)
        assert record == whole[1] and same(state, whole[0])
    parts = [started(f"only:{block}", built, source)[1] for block in BLOCKS]
    copied = [name for part in parts for name, what in part.items() if what == "copied"]
    assert sorted(copied) == sorted(n for n, what in whole[1].items() if what == "copied")


@pytest.mark.parametrize("start", BY_BLOCK_ALONE)
def test_conv1_is_the_first_block_of_a_cbr_network(start):
    built = models.build("cbr_tiny", outputs=5)
    source = unusual(copy.deepcopy(built))
    a, b = (started(f"{start}:{block}", built, source) for block in ("conv1", "block1"))
    assert a[1] == b[1] and same(a[0], b[0])


@pytest.mark.parametrize("model", ["resnet18", "cbr_tiny"])
def test_gabors_have_the_pretrained_filters_mean_and_deviation(model):
    net = models.build(model, outputs=5)
    name = "conv1.weight" if model == "resnet18" else "block1.0.weight"
    pretrained = unusual(copy.deepcopy(net))[name]
    inits.apply("gabor", net, source={name: pretrained})
    weight = net.state_dict()[name]
    torch.testing.assert_close(weight.mean(), pretrained.mean())
    torch.testing.assert_close(weight.std(correction=0), pretrained.std(correction=0))
    assert torch.equal(weight, weight[:, :1].expand_as(weight))
    distance = torch.cdist(weight.flatten(1), weight.flatten(1)).fill_diagonal_(torch.inf)
    assert distance.min() > 0.1 * weight[0].norm()
    fits = gabors.gabor_fit(weight.numpy()) > gabors.gabor_level(weight.shape[-1])
    assert fits.mean() > 0.95


@pytest.mark.parametrize("name", ["random", *MADE_OF, "gabor", "mean_var:block1", "suffix:block3"])
def test_an_init_is_a_function_of_its_seed(name, built, source):
    a, b, c = (started(name, built, source, seed)[0] for seed in (4, 4, 5))
    assert same(a, b)
    assert same(a, c) != (name.startswith("mean_var") or name == "permuted")


def test_random_leaves_the_network_as_built(fresh, built):
    assert set(inits.apply("random", fresh).values()) == {"kept"}
    assert same(fresh.state_dict(), built.state_dict())


# --- sources that lack something -------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_an_init_needs_what_it_takes_and_no_more(name, built, source):
    needed = inits.needed(name, built)
    little = {tensor: source[tensor] for tensor in needed}
    (state, record), (full, _) = (started(name, built, s) for s in (little, source))
    assert same(state, full)
    assert needed == {tensor for tensor, what in record.items() if what != "kept"}
    lost = max(tensor for tensor in needed if not tensor.endswith("batches_tracked"))
    del little[lost]
    with pytest.raises(ValueError, match=f"in 1 tensors.*\n  missing: {lost}"):
        started(name, built, little)


def test_the_slim_network_starts_from_what_fits_of_the_full_one():
    full = models.build("resnet50", outputs=20, seed=1).state_dict()
    net = models.build("resnet50_slim", outputs=5)
    record = inits.apply("transfusion:block2", net, source=full)
    copied = {name for name, what in record.items() if what == "copied"}
    assert copied == {n for n in full if n.split(".")[0] in ("conv1", "bn1", "layer1", "layer2")}
    assert all(torch.equal(net.state_dict()[name], full[name]) for name in copied)
    for name in ("transfer", "transfusion:block3", "only:block4"):
        with pytest.raises(ValueError, match=r"layer[34].0.bn1.bias: expected \("):
            inits.apply(name, net, source=full)


@pytest.mark.parametrize("model", ["vgg11", "vit_b_16", "mobilenetv3_small_100", "swin_t"])
def test_transfer_takes_every_tensor_but_the_head_of_any_network(model):
    with torch.device("meta"):
        net = models.build(model, outputs=5)
    last = list(models.blocks(net))[-1]
    body = {name for name in net.state_dict() if not models.in_head(net, name)}
    for name in ("transfer", f"transfusion:{last}", f"frozen:{last}"):
        assert inits.needed(name, net) == body
    assert len(net.state_dict()) == len(body) + 2


def test_weights_that_do_not_fit_are_listed(fresh, source):
    wrong = {name: tensor for name, tensor in source.items() if name != "conv1.weight"}
    wrong["layer1.0.conv1.weight"] = torch.zeros(8, 64, 5, 5)
    wrong["surplus.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="in 3 tensors") as error:
        weights.fit_source(fresh, wrong)
    for part in (
        "missing: conv1.weight",
        "not in the network: surplus.weight",
        "layer1.0.conv1.weight: expected (8, 64, 3, 3), got (8, 64, 5, 5)",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="in 2 tensors"):
        inits.apply("transfer", fresh, source=wrong)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meanvar", "Did you mean 'mean_var'"),
        ("transfuson:block1", "Did you mean 'transfusion'"),
        ("transfusion", "needs a block, such as transfusion:block2"),
        ("only:", "possible are transfusion, suffix, only, frozen, mean_var with a block"),
        ("transfer:block1", "'transfer:block1': possible are transfusion, suffix"),
        ("random:conv1", "possible are"),
        ("only:block9", "unknown block 'block9'; possible: conv1, block1, block2"),
        ("transfer", "needs pretrained weights"),
    ],
)
def test_inits_that_cannot_be(fresh, source, name, message):
    with pytest.raises(ValueError, match=message):
        inits.apply(name, fresh, source=None if name == "transfer" else source)
    if name not in ("transfer", "only:block9"):  # blocks are the network's to know
        with pytest.raises(ValueError, match=message):
            config.Init(name=name)


# --- weights from files ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_weights_from_files(cache, tmp_path, suffix):
    source = models.build("cbr_tiny", outputs=9).state_dict()
    path = tmp_path / f"weights{suffix}"
    halves = {n: t.half() if t.is_floating_point() else t for n, t in source.items()}
    {
        ".pth": lambda: torch.save({"state_dict": halves}, path),
        ".safetensors": lambda: save_file(halves, path),
        ".npz": lambda: np.savez(path, **{n: t.numpy() for n, t in halves.items()}),
    }[suffix]()
    name = weights.import_weights("cbr_tiny", path)
    kept = weights.named_weights(name)
    assert torch.equal(kept["block1.0.weight"], halves["block1.0.weight"].float())
    assert "head.weight" not in kept
    assert name == weights.import_weights("cbr_tiny", path)


def test_weights_that_cannot_be_read(cache, tmp_path):
    source = models.build("cbr_tiny", outputs=9).state_dict()
    with pytest.raises(FileNotFoundError, match="no weights at"):
        weights.read_weights(tmp_path / "none.pth")
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown weights format '.h5'"):
        weights.read_weights(tmp_path / "a.h5")
    (tmp_path / "a.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a readable .npz"):
        weights.read_weights(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="there: none. Import them"):
        weights.named_weights("imagenet@000000000000")
    save_file({n: t.contiguous() for n, t in source.items()}, tmp_path / "a.safetensors")
    name = weights.import_weights("cbr_tiny", tmp_path / "a.safetensors")
    store.weights_file(name).write_bytes(b"cut")
    with pytest.raises(store.Damaged, match="import it again"):
        weights.named_weights(name)

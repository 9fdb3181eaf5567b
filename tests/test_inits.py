import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transfusion import inits, models, store


@pytest.fixture(scope="module")
def source():
    """A "pretrained" network with another classifier and unusual statistics."""
    net = models.build("resnet18", outputs=20, seed=9)
    generator = torch.Generator().manual_seed(1)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator) + 0.1)
    return net.state_dict()


@pytest.fixture
def fresh():
    return models.build("resnet18", outputs=5, seed=2)


def copy(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_transfer_copies_every_tensor_but_the_head_bit_for_bit(fresh, source):
    before = copy(fresh)
    record = inits.apply("transfer", fresh, source=source)
    for name, tensor in fresh.state_dict().items():
        if models.in_head(fresh, name):
            assert record[name] == "kept" and torch.equal(tensor, before[name])
        else:
            assert record[name] == "copied" and torch.equal(tensor, source[name])
    assert sum(kept == "kept" for kept in record.values()) == 2


def test_mean_var_keeps_mean_and_deviation_and_nothing_else(fresh, source):
    before = copy(fresh)
    record = inits.apply("mean_var", fresh, source=source, seed=4)
    for name, tensor in fresh.state_dict().items():
        if record[name] == "kept":
            assert torch.equal(tensor, before[name])
            continue
        n, given = tensor.numel(), source[name]
        error = given.std() / n**0.5
        assert abs(tensor.mean() - given.mean()) < 5 * error
        assert tensor.std(correction=0) == pytest.approx(given.std().item(), rel=5 / (2 * n) ** 0.5)
        correlation = np.corrcoef(tensor.ravel().numpy(), given.ravel().numpy())[0, 1]
        assert abs(correlation) < 5 / n**0.5
    redrawn = {name for name, what in record.items() if what == "redrawn"}
    convolutions = {n for n, t in source.items() if t.ndim == 4}
    assert redrawn == convolutions


def test_mean_var_is_a_function_of_its_seed(source):
    nets = [models.build("resnet18", outputs=5, seed=2) for _ in range(3)]
    for net, seed in zip(nets, (4, 4, 5), strict=True):
        inits.apply("mean_var", net, source=source, seed=seed)
    a, b, c = (net.conv1.weight for net in nets)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_random_leaves_the_network_as_built(fresh):
    before = copy(fresh)
    assert set(inits.apply("random", fresh).values()) == {"kept"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())


def test_weights_that_do_not_fit_are_listed(fresh, source):
    wrong = {name: tensor for name, tensor in source.items() if name != "conv1.weight"}
    wrong["layer1.0.conv1.weight"] = torch.zeros(64, 64, 5, 5)
    wrong["surplus.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="in 3 tensors") as error:
        inits.apply("transfer", fresh, source=wrong)
    for part in (
        "missing: conv1.weight",
        "not in the network: surplus.weight",
        "layer1.0.conv1.weight: expected (64, 64, 3, 3), got (64, 64, 5, 5)",
    ):
        assert part in str(error.value)


def test_inits_that_cannot_be(fresh):
    with pytest.raises(ValueError, match="Did you mean 'mean_var'"):
        inits.apply("meanvar", fresh)
    with pytest.raises(ValueError, match="needs pretrained weights"):
        inits.apply("transfer", fresh)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_weights_from_files(cache, tmp_path, source, suffix):
    path = tmp_path / f"weights{suffix}"
    halves = {n: t.half() if t.is_floating_point() else t for n, t in source.items()}
    {
        ".pth": lambda: torch.save({"state_dict": halves}, path),
        ".safetensors": lambda: save_file(halves, path),
        ".npz": lambda: np.savez(path, **{n: t.numpy() for n, t in halves.items()}),
    }[suffix]()
    name = inits.import_weights("resnet18", path)
    kept = inits.named_weights(name)
    assert torch.equal(kept["conv1.weight"], halves["conv1.weight"].float())
    assert "fc.weight" not in kept
    assert name == inits.import_weights("resnet18", path)


def test_weights_that_cannot_be_read(cache, tmp_path, source):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        inits.read_weights(tmp_path / "none.pth")
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown weights format '.bin'"):
        inits.read_weights(tmp_path / "a.bin")
    (tmp_path / "a.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a readable .npz"):
        inits.read_weights(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="there: none. Import them"):
        inits.named_weights("imagenet@000000000000")
    save_file({n: t.contiguous() for n, t in source.items()}, tmp_path / "a.safetensors")
    name = inits.import_weights("resnet18", tmp_path / "a.safetensors")
    store.weights_file(name).write_bytes(b"cut")
    with pytest.raises(store.Damaged, match="import it again"):
        inits.named_weights(name)

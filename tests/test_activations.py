import numpy as np
import pytest
import torch
from transfusion import activations, config, data, models, store, train


def test_extractor_gives_the_named_blocks(rng):
    net = models.build("resnet18", outputs=3).eval()
    images = torch.rand(2, 3, 64, 64)
    expected, seen = {}, {}
    x = net.relu(net.bn1(net.conv1(images)))
    expected["conv1"] = x.clone()
    x = net.maxpool(x)
    for i in range(1, 5):
        x = getattr(net, f"layer{i}")(x)
        expected[f"block{i}"] = x.clone()
    with torch.no_grad():
        seen = activations.extractor(net)(images)
    assert list(seen) == list(expected)
    for block, maps in expected.items():
        torch.testing.assert_close(seen[block], maps)


def test_positions_are_distinct_and_shared(rng):
    where = activations.positions(rng, (5, 8, 49), 16)
    assert where.shape == (5, 16) and all(len(set(row)) == 16 for row in where)
    assert activations.positions(rng, (5, 8, 4), 16).shape == (5, 4)


def test_sample_takes_the_named_places(rng):
    maps = torch.arange(2 * 3 * 4.0).view(2, 3, 4)  # image, channel, place
    found = activations.sample(maps, np.array([[3, 0], [1, 2]]), np.array([2, 0]))
    np.testing.assert_array_equal(found[0], [[11, 3], [8, 0]])
    np.testing.assert_array_equal(found[1], [[21, 13], [22, 14]])


@pytest.fixture
def comparison(tiny_run):
    runs = tuple(tiny_run(seed=seed) for seed in (0, 1))
    return config.Comparison(runs=runs, images=40, positions=4, neurons=8)


def test_compare(cache, comparison):
    for run in comparison.runs:
        train.fit(run)
    result = activations.compare(comparison)
    assert result.block.values.tolist() == ["block1", "block2", "block3", "block4"]
    assert result.sizes["pair"] == 6 and result.datapoints.values.tolist() == [160] * 4
    assert ((result.cca >= 0) & (result.cca <= 1)).all()
    assert store.read(comparison.key).identical(result)


def test_compare_needs_trained_weights(cache, comparison):
    with pytest.raises(FileNotFoundError, match="no trained weights of run"):
        activations.compare(comparison)


def test_compare_refuses_mixed_models(cache, tiny_run):
    mixed = config.Comparison(runs=(tiny_run(), tiny_run(model="cbr_small")))
    with pytest.raises(ValueError, match="one model on one data set"):
        activations.compare(mixed)


@pytest.fixture
def images(cache):
    return data.prepare("fundus", size=32, n=300)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_captured_activations_are_those_of_the_network(images, tmp_path, dtype):
    net = models.build("cbr_tiny", outputs=5)
    tree = activations.capture(net, images, tmp_path / "kept.zarr", dtype=dtype)
    assert list(tree.children) == ["block1", "block2", "block3", "block4"]
    assert tree.attrs["images"] == 300
    pixels = torch.from_numpy(images["pixels"].values)
    with torch.no_grad():
        expected = activations.extractor(net)(models.normalise(pixels))
    for block, maps in expected.items():
        found = tree[block]["activation"]
        assert found.dims == ("image", "channel", "y", "x") and found.dtype == dtype
        tolerance = 1e-3 if dtype == "float16" else 1e-5
        np.testing.assert_allclose(found.values, maps.numpy(), rtol=tolerance, atol=1e-5)


def test_some_blocks_and_vectors(images, tmp_path):
    net = models.build("resnet18", outputs=5)
    tree = activations.capture(net, images, tmp_path / "kept.zarr", blocks=["block4", "conv1"])
    assert list(tree.children) == ["block4", "conv1"]
    assert tree["conv1"]["activation"].shape == (300, 64, 16, 16)
    with pytest.raises(ValueError, match="unknown block 'blok1'.*Did you mean 'block1'"):
        activations.capture(net, images, tmp_path / "other.zarr", blocks=["blok1"])
    with pytest.raises(ValueError, match="unknown dtype 'bfloat16'"):
        activations.capture(net, images, tmp_path / "other.zarr", dtype="bfloat16")
    assert not (tmp_path / "other.zarr").exists()


def test_overflow_is_an_error_and_leaves_what_was_there(images, tmp_path):
    net = models.build("cbr_tiny", outputs=5)
    before = activations.capture(net, images, tmp_path / "kept.zarr")["block1"].load()
    net.block2[1].bias.data.fill_(1e6)
    with pytest.raises(ValueError, match="block2 overflows float16.*float32"):
        activations.capture(net, images, tmp_path / "kept.zarr")
    after = store.read_activations(tmp_path / "kept.zarr")["block1"]
    np.testing.assert_array_equal(after["activation"], before["activation"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "kept.zarr"]

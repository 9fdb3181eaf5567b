import numpy as np
import pytest
from transfusion import similarity
from transfusion.similarity import SecondMoments, mean_cca


def orthogonal(rng, p):
    return np.linalg.qr(rng.normal(size=(p, p)))[0]


@pytest.fixture
def layers(rng):
    """Two partly related layers with unequal widths, (datapoints, neurons)."""
    latent = rng.normal(size=(3000, 24))
    x = np.maximum(latent @ rng.normal(size=(24, 32)) + 0.5, 0)
    y = np.maximum(latent @ rng.normal(size=(24, 48)) + rng.normal(size=(3000, 48)), 0)
    return x, y


def by_qr(x, y):
    """The coefficients by Bjorck and Golub's route, which forms no covariance."""
    bases = [np.linalg.qr(a - a.mean(0))[0] for a in (x, y)]
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


def moments(*layers, batch=None):
    found = SecondMoments(tuple(layer.shape[-1] for layer in layers))
    batch = batch or len(layers[0])
    for start in range(0, len(layers[0]), batch):
        found.update([layer[start : start + batch] for layer in layers])
    return found


def test_agrees_with_qr(layers):
    found = moments(*layers, batch=500).cca()
    np.testing.assert_allclose(found.coefficients, by_qr(*layers), atol=1e-10)
    assert found.rank == (32, 48)


def test_a_layer_with_itself_is_one(layers):
    assert mean_cca(layers[0], layers[0]) == pytest.approx(1, abs=1e-12)


def test_invariant_to_invertible_affine_maps(rng, layers):
    x, y = layers
    p, q = x.shape[1], y.shape[1]
    a = orthogonal(rng, p) * np.logspace(0, -2, p) @ orthogonal(rng, p)
    mapped = mean_cca(x @ a + 3, y * rng.uniform(0.001, 1000, q) - 5)
    assert mapped == pytest.approx(mean_cca(x, y), abs=1e-9)


def test_symmetric(layers):
    both = moments(*layers)
    np.testing.assert_allclose(both.cca(0, 1).coefficients, both.cca(1, 0).coefficients, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "p", "q", "expected"),
    [
        (2000, 64, 64, 0.152372),
        (20000, 64, 64, 0.048033),
        (100000, 64, 64, 0.021475),
        (80, 48, 64, 0.874899),
    ],
)
def test_closed_form_of_independent_layers(n, p, q, expected):
    assert similarity.independent(n, p, q) == pytest.approx(expected, abs=1e-6)
    assert similarity.independent(n, q, p) == similarity.independent(n, p, q)


def test_independent_layers_agree_with_the_closed_form(rng):
    found = [mean_cca(rng.normal(size=(800, 40)), rng.normal(size=(800, 40))) for _ in range(5)]
    assert np.mean(found) == pytest.approx(similarity.independent(800, 40, 40), rel=0.01)


def test_null_of_independent_datapoints_is_the_closed_form(rng):
    x = rng.normal(size=(2000, 32))
    null = moments(x, x + 0.1 * rng.normal(size=x.shape)).null().mean
    assert null == pytest.approx(similarity.independent(2000, 32, 32), rel=0.05)


def test_null_keeps_the_dependence_of_positions(rng):
    """Positions of an image are alike: chance gives far more than independent datapoints would."""
    images, positions, p = 200, 50, 32

    def layer():
        own = rng.normal(size=(images, 1, p))
        return np.sqrt(0.8) * own + np.sqrt(0.2) * rng.normal(size=(images, positions, p))

    real = np.mean([moments(layer(), layer()).cca().mean for _ in range(3)])
    x = layer()
    assert moments(x, x).null().mean == pytest.approx(real, rel=0.05)
    assert real > 3 * similarity.independent(images * positions, p, p)


def test_merge_is_the_whole(layers):
    x, y = (layer + 100 for layer in layers)
    whole = moments(x, y, batch=500)
    merged = moments(x[:1500], y[:1500], batch=500)
    merged.merge(moments(x[1500:], y[1500:], batch=500))
    empty = SecondMoments(whole.widths)
    empty.merge(merged)
    empty.merge(SecondMoments(whole.widths))
    for found in (merged, empty):
        assert found.n == whole.n and found.images == whole.images
        np.testing.assert_allclose(found.cca().coefficients, whole.cca().coefficients, atol=1e-10)
        np.testing.assert_allclose(found.null().coefficients, whole.null().coefficients, atol=1e-10)


def test_large_means_and_constant_and_doubled_neurons(rng, layers):
    x, y = (layer.astype(np.float32) for layer in layers)
    expected = mean_cca(x, y)
    assert mean_cca(x + 1000, y + 1000) == pytest.approx(expected, abs=1e-3)  # float32 input
    padded = np.concatenate([x, np.full((len(x), 5), 0.1, np.float32), x[:, :4]], axis=1)
    found = moments(padded, y).cca()
    assert found.rank == (32, 48)
    assert found.mean == pytest.approx(expected, abs=1e-6)


def test_too_few_datapoints_force_ones(rng):
    few = moments(rng.normal(size=(80, 48)), rng.normal(size=(80, 64)))
    assert few.forced() == 33
    assert (few.cca().coefficients > 1 - 1e-9).sum() == 33
    fewer = moments(rng.normal(size=(20, 48)), rng.normal(size=(20, 64)))
    assert fewer.cca().mean == pytest.approx(1)


def test_all_constant_layer_has_no_correlations(rng):
    found = moments(np.ones((50, 4)), rng.normal(size=(50, 4))).cca()
    assert len(found.coefficients) == 0 and np.isnan(found.mean)


def test_bad_input_is_named(rng):
    x = rng.normal(size=(10, 4))
    bad = x.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="network 1: image 3 is not finite"):
        moments(x, bad)
    with pytest.raises(ValueError, match="the same datapoints in 2 networks"):
        SecondMoments((4, 4)).update([x, x[:9]])
    with pytest.raises(ValueError, match=r"expected \(images, positions, 4\), got \(10, 1, 3\)"):
        SecondMoments((4, 4)).update([x, x[:, :3]])
    with pytest.raises(ValueError, match="at least 2 images"):
        moments(x[:1], x[:1])
    with pytest.raises(ValueError, match="at least 2 datapoints, got 0"):
        SecondMoments((4, 4)).cca()
    with pytest.raises(ValueError, match="cannot merge"):
        SecondMoments((4, 4)).merge(SecondMoments((4, 5)))

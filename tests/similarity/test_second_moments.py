import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from transfusion import store
from transfusion.similarity import second_moments, simulation
from transfusion.similarity.second_moments import SecondMoments, mean_cca


def moments(*layers, batch=None, **options):
    widths = tuple(layer.shape[-1] for layer in layers)
    found = SecondMoments({"layer": widths}, **options)
    batch = batch or len(layers[0])
    for start in range(0, len(layers[0]), batch):
        found.update({"layer": [layer[start : start + batch] for layer in layers]})
    return found


def by_qr(x, y):
    """Bjorck and Golub's route, which forms no covariance: the reference."""
    bases = []
    for a in (x.astype(float), y.astype(float)):
        size = np.abs(a).max(0)
        a = a - a.mean(0)
        a = a - a.mean(0)
        a = a[:, np.abs(a).max(0) > 1e-13 * size]
        q, r = np.linalg.qr(a / np.linalg.norm(a, axis=0))
        u, s, _ = np.linalg.svd(r)
        bases.append(q @ u[:, s > max(a.shape) * 2.0**-52 * s[0]])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


# --- twenty cases of every kind of trouble ---------------------------------------------------


def relu_pair(n, p, q, seed):
    """ReLU features of a partly shared latent with a 1/j spectrum."""
    rng = np.random.default_rng(seed)
    latents = max(16, p // 2)
    decay = (1 + np.arange(latents))[:, None] ** -0.5
    maps = [(rng.normal(size=(latents, width)) * decay).astype(np.float32) for width in (p, q)]
    biases = [(0.5 * rng.normal(size=width)).astype(np.float32) for width in (p, q)]
    s = rng.standard_normal((n, latents), dtype=np.float32)
    t = np.float32(0.7) * s + np.float32(0.714) * rng.standard_normal(s.shape, dtype=np.float32)
    pair = []
    for latent, matrix, bias in zip((s, t), maps, biases, strict=True):
        clean = latent @ matrix + bias
        noise = np.float32(0.05) * rng.standard_normal(clean.shape, dtype=np.float32)
        pair.append(np.maximum(clean + noise, 0))
    return pair


def accuracy_cases():
    """name: (x, y, ranks, error of one float64 pass); the last is loose where the truth is that
    one pass cannot do it, and None where the second pass must be asked for."""
    g = np.random.default_rng(0)
    x, y = relu_pair(3000, 48, 64, 3)
    dx, dy = x.astype(float), y.astype(float)

    def orth(p, condition):
        u, v = (np.linalg.qr(g.normal(size=(p, p)))[0] for _ in range(2))
        return (u * np.logspace(0, -np.log10(condition), p)) @ v

    def changed(a, **columns):
        a = a.copy()
        for first, values in columns.items():
            a[:, : int(first[1:])] = values
        return a

    own = np.random.default_rng(0)
    noise = [own.standard_normal((3000, p), dtype=np.float32) for p in (48, 64)]
    same, full = (48, 48), (48, 64)
    cases = {
        "structured float64": (dx, dy, full, 1e-14),
        "structured float32": (x, y, full, 1e-14),
        "independent noise": (*noise, full, 1e-14),
        "identical": (x, x.copy(), same, 1e-14),
    }
    for condition, error in ((10, 1e-12), (1e4, 3e-8), (1e6, None)):
        cases[f"affine copy {condition:g}"] = (dx, dx @ orth(48, condition) + 3, same, error)
    both = dx @ orth(48, 1e3) - 5, dy @ orth(64, 1e3) + 7
    cases["both affine"] = (*both, full, 9e-11)
    few = (43, 61)
    cases["dead"] = (changed(x, c5=0), changed(y, c3=0), few, 2e-14)
    cases["constant"] = (changed(x, c5=0.1), changed(y, c3=1e4 / 3), few, 2e-14)
    duplicated = changed(x, c8=x[:, 8:16]), changed(y, c8=y[:, 8:16])
    cases["duplicated"] = (*duplicated, (40, 56), 2e-14)
    for h, error in ((1e-4, 1e-7), (1e-6, None)):
        near = changed(dx, c8=dx[:, 8:16] + h * g.normal(size=(3000, 8)))
        cases[f"near-singular {h:g}"] = (near, dy, full, error)
    sx, sy = 10 ** g.uniform(-6, 6, 48), 10 ** g.uniform(-6, 6, 64)
    cases["neuron scales"] = (dx * sx, dy * sy, full, 2e-14)
    scaled = (dx * sx).astype(np.float32), (dy * sy).astype(np.float32)
    cases["neuron scales, float32"] = (*scaled, full, 2e-14)
    for mean in (1e3, 1e5):
        moved = (dx + mean).astype(np.float32), (dy + mean).astype(np.float32)
        cases[f"mean {mean:g}"] = (*moved, full, 7e-14)
    cases["scaled by 1e-12"] = (1e-12 * dx, 1e-12 * dy, full, 2e-14)
    cases["n < p"] = (dx[:40], dy[:40], (39, 39), 2e-13)
    cases["n barely > p"] = (dx[:80], dy[:80], full, 5e-13)
    return cases


CASES = accuracy_cases()


def batches(x, y, rows=512):
    for start in range(0, len(x), rows):
        yield {"layer": (x[start : start + rows], y[start : start + rows])}


@pytest.mark.parametrize("case", CASES)
def test_one_pass(case):
    """Ten times the error once measured against 80-bit arithmetic, at least 1e-13."""
    x, y, ranks, error = CASES[case]
    found = moments(x, y, batch=512)
    if error is None:
        assert found.doubtful() == ["layer"]
        return
    with warnings.catch_warnings(action="ignore"):  # exact duplicates ask for a needless pass
        first = found.cca("layer")
    assert first.rank == ranks
    truth = by_qr(x, y)
    assert np.abs(first.coefficients - truth).max() < max(10 * error, 1e-13)
    assert np.abs(first.coefficients - truth).max() < first.certificate + 1e-13


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-8)])
def test_second_pass(case, dtype, tolerance):
    x, y, ranks, _ = CASES[case]
    found = moments(x, y, batch=512, dtype=dtype)
    found.refine(batches(x, y), ["layer"])
    second = found.cca("layer")
    assert second.rank == ranks
    assert np.abs(second.coefficients - by_qr(x, y)).max() < tolerance


@pytest.mark.parametrize("h", [1e-7, 1e-10])
def test_the_rank_asks_for_a_second_pass_where_the_certificate_does_not(h):
    """Directions that the first pass has cut raise no certificate, and change the answer."""
    x, y = (a.astype(float) for a in relu_pair(3000, 48, 64, 3))
    x[:, :8] = x[:, 8:16] + h * (y[:, :8] - y[:, :8].mean(0))
    found = moments(x, y, batch=512)
    with pytest.warns(RuntimeWarning, match="near-singular: read the data again"):
        first = found.cca("layer")
    assert first.certificate < 1e-11 and first.rank[0] == 40
    found.refine(batches(x, y))
    assert found.cca("layer").rank[0] == 48
    assert found.cca("layer").mean == pytest.approx(by_qr(x, y).mean(), abs=1e-6)
    assert first.mean < found.cca("layer").mean - 0.03


def test_a_second_pass_is_of_the_same_data(layers):
    x, y = layers
    found = moments(x, y, batch=512)
    with pytest.raises(ValueError, match="the same 3000 datapoints as at first, got 1024"):
        found.refine(list(batches(x, y))[:2], ["layer"])
    found.refine(batches(x, y), ["layer"])
    assert found._second
    found.update({"layer": layers})
    assert not found._second


@pytest.mark.parametrize("case", CASES)
def test_the_reference_against_80_bits(case):
    x, y, _, _ = CASES[case]
    limit = 1e-12 if x.dtype == float else 1e-9
    bases = [orthonormal(a.astype(np.longdouble), limit) for a in (x, y)]
    truth = jacobi_singular_values(bases[0].T @ bases[1])
    np.testing.assert_allclose(by_qr(x, y), truth.astype(float), atol=5e-11)


def orthonormal(a, limit):
    """Pivoted modified Gram-Schmidt with two more orthogonalisations, in the type of `a`."""
    a = a - a.mean(0)
    a = a - a.mean(0)
    norms = np.sqrt((a**2).sum(0))
    a = a[:, norms > 0] / norms[norms > 0]
    found = []
    while a.shape[1]:
        norms = np.sqrt((a**2).sum(0))
        best = int(norms.argmax())
        if norms[best] < limit:
            break
        q = a[:, best] / norms[best]
        for _ in range(2):
            for other in found:
                q = q - other * (other @ q)
            q = q / np.sqrt(q @ q)
        found.append(q)
        a = np.delete(a, best, 1)
        a = a - np.outer(q, q @ a)
    return np.stack(found, 1)


def jacobi_singular_values(a):
    a = a.T.copy() if a.shape[0] < a.shape[1] else a.copy()
    for _ in range(60):
        change = np.longdouble(0)
        for i in range(a.shape[1] - 1):
            for j in range(i + 1, a.shape[1]):
                x, y = a[:, i].copy(), a[:, j].copy()
                alpha, beta, gamma = x @ x, y @ y, x @ y
                if abs(gamma) <= 1e-19 * np.sqrt(alpha * beta) or gamma == 0:
                    continue
                change = max(change, abs(gamma) / np.sqrt(alpha * beta))
                zeta = (beta - alpha) / (2 * gamma)
                t = (1 if zeta >= 0 else -1) / (abs(zeta) + np.sqrt(1 + zeta**2))
                c = 1 / np.sqrt(1 + t**2)
                a[:, i], a[:, j] = c * (x - t * y), c * (t * x + y)
        if change < 1e-18:
            break
    return np.sort(np.sqrt((a**2).sum(0)))[::-1]


# --- identities and invariances --------------------------------------------------------------


@pytest.fixture(scope="module")
def layers():
    return [layer.astype(float) for layer in relu_pair(3000, 32, 48, 0)]


MEASURES = ["cca", "svcca", "pwcca", "r2_cca", "linear_cka", "procrustes"]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_layer_with_itself_is_one(layers, measure):
    found = getattr(moments(layers[0], layers[0]), measure)("layer")
    assert found.value == pytest.approx(1, abs=1e-10)
    assert found.se == pytest.approx(0, abs=1e-10)
    same = getattr(moments(layers[0]), measure)("layer", 0, 0)
    assert same.value == pytest.approx(1, abs=1e-10) and np.isnan(same.null)


@pytest.mark.parametrize("measure", MEASURES)
def test_symmetric_and_blind_to_shifts_and_rotations(layers, measure, rng):
    x, y = layers
    both, turned = moments(x, y), np.linalg.qr(rng.normal(size=(48, 48)))[0]
    expected = getattr(both, measure)("layer")
    swapped = getattr(both, measure)("layer", 1, 0)
    assert swapped.value == pytest.approx(expected.value, abs=1e-12)
    assert swapped.se == pytest.approx(expected.se, abs=1e-12)
    moved = getattr(moments(x + 3, 2 * y - 5), measure)("layer")
    assert moved.value == pytest.approx(expected.value, abs=1e-9)
    assert moved.null == pytest.approx(expected.null, abs=1e-9)
    if measure != "pwcca":  # it weighs neurons, and so sees their axes
        rotated = getattr(moments(x, y @ turned), measure)("layer")
        assert rotated.value == pytest.approx(expected.value, abs=1e-9)


def test_cca_sees_no_invertible_map_and_svcca_does(layers, rng):
    x, y = layers
    scales = rng.uniform(0.001, 1000, 48)
    for measure, same in (("cca", True), ("r2_cca", True), ("svcca", False)):
        before = getattr(moments(x, y), measure)("layer").value
        after = getattr(moments(x, y * scales), measure)("layer").value
        assert (after == pytest.approx(before, abs=1e-9)) == same


def test_r2_is_the_mean_squared_coefficient(layers):
    both = moments(*layers)
    squares = both.cca("layer").coefficients ** 2
    assert both.r2_cca("layer").value == pytest.approx(squares.mean(), abs=1e-12)


def test_svcca_keeps_more_by_singular_values(layers):
    """99 % of the variance, and of the sum of singular values: two readings, two numbers."""
    x, y = (a.astype(float) * 3 for a in relu_pair(5000, 64, 64, 0))
    both = moments(x, y)
    kept = {of: both.svcca("layer", of=of) for of in ("variance", "singular values")}
    for of, found in kept.items():
        for network, a in enumerate((x, y)):
            s = np.linalg.svd(a - a.mean(0), compute_uv=False)
            parts = np.cumsum(s**2 if of == "variance" else s)
            assert found.rank[network] == int((parts < 0.99 * parts[-1]).sum()) + 1
        assert of in found.measure
    assert kept["variance"].rank < kept["singular values"].rank
    assert both.svcca("layer", keep=1.0).value == pytest.approx(both.cca("layer").value, abs=1e-9)


def test_svcca_is_cca_of_the_components(layers):
    projected = []
    for a in layers:
        u, s, _ = np.linalg.svd(a - a.mean(0), full_matrices=False)
        projected.append(u[:, : int((np.cumsum(s**2) < 0.99 * (s**2).sum()).sum()) + 1])
    expected = by_qr(*projected)
    np.testing.assert_allclose(moments(*layers).svcca("layer").coefficients, expected, atol=1e-10)


def test_pwcca_is_the_definition_over_datapoints():
    x, y = (a.astype(float) for a in relu_pair(4000, 48, 64, 0))
    centred = [a - a.mean(0) for a in (x, y)]
    bases = [np.linalg.qr(a)[0] for a in centred]
    left, values, _ = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    weights = np.abs((bases[0] @ left).T @ centred[0]).sum(1)
    found = moments(x, y).pwcca("layer").value
    assert found == pytest.approx(weights @ values / weights.sum(), abs=1e-10)
    assert found == pytest.approx(0.485439, abs=1e-6)  # computed elsewhere, from the definition
    assert moments(y, x).pwcca("layer").value == pytest.approx(found, abs=1e-12)
    assert moments(x, y).pwcca("layer", side="b").value != pytest.approx(found, abs=1e-3)


def kernel_hsic(x, y):
    n = len(x)
    one, other = (a @ a.T for a in (x, y))
    np.fill_diagonal(one, 0)
    np.fill_diagonal(other, 0)
    rest = one.sum() * other.sum() / (n - 1) - 2 * one.sum(0) @ other.sum(0)
    return ((one * other).sum() + rest / (n - 2)) / (n * (n - 3))


def kernel_cka(x, y):
    return kernel_hsic(x, y) / np.sqrt(kernel_hsic(x, x) * kernel_hsic(y, y))


def test_unbiased_cka_is_its_kernel_form(layers):
    x, y = (layer[:600] for layer in layers)
    whole = moments(x, y, batch=600, blocks=3)
    assert whole.linear_cka("layer").value == pytest.approx(kernel_cka(x, y), abs=1e-12)
    merged = moments(x[:250], y[:250], blocks=3)
    merged.merge(moments(x[250:], y[250:], blocks=3))  # has a pilot of its own
    assert merged.linear_cka("layer").value == pytest.approx(kernel_cka(x, y), abs=1e-12)
    pieces = np.array_split(np.arange(600), 3)  # as the state cuts 600 images
    shifted = np.concatenate([y[np.roll(piece, -1)] for piece in pieces])
    null = moments(x, y, blocks=3).linear_cka("layer").null
    assert null == pytest.approx(kernel_cka(x, shifted), abs=1e-12)


def test_plain_cka_is_its_definition(layers):
    x, y = (layer - layer.mean(0) for layer in layers)
    norms = [np.linalg.norm(a.T @ b) for a, b in ((x, y), (x, x), (y, y))]
    found = moments(*layers).linear_cka("layer", unbiased=False).value
    assert found == pytest.approx(norms[0] ** 2 / (norms[1] * norms[2]), abs=1e-12)


def test_unbiased_cka_of_independent_layers_is_nothing(rng):
    x, y = rng.normal(size=(2, 1024, 256))
    both = moments(x, y)
    assert abs(both.linear_cka("layer").value) < 0.01
    assert both.linear_cka("layer", unbiased=False).value == pytest.approx(0.2, abs=0.01)


def test_undefined_cka_says_so(rng):
    x, y = rng.normal(size=(2, 3, 2))
    with pytest.raises(ValueError, match="cka is undefined: it needs at least 4 datapoints"):
        moments(x, y, blocks=1).linear_cka("layer")
    assert np.isnan(moments(x, y, blocks=1).table("layer", ["cka"]).value).all()


def test_procrustes_is_the_distance_of_rotated_layers(layers):
    x, y = (a - a.mean(0) for a in layers)
    x, y = (a / np.linalg.norm(a) for a in (x, y))
    u, _, v = np.linalg.svd(x.T @ y, full_matrices=False)
    distance = np.linalg.norm(x @ u @ v - y @ v.T @ v) ** 2 + np.linalg.norm(y - y @ v.T @ v) ** 2
    found = moments(*layers).procrustes("layer").value
    assert 2 - 2 * found == pytest.approx(distance, abs=1e-10)


def test_explained_is_the_share_of_a_regression(layers, rng):
    x, y = layers[0], np.concatenate([layers[1][:, :5], np.ones((3000, 1))], axis=1)
    fit = np.linalg.lstsq(np.c_[x, np.ones(3000)], y, rcond=None)[0]
    rest = (y - np.c_[x, np.ones(3000)] @ fit).var(0)
    found = moments(x, y).explained("layer")
    np.testing.assert_allclose(found[:5], 1 - rest[:5] / y[:, :5].var(0), atol=1e-10)
    assert np.isnan(found[5])


# --- the state -------------------------------------------------------------------------------


def everything(found):
    result = [getattr(found, measure)("layer") for measure in MEASURES]
    return np.array([(r.value, r.null) for r in result])


@pytest.mark.parametrize("blocks", [1, 10])
def test_merge_is_the_whole(layers, blocks):
    x, y = (layer + 100 for layer in layers)
    whole = moments(x, y, batch=500, blocks=blocks)
    merged = moments(x[:1500], y[:1500], batch=500, blocks=blocks)
    merged.merge(moments(x[1500:], y[1500:], batch=500, blocks=blocks))
    empty = SecondMoments({"layer": (32, 48)}, blocks=blocks)
    empty.merge(merged)
    empty.merge(SecondMoments({"layer": (32, 48)}, blocks=blocks))
    for found in (merged, empty):
        assert found.datapoints("layer") == found.images("layer") == 3000
        expected = everything(whole)
        np.testing.assert_allclose(everything(found)[:, 0], expected[:, 0], atol=1e-10)
        # With more blocks images are paired otherwise: another draw of the same null.
        close = 1e-10 if blocks == 1 else 0.002
        np.testing.assert_allclose(everything(found)[:, 1], expected[:, 1], atol=close)


def test_batches_make_no_difference(layers):
    one, many = moments(*layers), moments(*layers, batch=50)
    np.testing.assert_allclose(everything(one)[:, 0], everything(many)[:, 0], atol=1e-11)


def test_saved_is_the_same_to_the_bit(layers, tmp_path):
    x, y = layers
    found = moments(x[:1000], y[:1000], batch=200)
    found.save(tmp_path / "moments.zarr")
    again = SecondMoments.load(tmp_path / "moments.zarr")
    for one in (found, again):
        one.update({"layer": (x[1000:], y[1000:])})
    assert everything(found).tobytes() == everything(again).tobytes()
    SecondMoments({"layer": (3, 4)}).save(tmp_path / "empty.zarr")
    assert SecondMoments.load(tmp_path / "empty.zarr").neurons == {"layer": (3, 4)}


def test_a_truncated_state_is_an_error(layers, tmp_path):
    moments(*layers).save(tmp_path / "moments.zarr")
    chunk = next(p for p in (tmp_path / "moments.zarr/products0").rglob("[0-9]") if p.is_file())
    chunk.unlink()
    with pytest.raises(store.Damaged):
        SecondMoments.load(tmp_path / "moments.zarr")


def test_tensors_and_stored_arrays_give_what_arrays_give(layers):
    x, y = layers
    expected = everything(moments(x, y))
    tensors = moments(torch.from_numpy(x), torch.from_numpy(y).requires_grad_())
    np.testing.assert_allclose(everything(tensors), expected, atol=1e-10)
    half = [layer.astype(np.float32) for layer in layers]
    single = moments(*map(torch.from_numpy, half), dtype="float32")
    with pytest.warns(RuntimeWarning, match="near-singular"):  # as float32 products always are
        np.testing.assert_allclose(everything(single), expected, atol=1e-5)
    counts = [np.round(100 * layer) for layer in layers]
    whole = moments(*(torch.from_numpy(count.astype(int)) for count in counts))
    np.testing.assert_allclose(everything(whole), everything(moments(*counts)), atol=1e-10)
    stored = moments(xr.DataArray(x), xr.DataArray(y))
    np.testing.assert_array_equal(everything(stored), expected)


def test_maps_are_positions_with_channels_as_neurons(rng):
    maps = rng.normal(size=(2, 50, 6, 4, 3))  # network, image, channel, y, x
    folded = maps.transpose(0, 1, 3, 4, 2).reshape(2, 50, 12, 6)
    as_maps = SecondMoments({"layer": (6, 6)})
    as_maps.update({"layer": list(maps)})
    np.testing.assert_array_equal(everything(as_maps), everything(moments(*folded)))
    assert as_maps.datapoints("layer") == 600


def test_half_precision_changes_little(layers):
    whole = moments(*layers).cca("layer").coefficients
    half = moments(*(layer.astype(np.float16) for layer in layers)).cca("layer").coefficients
    assert 0 < np.abs(whole - half).max() < 1e-3


def test_the_table_is_the_single_measures(rng):
    nets = [rng.normal(size=(400, 3, 10)) for _ in range(3)]
    nets[2][..., :5] += nets[0][..., :5]
    found = moments(*nets, batch=100)
    table = found.table("layer", ["cca", "cka", "svcca"])
    assert table.sizes == {"measure": 3, "pair": 3}
    for name, measure in (("cca", found.cca), ("cka", found.linear_cka), ("svcca", found.svcca)):
        for pair in range(3):
            one = measure("layer", int(table.a[pair]), int(table.b[pair]))
            row = table.sel(measure=name).isel(pair=pair)
            for variable in ("value", "null", "se", "corrected", "corrected_null"):
                assert float(row[variable]) == pytest.approx(getattr(one, variable), abs=1e-12)


def test_memory_does_not_grow_with_the_images(layers):
    few, many = moments(*layers, batch=100), moments(*layers, batch=100)
    for _ in range(5):
        many.update({"layer": layers})
    size = [sums.products.nbytes for sums in (few._sums["layer"], many._sums["layer"])]
    assert size[0] == size[1] == 8 * 10 * (32 + 1 + 48 + 1 + 1) ** 2


def test_bad_input_is_named_and_nothing_is_added(rng):
    x = rng.normal(size=(10, 4))
    found = SecondMoments({"block1": (4, 4), "block2": (4, 4)})
    found.update({"block1": (x, x), "block2": (x, x)})
    before = found._sums["block1"].products.copy()
    bad = x.copy()
    bad[3, 2] = np.inf

    def refused(match, **layers):
        with pytest.raises(ValueError, match=match):
            found.update({"block1": (x, x), "block2": (x, x), **layers})

    refused("layer 'block2', network 1: activations of image 13 are not finite", block2=(x, bad))
    refused("'block2': expected the same datapoints", block2=(x, x[:9]))
    refused(r"expected the same images in every layer, got .*'block2': 9", block2=(x[:9], x[:9]))
    refused(r"network 1: expected \(images, positions, 4\), got \(10, 1, 3\)", block2=(x, x[:, :3]))
    refused(r"network 0: expected \(images, positions, 4\), got \(40,\)", block2=(x.ravel(), x))
    refused("network 0: a batch needs at least 2 images, got 1", block2=(x[:1], x[:1]))
    refused("network 0: a batch needs at least 2 images, got 0", block2=(x[:0], x[:0]))
    refused("'block2': expected 2 networks, got 1", block2=(x,))
    refused("unknown layer 'blok2'.*Did you mean 'block2'", blok2=(x, x))
    with pytest.raises(ValueError, match="no activations of block2 in this batch"):
        found.update({"block1": (x, x)})
    np.testing.assert_array_equal(found._sums["block1"].products, before)
    with pytest.raises(ValueError, match="no activations were read"):
        SecondMoments({"layer": (4, 4)}).cca("layer")
    with pytest.raises(ValueError, match="unknown layer 'block3'"):
        found.cca("block3")
    with pytest.raises(ValueError, match="cannot merge"):
        found.merge(SecondMoments({"layer": (4, 5)}))
    with pytest.raises(ValueError, match="unknown dtype 'float16'"):
        SecondMoments({"layer": (4, 4)}, dtype="float16")


def test_a_constant_layer_is_named(rng):
    constant = moments(np.full((50, 4), 0.1, np.float32), rng.normal(size=(50, 4)))
    for measure in MEASURES:
        with pytest.raises(ValueError, match="layer 'layer': all 4 neurons of a network are const"):
            getattr(constant, measure)("layer")
    assert np.isnan(constant.table("layer", ["cca", "cka"]).value).all()


# --- null, bias, error -----------------------------------------------------------------------


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
    assert second_moments.independent(n, p, q) == pytest.approx(expected, abs=1e-6)
    assert second_moments.independent(n, q, p) == second_moments.independent(n, p, q)


def test_independent_layers_agree_with_the_closed_form(rng):
    found = [mean_cca(rng.normal(size=(800, 40)), rng.normal(size=(800, 40))) for _ in range(5)]
    assert np.mean(found) == pytest.approx(second_moments.independent(800, 40, 40), rel=0.01)


def test_null_of_independent_datapoints_is_the_closed_form(rng):
    x = rng.normal(size=(2000, 32))
    null = moments(x, x + 0.1 * rng.normal(size=x.shape)).cca("layer").null
    assert null == pytest.approx(second_moments.independent(2000, 32, 32), rel=0.05)


def test_null_of_dependent_positions_is_that_of_permuted_images(rng):
    """Positions of an image are alike: chance gives far more than independent datapoints would."""
    x, y = simulation.related(rng, 200, 50, np.linspace(0.9, 0, 32), tau=0.8)
    found = moments(x, y).cca("layer")
    permuted = np.mean([mean_cca(x, y[rng.permutation(200)]) for _ in range(5)])
    assert found.null == pytest.approx(permuted, rel=0.05)
    assert permuted > 3 * second_moments.independent(200 * 50, 32, 32)
    independent = [simulation.related(rng, 200, 50, np.zeros(32), tau=0.8) for _ in range(3)]
    assert found.null == pytest.approx(np.mean([mean_cca(*pair) for pair in independent]), rel=0.05)


def test_the_null_is_the_shift_by_one_image(layers):
    x, y = (layer[:400] for layer in layers)
    order = np.roll(np.arange(400).reshape(4, 100), -1, axis=1).ravel()
    found = moments(x, y, blocks=4)
    np.testing.assert_allclose(
        found.cca("layer").null, moments(x, y[order]).cca("layer").mean, atol=1e-10
    )
    # Either network may come first; the one behind is shifted in both.
    other = found.cca("layer", 1, 0).null
    assert other == pytest.approx(found.cca("layer").null, abs=1e-12)


def test_jackknife_of_a_mean_is_the_textbook_error(rng):
    values = rng.normal(size=(12, 5))
    left_out = np.array([np.delete(values, b, 0).mean() for b in range(12)])
    found = second_moments.jackknife(values.mean(), left_out, np.full(12, 5))
    assert found.corrected == pytest.approx(values.mean(), abs=1e-12)
    assert found.se == pytest.approx(stats.sem(values.mean(1)), abs=1e-12)


def test_jackknife_of_unequal_blocks_takes_the_bias_of_a_variance_away(rng):
    """The plug-in variance is too small by 1/n; blocks of any size correct it to that order."""
    errors = []
    for _ in range(300):
        values = rng.normal(size=40)
        blocks = np.split(values, [4, 8, 16, 30])
        left = np.array([np.concatenate(blocks[:b] + blocks[b + 1 :]).var() for b in range(5)])
        sizes = np.array([len(b) for b in blocks])
        found = second_moments.jackknife(values.var(), left, sizes)
        errors.append((values.var() - 1, found.corrected - 1))
    plain, corrected = np.mean(errors, 0)
    assert plain < -0.015 and abs(corrected) < 0.012


@pytest.mark.parametrize("per_neuron", [5, 10])
def test_the_corrected_value_is_near_the_population(rng, per_neuron):
    rho = np.linspace(0.95, 0, 32)
    found = [
        moments(*simulation.related(rng, 32 * per_neuron, 1, rho, 0)).cca("layer") for _ in range(8)
    ]
    plain, corrected = (np.mean([getattr(r, n) for r in found]) for n in ("value", "corrected"))
    assert plain > rho.mean() + 0.03
    assert corrected == pytest.approx(rho.mean(), abs=0.015)


def test_random_positions_stand_for_all(rng):
    x, y = simulation.related(rng, 500, 64, np.linspace(0.9, 0, 16), tau=0.5)
    every = moments(x, y).cca("layer")
    where = rng.integers(0, 64, (500, 8))
    few = moments(*(np.take_along_axis(a, where[..., None], 1) for a in (x, y))).cca("layer")
    assert few.n == 500 * 8 and few.enough and every.enough
    assert abs(few.corrected - every.corrected) < 4 * few.se
    assert not moments(x[:4, :8], y[:4, :8], blocks=2).cca("layer").enough


def test_too_few_datapoints_force_ones():
    x, y, _, _ = CASES["n barely > p"]
    few = moments(x, y).cca("layer")
    assert few.forced == 33 and (few.coefficients > 1 - 1e-9).sum() == 33
    x, y, _, _ = CASES["n < p"]
    fewer = moments(x, y).cca("layer")
    assert fewer.mean == pytest.approx(1) and fewer.forced == 39


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*near-singular")  # of a random map, now and then
def test_coverage_of_the_interval():
    """90 % intervals of the default 10 blocks; 200 draws of 1,000 images of 20 like positions."""
    rng, rho = np.random.default_rng(0), np.linspace(0.9, 0, 32)
    draws = [simulation.related(rng, 1000, 20, rho, 0.5) for _ in range(200)]
    found = [moments(*draw).cca("layer") for draw in draws]
    population = np.mean([r.interval(0.9)[0] < rho.mean() < r.interval(0.9)[1] for r in found])
    expected = np.mean([r.value for r in found])
    half = np.array([r.interval(0.9)[1] - r.corrected for r in found])
    expectation = np.mean(np.abs([r.value - expected for r in found]) < half)
    assert 0.82 < population < 0.96 and 0.85 < expectation < 0.96


def test_networks_are_numbered_as_in_a_list(rng):
    shared = rng.normal(size=(300, 4))
    x, y, z = (shared @ rng.normal(size=(4, 6)) + 0.3 * rng.normal(size=(300, 6)) for _ in range(3))
    found = SecondMoments({"layer": (6, 6, 6)})
    found.update({"layer": (x, y, z)})
    assert found.cca("layer", 0, -1).value == found.cca("layer", 0, 2).value
    assert found.cca("layer", 0, -1).null == found.cca("layer", 0, 2).null
    assert np.array_equal(found.explained("layer", -3, -1), found.explained("layer", 0, 2))
    one, other = (found.table("layer", ["cca"], [pair]) for pair in ((0, -1), (0, 2)))
    assert one.identical(other)
    for bad in (3, -4):
        with pytest.raises(ValueError, match=f"layer 'layer' has networks 0 to 2, got {bad}"):
            found.cca("layer", 0, bad)


def test_tensors_beside_arrays_count_as_arrays(rng):
    x, y = rng.normal(size=(300, 5)), rng.normal(size=(300, 7))
    values = []
    for pair in ((x, y), (x, torch.tensor(y)), (torch.tensor(x), y)):
        found = SecondMoments({"layer": (5, 7)})
        found.update({"layer": pair})
        values.append(found.cca("layer").value)
    assert values[0] == values[1] == values[2]

import numpy as np
import pytest
from transfusion import config, data, ingest, store


def spec(**changes):
    sizes = {"train": 30, "valid": 12, "test": 20}
    return config.Data(**{"name": "fundus", "size": 32, **sizes, **changes})


def counts(images):
    return images.split.to_series().value_counts().to_dict()


@pytest.mark.parametrize("name", data.SYNTHETIC)
def test_synthetic_sets(cache, name):
    images = data.load(spec(name=name))
    assert images.pixels.dtype == np.uint8 and images.pixels.shape == (62, 3, 32, 32)
    assert images.target.dtype == np.int16
    assert images.split.to_series().value_counts().to_dict() == {
        "train": 30,
        "test": 20,
        "valid": 12,
    }
    data.check_patients(images.patient, images.split)


def test_synthetic_sets_are_kept(cache, monkeypatch):
    first = data.load(spec())
    monkeypatch.setattr(data, "_generate", None)
    assert first.equals(data.load(spec()))


def test_test_images_stay_when_training_grows(cache):
    small, large = data.load(spec()), data.load(spec(train=40))
    same = [data.split_of(images, "test").pixels.values for images in (small, large)]
    np.testing.assert_array_equal(*same)


def test_a_damaged_set_is_made_again(cache):
    first = data.load(spec())
    pixels = next(cache.rglob("pixels"))
    for file in [file for file in pixels.rglob("*") if file.name != "zarr.json"]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(store.Damaged):
        store.read_zarr(pixels.parent)
    assert first.equals(data.load(spec()))


def test_synthetic_sets_need_sizes(cache):
    with pytest.raises(ValueError, match="give its train, valid and test sizes"):
        data.load(spec(train=None))
    with pytest.raises(ValueError, match="n >= 20"):
        data.prepare("fundus", size=32, n=5)


def test_examples_show_every_grade():
    assert data.examples("fundus", size=32, columns=2).shape == (5, 2, 3, 32, 32)


def test_prepare_a_folder(cache, photographs):
    images = data.prepare("mine", size=16, folder=photographs)
    assert images.pixels.shape == (40, 3, 16, 16)
    assert images.target.values.tolist() == [i % 5 for i in range(40)]
    assert images.attrs["outputs"] == 5 and images.attrs["skipped"] == []
    name = images.attrs["name"]
    assert data.resolve("mine") == name and data.prepared() == [name]
    assert data.load(config.Data(name=name, size=16)).sizes["image"] == 40


def test_a_training_subset_takes_whole_patients_in_seeded_order(cache, photographs):
    name = ingest.ingest("mine", size=16, folder=photographs)
    few = data.load(config.Data(name=name, size=16, train=8))
    more = data.load(config.Data(name=name, size=16, train=16))
    other = data.load(config.Data(name=name, size=16, train=8, seed=1))
    patients = [set(data.split_of(d, "train").patient.values) for d in (few, more, other)]
    assert len(patients[0]) == 4 and patients[0] < patients[1] and patients[0] != patients[2]
    assert len(data.split_of(few, "test").image) == 10
    with pytest.raises(ValueError, match="train=99 asked for"):
        data.load(config.Data(name=name, size=16, train=99))


def test_a_set_taken_whole_is_not_copied(cache, photographs, monkeypatch):
    name = ingest.ingest("mine", size=16, folder=photographs)
    monkeypatch.setattr(data, "_take", None)
    assert data.load(config.Data(name=name, size=16)).sizes["image"] == 40


def test_attrs_are_read_without_pixels(cache, photographs, monkeypatch):
    name = ingest.ingest("mine", size=16, folder=photographs)
    spec_of_mine = config.Data(name=name, size=16)
    whole = data.load(spec_of_mine).attrs
    monkeypatch.setattr(store, "read_zarr", None)
    assert data.attrs(spec_of_mine) == whole
    assert data.attrs(spec()) == data.SYNTHETIC["fundus"][1]
    with pytest.raises(ValueError, match="not prepared at 24 px"):
        data.attrs(config.Data(name=name, size=24))


def test_a_patient_has_one_split():
    data.check_patients(["a", "a", "b"], ["train", "train", "test"])
    with pytest.raises(ValueError, match="more than one split: a "):
        data.check_patients(["a", "a", "b"], ["train", "test", "test"])


def test_unknown_data_sets_are_told_what_there_is(cache):
    with pytest.raises(ValueError, match="neither synthetic nor prepared; known: fundus, cxr"):
        data.resolve("eyepacs")
    with pytest.raises(
        ValueError, match="Prepare it: transfusion data eyepacs --from DIR --size 64"
    ):
        data.load(config.Data(name="eyepacs@0123456789ab", size=64))

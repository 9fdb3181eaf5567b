import numpy as np
import pytest
from transfusion import config, store
from transfusion.images import folds, ingest, tasks


def spec(**changes):
    sizes = {"train": 30, "valid": 12, "test": 20}
    return config.Data(**{"name": "fundus", "size": 32, **sizes, **changes})


def counts(images):
    return images.split.to_series().value_counts().to_dict()


@pytest.mark.parametrize("name", tasks.SYNTHETIC)
def test_synthetic_sets(cache, name):
    images = tasks.load(spec(name=name))
    assert images.pixels.dtype == np.uint8 and images.pixels.shape == (62, 3, 32, 32)
    assert images.target.dtype == np.int16
    assert images.split.to_series().value_counts().to_dict() == {
        "train": 30,
        "test": 20,
        "valid": 12,
    }
    folds.check_patients(images.patient, images.split)


def test_synthetic_sets_are_kept(cache, monkeypatch):
    first = tasks.load(spec())
    monkeypatch.setattr(tasks, "_draw", None)
    assert first.equals(tasks.load(spec()))


def test_test_images_stay_when_training_grows(cache):
    small, large = tasks.load(spec()), tasks.load(spec(train=40))
    same = [tasks.split_of(images, "test").pixels.values for images in (small, large)]
    np.testing.assert_array_equal(*same)


def test_a_damaged_set_is_made_again(cache):
    first = tasks.load(spec())
    pixels = next(cache.rglob("pixels"))
    for file in [file for file in pixels.rglob("*") if file.name != "zarr.json"]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(store.Damaged):
        store.read_zarr(pixels.parent)
    assert first.equals(tasks.load(spec()))


def test_synthetic_sets_need_sizes(cache):
    with pytest.raises(ValueError, match="give its train, valid and test sizes"):
        tasks.load(spec(train=None))
    with pytest.raises(ValueError, match="n >= 20"):
        ingest.prepare("fundus", size=32, n=5)


def test_examples_show_every_grade():
    assert tasks.examples("fundus", size=32, columns=2).shape == (5, 2, 3, 32, 32)


def test_prepare_a_folder(cache, photographs):
    images = ingest.prepare("mine", size=16, folder=photographs)
    assert images.pixels.shape == (40, 3, 16, 16)
    assert images.target.values.tolist() == [i % 5 for i in range(40)]
    assert images.attrs["outputs"] == 5 and images.attrs["skipped"] == []
    name = images.attrs["name"]
    assert tasks.resolve("mine") == name and tasks.prepared() == [name]
    assert tasks.load(config.Data(name=name, size=16)).sizes["image"] == 40


def test_a_subset_is_of_random_images_and_lies_within_larger_ones(cache, photographs):
    name = ingest.ingest("mine", size=16, folder=photographs)
    few, more, other = (
        tasks.split_of(tasks.load(config.Data(name=name, size=16, **taken)), "train")
        for taken in ({"train": 8}, {"train": 16}, {"train": 8, "seed": 1})
    )
    images = [{p.tobytes() for p in part.pixels.values} for part in (few, more, other)]
    assert list(map(len, images)) == [8, 16, 8]
    assert images[0] < images[1] and images[0] != images[2]
    assert 4 < len(set(few.patient.values)), "two images a patient, not taken together"
    everything = tasks.load(config.Data(name=name, size=16))
    subset = tasks.load(config.Data(name=name, size=16, train=8))
    for split in ("valid", "test"):
        assert tasks.split_of(subset, split).equals(tasks.split_of(everything, split))
    with pytest.raises(ValueError, match="train=99 asked for"):
        tasks.load(config.Data(name=name, size=16, train=99))


def test_subsets_of_splits_are_chosen_apart(cache, photographs):
    """How many images teach does not change which ones test."""
    name = ingest.ingest("mine", size=16, folder=photographs)
    one, two = (
        tasks.load(config.Data(name=name, size=16, train=n, valid=3, test=5)) for n in (8, 20)
    )
    assert [len(tasks.split_of(two, s).image) for s in folds.SPLITS] == [20, 3, 5]
    for split in ("valid", "test"):
        assert tasks.split_of(one, split).equals(tasks.split_of(two, split))


# --- folds -----------------------------------------------------------------------------------


@pytest.fixture
def crowd(rng):
    """Labels and patients of 60 people with 1 to 40 images, a quarter of one label alone."""
    patient = np.repeat(np.arange(60), rng.integers(1, 41, 60))
    share = np.where(np.arange(60) < 15, 0, rng.beta(4, 3, 60))
    order = rng.permutation(len(patient))
    return (rng.random(len(patient)) < share[patient]).astype(int)[order], patient[order]


def test_patients_are_dealt_whole_and_their_labels_evenly(crowd):
    target, patient = crowd
    fold = folds.deal(target, patient, 5, 0)
    assert fold.shape == target.shape and set(fold) == set(range(5))
    for person in np.unique(patient):
        assert len(set(fold[patient == person])) == 1
    shares = [target[fold == number].mean() for number in range(5)]
    sizes = [(fold == number).mean() for number in range(5)]
    assert np.abs(np.array(shares) - target.mean()).max() < 0.05
    assert np.abs(np.array(sizes) - 1 / 5).max() < 0.05


def test_dealing_is_by_its_seed(crowd):
    first, again, other = (folds.deal(*crowd, 5, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_images_with_many_findings_are_dealt_evenly(rng):
    """Unknown is not found."""
    patient = np.repeat(np.arange(80), 5)
    target = rng.choice([-1, 0, 1], (400, 4))
    fold = folds.deal(target, patient, 4, 0)
    number = (target == 1).sum(1)
    means = [number[fold == k].mean() for k in range(4)]
    assert np.ptp(means) < 0.25
    assert np.array_equal(fold, folds.deal(np.maximum(target, 0), patient, 4, 0))


def test_a_rare_label_is_in_some_folds_alone(crowd):
    target, patient = crowd[0].copy(), crowd[1]
    target[np.flatnonzero(patient == 3)[:1]] = 2
    fold = folds.deal(target, patient, 5, 0)
    assert len(set(fold[target == 2])) == 1


@pytest.mark.parametrize(
    ("target", "patient", "message"),
    [
        ([0, 1, 0, 1], [0, 0, 1, 1], "3 folds need as many patients and two labels, got 2"),
        ([1, 1, 1, 1], [0, 1, 2, 3], "two labels, got 4"),
        ([0, 0, 0, 1, 1, 0], [0, 1, 2, 3, 3, 4], "fold . of 3 has images of one label alone"),
    ],
)
def test_what_cannot_be_dealt(target, patient, message):
    with pytest.raises(ValueError, match=message):
        folds.deal(np.array(target), np.array(patient), 3, 0)


def each_fold(name, **more):
    return [config.Data(name=name, size=16, folds=5, fold=k, **more) for k in range(5)]


def test_every_image_tests_once_and_validates_once(cache, photographs):
    name = ingest.ingest("mine", size=16, folder=photographs)
    loaded = [tasks.load(spec) for spec in each_fold(name)]
    for images in loaded:
        folds.check_patients(images.patient, images.split)
        assert images.pixels.equals(loaded[0].pixels) and images.sizes["image"] == 40
    splits = np.stack([images.split.values for images in loaded])
    for split, times in (("test", 1), ("valid", 1), ("train", 3)):
        assert ((splits == split).sum(0) == times).all()
    for k in range(5):
        assert np.array_equal(splits[k] == "valid", splits[(k + 1) % 5] == "test")


def test_folds_come_from_a_seed_and_take_no_notice_of_the_splits_that_came(cache, photographs):
    name = ingest.ingest("mine", size=16, folder=photographs)
    own = tasks.load(config.Data(name=name, size=16))
    first, again = tasks.load(each_fold(name)[0]), tasks.load(each_fold(name)[0])
    other = tasks.load(each_fold(name, folds_seed=1)[0])
    assert first.equals(again) and not first.split.equals(other.split)
    assert own.split.values.tolist() == ["train"] * 24 + ["valid"] * 6 + ["test"] * 10
    assert not first.split.equals(own.split)
    assert tasks.load(each_fold(name, seed=1)[0]).split.equals(first.split), "that chooses subsets"


def test_a_subset_of_a_fold_lies_within_it(cache, photographs):
    name = ingest.ingest("mine", size=16, folder=photographs)
    whole, some = (tasks.load(each_fold(name, **n)[2]) for n in ({}, {"train": 9, "valid": 2}))
    for split, count in (("train", 9), ("valid", 2), ("test", None)):
        inside, around = (
            {p.tobytes() for p in tasks.split_of(d, split).pixels.values} for d in (some, whole)
        )
        assert len(inside) == (count or len(around)) and inside <= around


def test_each_fold_of_a_drawn_set_is_drawn_anew(cache):
    drawn = [tasks.load(spec(folds=3, fold=k)) for k in range(3)]
    images = [{p.tobytes() for p in d.pixels.values} for d in drawn]
    assert not images[0] & images[1] and not images[1] & images[2]
    fixed = tasks.load(spec())
    assert fixed.equals(drawn[0]), "the first fold is what there is without"


def test_a_set_taken_whole_is_not_copied(cache, photographs, monkeypatch):
    name = ingest.ingest("mine", size=16, folder=photographs)
    monkeypatch.setattr(folds, "_take", None)
    assert tasks.load(config.Data(name=name, size=16)).sizes["image"] == 40


def test_attrs_are_read_without_pixels(cache, photographs, monkeypatch):
    name = ingest.ingest("mine", size=16, folder=photographs)
    spec_of_mine = config.Data(name=name, size=16)
    whole = tasks.load(spec_of_mine).attrs
    monkeypatch.setattr(store, "read_zarr", None)
    assert tasks.attrs(spec_of_mine) == whole
    assert tasks.attrs(spec()) == tasks.SYNTHETIC["fundus"][1]
    with pytest.raises(ValueError, match="not prepared at 24 px"):
        tasks.attrs(config.Data(name=name, size=24))


def test_a_patient_has_one_split():
    folds.check_patients(["a", "a", "b"], ["train", "train", "test"])
    with pytest.raises(ValueError, match="more than one split: a "):
        folds.check_patients(["a", "a", "b"], ["train", "test", "test"])


def test_unknown_data_sets_are_told_what_there_is(cache):
    with pytest.raises(ValueError, match="neither synthetic nor prepared; known: fundus, cxr"):
        tasks.resolve("eyepacs")
    with pytest.raises(
        ValueError, match="Prepare it: transfusion data eyepacs --from DIR --size 64"
    ):
        tasks.load(config.Data(name="eyepacs@0123456789ab", size=64))

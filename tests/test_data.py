import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transfusion import config, data, store


def spec(**changes):
    sizes = {"train": 30, "valid": 12, "test": 20}
    return config.Data(**{"name": "fundus", "size": 32, **sizes, **changes})


def counts(images):
    return images.split.to_series().value_counts().to_dict()


@pytest.mark.parametrize("name", data.SYNTHETIC)
def test_synthetic_sets(cache, name):
    images = data.load(spec(name=name))
    assert images.pixels.dtype == np.uint8 and images.pixels.shape == (62, 3, 32, 32)
    assert images.split.to_series().value_counts().to_dict() == {
        "train": 30,
        "test": 20,
        "valid": 12,
    }
    data._check_patients(images)


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


def test_pixels_are_those_of_the_files(cache, photographs):
    images = data.prepare("mine", size=30, folder=photographs)
    with Image.open(photographs / "7.png") as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(images.pixels.values[7, :, 5:25], expected)  # padded 20 -> 30
    assert not images.pixels.values[7, :, :5].any()


def test_the_name_follows_the_content(cache, photographs):
    first = data.ingest("mine", size=16, folder=photographs)
    assert first == data.ingest("mine", size=24, folder=photographs)
    Image.new("RGB", (8, 8)).save(photographs / "3.png")
    assert first != data.ingest("mine", size=16, folder=photographs)
    with pytest.raises(ValueError, match="ambiguous"):
        data.resolve("mine")


def test_a_training_subset_takes_whole_patients_in_seeded_order(cache, photographs):
    name = data.ingest("mine", size=16, folder=photographs)
    few = data.load(config.Data(name=name, size=16, train=8))
    more = data.load(config.Data(name=name, size=16, train=16))
    other = data.load(config.Data(name=name, size=16, train=8, seed=1))
    patients = [set(data.split_of(d, "train").patient.values) for d in (few, more, other)]
    assert len(patients[0]) == 4 and patients[0] < patients[1] and patients[0] != patients[2]
    assert len(data.split_of(few, "test").image) == 10
    with pytest.raises(ValueError, match="train=99 asked for"):
        data.load(config.Data(name=name, size=16, train=99))


def edit(folder, change):
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    change(table).to_csv(folder / "labels.csv", index=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="label"), r"no column \['label'\]; it has \['image'"),
        (lambda t: t.assign(label="-1"), "40 labels of column 'label' out of range"),
        (lambda t: t.assign(label="high"), "row 2: 'high'"),
        (lambda t: t.assign(split="holdout"), r"splits \['holdout'\]; possible: train, valid"),
        (lambda t: t.assign(patient="same"), "patients in more than one split: same"),
        (lambda t: t[:0], "has no rows"),
    ],
)
def test_bad_tables(cache, photographs, change, message):
    edit(photographs, change)
    with pytest.raises(ValueError, match=message):
        data.ingest("mine", size=16, folder=photographs)
    assert data.prepared() == []


def test_missing_things_are_named(cache, photographs):
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.ingest("mine", size=16, folder=photographs / "none")
    (photographs / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no table of labels"):
        data.ingest("mine", size=16, folder=photographs)


def test_bad_images_are_listed_and_a_few_left_out(cache, photographs):
    (photographs / "1.png").unlink()
    whole = (photographs / "2.png").read_bytes()
    (photographs / "2.png").write_bytes(whole[: len(whole) // 2])
    (photographs / "3.png").write_text("no image")
    with pytest.raises(ValueError, match="3 of 40 images cannot be used") as error:
        data.ingest("mine", size=16, folder=photographs)
    for part in ("1.png: No such file", "2.png: truncated or not", "3.png: truncated or not"):
        assert part in str(error.value)
    name = data.ingest("mine", size=16, folder=photographs, tolerance=0.1)
    images = store.read_zarr(data.prepared_path(name, 16))
    assert len(images.image) == 37 and len(images.attrs["skipped"]) == 3
    assert images.target.values[:3].tolist() == [0, 4, 0]


def test_eyepacs_as_kaggle_gives_it(cache, tmp_path, rng):
    (tmp_path / "images").mkdir()
    lines = ["image,level"]
    for i in range(30):
        for eye in ("left", "right"):
            pixels = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{i}_{eye}.jpeg")
            lines.append(f"{i}_{eye},{i % 3}")
    (tmp_path / "trainLabels.csv").write_text("\n".join(lines))
    images = data.prepare("eyepacs", size=16, folder=tmp_path)
    assert images.attrs["outputs"] == 5 and images.attrs["positive_from"] == 2
    assert images.patient.values[:4].tolist() == ["0", "0", "1", "1"]
    assert images.split.to_series().value_counts().to_dict() == {
        "train": 42,
        "test": 12,
        "valid": 6,
    }


def test_several_findings(cache, photographs):
    edit(photographs, lambda t: t.assign(edema=t.index % 2, effusion=0))
    images = data.prepare("films", size=16, folder=photographs, target=("edema", "effusion"))
    assert images.target.shape == (40, 2) and images.attrs["task"] == "findings"


def test_unknown_data_sets_are_told_what_there_is(cache):
    with pytest.raises(ValueError, match="neither synthetic nor prepared; known: fundus, cxr"):
        data.resolve("eyepacs")
    with pytest.raises(
        ValueError, match="Prepare it: transfusion data eyepacs --from DIR --size 64"
    ):
        data.load(config.Data(name="eyepacs@0123456789ab", size=64))


def test_a_split_without_images_is_told_before(photographs):
    table = photographs / "labels.csv"
    table.write_text(table.read_text().replace(",test", ",train"))
    with pytest.raises(ValueError, match="no image of split test"):
        data.ingest("mine", size=32, folder=photographs)

import io
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transfusion import cli, config, store
from transfusion.images import ingest, layouts, tasks


def shares(images):
    return images.split.to_series().value_counts().to_dict()


def draw(path, colour=None, size=(24, 20)):
    """A plain image: a colour, or one made of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = colour or tuple(sum(map(ord, str(path))) * k % 256 for k in (1, 7, 31))
    Image.new("RGB", size, colour).save(path)


def jpeg(colour):
    held = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(held, "JPEG")
    return np.frombuffer(held.getvalue(), np.uint8)


# --- a folder and its table ------------------------------------------------------------------


def test_pixels_are_those_of_the_files(cache, photographs):
    images = ingest.prepare("mine", size=30, folder=photographs)
    with Image.open(photographs / "7.png") as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(images.pixels.values[7, :, 5:25], expected)  # padded 20 -> 30
    assert not images.pixels.values[7, :, :5].any()


def test_fine_patterns_are_smoothed_not_sampled(cache, photographs):
    board = np.indices((90, 90)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(photographs / "7.png")
    pixels = ingest.prepare("mine", size=30, folder=photographs).pixels.values[7]
    assert np.abs(pixels.astype(int) - 127).max() < 40


def test_the_name_follows_the_content(cache, photographs):
    first = ingest.ingest("mine", size=16, folder=photographs)
    assert first == ingest.ingest("mine", size=24, folder=photographs)
    assert first == ingest.ingest("mine", size=16, folder=photographs, layout="folder")
    draw(photographs / "3.png")
    assert first != ingest.ingest("mine", size=16, folder=photographs)
    with pytest.raises(ValueError, match="ambiguous"):
        tasks.resolve("mine")


def test_the_digest_is_that_of_earlier_versions(cache, tmp_path):
    """Published results name their images by it."""
    for i, split in enumerate(("train", "val", "test")):
        (tmp_path / f"{i}.ppm").write_bytes(b"P6 1 1 255\n" + bytes([i, i, i]))
        with (tmp_path / "labels.csv").open("a") as table:
            table.write("" if i else "image,label,patient,split,unused\n")
            table.write(f"{i}.ppm,{i},p{i},{split},x\n")
    assert ingest.ingest("mine", size=16, folder=tmp_path) == "mine@69c8dfafe3ba"


def edit(folder, change):
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    change(table).to_csv(folder / "labels.csv", index=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="label"), r"no column \['label'\]; it has \['image'"),
        (lambda t: t.assign(label="-1"), "40 labels of column 'label' out of range"),
        (lambda t: t.assign(label="high"), "row 2: 'high'"),
        (lambda t: t.assign(split="extra"), "column 'split' has 'extra'; expected train, valid"),
        (lambda t: t.assign(split="train"), "no image of split test, valid"),
        (lambda t: t.assign(patient="same"), "patients in more than one split: same"),
        (lambda t: t[:0], "has no rows"),
    ],
)
def test_bad_tables_are_told_before_an_image_is_read(
    cache, photographs, change, message, monkeypatch
):
    edit(photographs, change)
    monkeypatch.setattr(ingest, "_content", None)
    with pytest.raises(ValueError, match=message):
        ingest.ingest("mine", size=16, folder=photographs)
    assert tasks.prepared() == []


def test_missing_things_are_named(cache, photographs):
    with pytest.raises(FileNotFoundError, match="no folder"):
        ingest.ingest("mine", size=16, folder=photographs / "none")
    with pytest.raises(ValueError, match=r"no column \['eye'\]"):
        ingest.ingest("mine", size=16, folder=photographs, patient="eye")
    (photographs / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no table of labels"):
        ingest.ingest("mine", size=16, folder=photographs)


def test_many_missing_files_are_told_before_an_image_is_read(cache, photographs, monkeypatch):
    (photographs / "1.png").unlink()
    monkeypatch.setattr(ingest, "_content", None)
    with pytest.raises(ValueError, match="1 of 40 images cannot be used(.|\n)*1.png: No such file"):
        ingest.ingest("mine", size=16, folder=photographs)


def test_bad_images_are_listed_and_a_few_left_out(cache, photographs, capsys):
    whole = (photographs / "2.png").read_bytes()
    (photographs / "2.png").write_bytes(whole[: len(whole) // 2])
    (photographs / "3.png").write_text("no image")
    Image.new("I;16", (8, 8)).save(photographs / "4.png")
    with pytest.raises(ValueError, match="3 of 40 images cannot be used") as error:
        ingest.ingest("mine", size=16, folder=photographs)
    for part in ("2.png: truncated or not", "3.png: truncated or not", "4.png: more than 8 bits"):
        assert part in str(error.value)
    (photographs / "1.png").unlink()
    name = ingest.ingest("mine", size=16, folder=photographs, tolerance=0.1)
    images = store.read_zarr(tasks.prepared_path(name, 16))
    assert len(images.image) == 36 and len(images.attrs["skipped"]) == 4
    assert images.target.values[:3].tolist() == [0, 0, 1]
    with Image.open(photographs / "5.png") as image:
        first = np.asarray(ingest._square(image, 16))
    np.testing.assert_array_equal(images.pixels.values[1], first)


def test_what_was_left_out_is_told(cache, photographs, capsys, monkeypatch):
    monkeypatch.setattr(ingest, "_judge", lambda *_: None)
    (photographs / "1.png").unlink()
    assert cli.main(["data", "mine", "--from", str(photographs), "--size", "16"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("target: mine@") and out.count("\n") == 1
    assert "left out: 1.png: No such file" in err


def test_several_findings(cache, photographs):
    edit(photographs, lambda t: t.assign(edema=t.index % 2, effusion=0))
    images = ingest.prepare("films", size=16, folder=photographs, target=("edema", "effusion"))
    assert images.target.shape == (40, 2) and images.attrs["task"] == "findings"
    assert images.target.values[:, 0].tolist() == [0, 1] * 20


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fundus", {}, "'fundus' names drawn images"),
        ("my/set", {}, "expected letters, digits"),
        ("mine", {"size": 8}, "greater than or equal to 16"),
        ("mine", {"layout": "dicom"}, "unknown layout 'dicom'; possible: folder, eyepacs"),
        ("mine", {"uncertain": "ones"}, "takes no uncertain; it takes: labels, target, patient"),
        ("mine", {"folder": None}, "where does 'mine' lie"),
    ],
)
def test_impossible_requests(cache, photographs, name, options, message):
    with pytest.raises(ValueError, match=message):
        ingest.ingest(name, **{"size": 16, "folder": photographs, **options})


def test_eyepacs_as_kaggle_gives_it(cache, tmp_path):
    lines = ["image,level"]
    for i in range(30):
        for eye in ("left", "right"):
            draw(tmp_path / "images" / f"{i}_{eye}.jpeg")
            lines.append(f"{i}_{eye},{i % 3}")
    (tmp_path / "trainLabels.csv").write_text("\n".join(lines))
    images = ingest.prepare("eyepacs", size=16, folder=tmp_path)
    assert images.attrs["outputs"] == 5 and images.attrs["positive_from"] == 2
    assert images.patient.values[:4].tolist() == ["0", "0", "1", "1"]
    assert shares(images) == {"train": 42, "test": 12, "valid": 6}


# --- films -----------------------------------------------------------------------------------


@pytest.fixture
def films(tmp_path):
    """ChestX-ray14 as it unpacks: 60 films of 30 patients in two archives."""
    folder, lines = tmp_path / "nih", ["Image Index,Finding Labels,Follow-up #,Patient ID,"]
    labels = ["No Finding", "Edema", "Effusion|Atelectasis", "Hernia"]
    for i in range(60):
        name = f"{i // 2:08}_{i % 2:03}.png"
        draw(folder / f"images_00{1 + i // 30}/images" / name)
        lines.append(f"{name},{labels[i % 4]},{i % 2},{i // 2},")
    (folder / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_nih_findings_are_those_of_the_table(cache, films):
    images = ingest.prepare("nih", size=16, folder=films)
    assert images.attrs["names"] == list(layouts.FINDINGS) and images.attrs["absent"] == 0
    expected = [[0, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(images.target.values[:4], expected)
    assert shares(images) == {"train": 42, "test": 12, "valid": 6}
    few = ingest.prepare("nih", size=16, folder=films, target=["Hernia"])
    assert few.target.shape == (60, 1) and few.target.values[3] == 1


def test_nih_test_patients_are_the_listed_ones(cache, films):
    listed = [f"{i:08}_{k:03}.png" for i in range(24, 30) for k in range(2)]
    (films / "test_list.txt").write_text("\n".join(listed))
    images = ingest.prepare("nih", size=16, folder=films)
    test = tasks.split_of(images, "test")
    assert set(test.patient.values) == {str(i) for i in range(24, 30)}
    assert shares(images) == {"train": 42, "test": 12, "valid": 6}


def test_nih_of_one_archive(cache, films):
    for film in (films / "images_002/images").iterdir():
        film.unlink()
    images = ingest.prepare("nih", size=16, folder=films)
    assert images.sizes["image"] == 30 and images.attrs["absent"] == 30


def test_nih_by_columns_and_a_choice_of_folders(cache, films):
    table = pd.read_csv(films / "Data_Entry_2017.csv", dtype=str, index_col=False)
    for finding in layouts.FINDINGS:
        table[finding] = table["Finding Labels"].str.contains(finding).astype(int)
    table = table.rename(columns={"Image Index": "image", "Patient ID": "patient"})
    table.drop(columns="Finding Labels").to_csv(films / "labels.csv", index=False)
    official = ingest.ingest("nih", size=16, folder=films)
    assert official == ingest.ingest("nih", size=16, folder=films, labels="labels.csv")
    for name in table["image"]:
        draw(films / "img8" / name.replace("png", "jpg"))
    with pytest.raises(ValueError, match="is images_001/.*.png and img8/.*: say which"):
        ingest.ingest("nih", size=16, folder=films)
    small = ingest.prepare("nih", size=16, folder=films, images="img8")
    assert small.sizes["image"] == 60 and small.attrs["name"] != official


def test_nih_errors(cache, films):
    with pytest.raises(ValueError, match="unknown finding 'Oedema'.*Did you mean 'Edema'"):
        ingest.ingest("nih", size=16, folder=films, target=["Oedema"])
    with pytest.raises(FileNotFoundError, match="no image of .* lies under"):
        ingest.ingest("nih", size=16, folder=films, images="elsewhere")
    table = films / "Data_Entry_2017.csv"
    table.write_text(table.read_text().replace("Hernia", "hernia"))
    with pytest.raises(ValueError, match=r"findings \['hernia'\]; possible: Atelectasis"):
        ingest.ingest("nih", size=16, folder=films)


@pytest.fixture
def chexpert(tmp_path):
    """CheXpert's tables: 40 patients with a frontal and a lateral view, 2 more to validate."""
    folder = tmp_path / "CheXpert-v1.0-small"
    head = ",".join(["Path", "Sex", "Frontal/Lateral", *layouts.CHEXPERT])
    marks = ["1.0,0.0,,-1.0,", ",,,,1.0"]
    for part, patients in (("train", range(40)), ("valid", range(40, 42))):
        lines = [head]
        for i in patients:
            for view in ("Frontal", "Lateral"):
                path = f"{part}/patient{i:05}/study1/view1_{view.lower()}.jpg"
                draw(folder / path)
                lines.append(f"CheXpert-v1.0-small/{path},Male,{view},{marks[i % 2]}")
        (folder / f"{part}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(("policy", "value"), [("zeros", 0), ("ones", 1), ("ignore", -1)])
def test_chexpert_uncertain_labels(cache, chexpert, policy, value):
    images = ingest.prepare("chexpert", size=16, folder=chexpert, uncertain=policy)
    assert images.attrs["uncertain"] == policy and images.attrs["names"][-1] == "Pleural Effusion"
    np.testing.assert_array_equal(images.target.values[:2], [[1, 0, 0, value, 0], [0, 0, 0, 0, 1]])
    assert images.target.dtype == np.int16


def test_chexpert_has_frontal_views_split_by_patient(cache, chexpert):
    images = ingest.prepare("chexpert", size=16, folder=chexpert)
    assert images.sizes["image"] == 42 and len(set(images.patient.values)) == 42
    assert shares(images) == {"train": 28, "test": 8 + 2, "valid": 4}
    assert set(images.split.values[-2:]) == {"test"}


def test_chexpert_policy_is_in_the_name_even_without_uncertain_labels(cache, chexpert):
    for table in chexpert.glob("*.csv"):
        table.write_text(table.read_text().replace("-1.0", "1.0"))
    names = [
        ingest.ingest("chexpert", size=16, folder=chexpert, uncertain=policy)
        for policy in (None, *layouts.UNCERTAIN)
    ]
    assert names[0] == names[1] and len(set(names)) == 3


def test_chexpert_errors(cache, chexpert):
    with pytest.raises(ValueError, match="unknown policy .* 'maybe'; possible: zeros, ones"):
        ingest.ingest("chexpert", size=16, folder=chexpert, uncertain="maybe")
    table = chexpert / "train.csv"
    table.write_text(table.read_text().replace("-1.0", "-2.0", 1))
    with pytest.raises(ValueError, match=r"'Edema' out of range .*-1 to 1\): row 2: '-2.0'"):
        ingest.ingest("chexpert", size=16, folder=chexpert)
    table.write_text(table.read_text().replace("-2.0", "0").replace("patient0", "subject0"))
    with pytest.raises(ValueError, match="expected .*patient00001.*got .*subject00000"):
        ingest.ingest("chexpert", size=16, folder=chexpert)


# --- classes ---------------------------------------------------------------------------------


def medmnist_file(path, rng, classes, *, columns=1, shape=(28, 28), **changes):
    held = {}
    for part, count in (("train", 12), ("val", 6), ("test", 6)):
        held[f"{part}_images"] = rng.integers(0, 255, (count, *shape), dtype=np.uint8)
        labels = np.arange(count * columns).reshape(count, columns) % classes
        held[f"{part}_labels"] = labels.astype(np.uint8)
    held = {name: changes.get(name, values) for name, values in held.items()}
    np.savez_compressed(path, **{name: v for name, v in held.items() if v is not None})
    return path


@pytest.mark.parametrize(
    ("name", "classes", "columns", "expected"),
    [
        ("retinamnist", 3, 1, {"task": "grades", "outputs": 5, "positive_from": 2}),
        ("breastmnist", 2, 1, {"task": "grades", "outputs": 2, "positive_from": 1}),
        ("bloodmnist", 6, 1, {"task": "classes", "outputs": 6}),
        ("chestmnist", 2, 3, {"task": "findings", "outputs": 3}),
    ],
)
def test_medmnist_tasks(cache, tmp_path, rng, name, classes, columns, expected):
    path = medmnist_file(tmp_path / "held.npz", rng, classes, columns=columns)
    images = ingest.prepare(name, size=28, folder=path)
    assert expected.items() <= images.attrs.items()
    assert shares(images) == {"train": 12, "valid": 6, "test": 6}
    assert len(set(images.patient.values)) == 24 and "every image" in images.attrs["patients"]


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
def test_medmnist_pixels_and_labels(cache, tmp_path, rng, shape):
    path = medmnist_file(tmp_path / "any.npz", rng, 6, shape=shape)
    images = ingest.prepare("any", size=28, folder=path)
    held = np.load(path)
    last = np.broadcast_to(held["test_images"][-1].reshape(28, 28, -1), (28, 28, 3))
    np.testing.assert_array_equal(images.pixels.values[-1], last.transpose(2, 0, 1))
    assert images.target.values[-6:].tolist() == held["test_labels"][:, 0].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "has no val_labels; it has "),
        ({"train_images": np.zeros((12, 28, 28))}, r"expected uint8 .* got float64 \(12, 28, 28\)"),
        ({"val_images": np.zeros((6, 9, 9, 9), np.uint8)}, r"got uint8 \(6, 9, 9, 9\)"),
        ({"test_labels": np.zeros((5, 1), int)}, r"expected \(6, labels\), got \(5, 1\)"),
        ({"test_labels": np.full((6, 1), 7)}, r"labels out of range .*0 to 4\), number 18: 7"),
    ],
)
def test_medmnist_errors(cache, tmp_path, rng, changes, message):
    path = medmnist_file(tmp_path / "held.npz", rng, 5, **changes)
    with pytest.raises(ValueError, match=message):
        ingest.ingest("retinamnist", size=28, folder=path)


def test_a_damaged_npz_is_named(cache, tmp_path, rng):
    path = medmnist_file(tmp_path / "held.npz", rng, 5)
    whole = path.read_bytes()
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for damaged in (whole[:middle], flipped, b"no npz"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="held.npz is not a whole npz file"):
            ingest.ingest("mine", size=28, folder=path)
    with pytest.raises(FileNotFoundError, match="no file"):
        ingest.ingest("mine", size=28, folder=tmp_path / "other.npz")


def test_medmnist_is_fetched_by_its_package(cache, tmp_path, rng, monkeypatch):
    class Set:
        available_sizes = [28, 64, 128, 224]

        def __init__(self, split, download, size):
            assert download
            self.root, self.size_flag = str(tmp_path), f"_{size}"
            medmnist_file(tmp_path / f"retinamnist_{size}.npz", rng, 5, shape=(size, size))

    package = SimpleNamespace(INFO={"retinamnist": {"python_class": "Set"}}, Set=Set)
    monkeypatch.setitem(sys.modules, "medmnist", package)
    assert ingest.prepare("retinamnist", size=48).pixels.shape == (24, 3, 48, 48)
    assert (tmp_path / "retinamnist_64.npz").is_file()  # the next size up
    with pytest.raises(ValueError, match="unknown MedMNIST set 'retinmnist'.*'retinamnist'"):
        ingest.ingest("retinmnist", size=48)
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(ValueError, match="pip install medmnist"):
        ingest.ingest("retinamnist", size=48)


def classes(folder, *, each=10):
    for name in ("cat", "dog"):
        for i in range(each):
            draw(folder / name / f"{i}.JPEG")
        (folder / name / "notes.txt").write_text("not an image")
        (folder / name / "._0.JPEG").write_text("left by a Mac")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], {"train": 16, "valid": 2, "test": 2}),
        (["train"], {"train": 16, "valid": 2, "test": 2}),
        (["train", "val"], {"train": 18, "valid": 20, "test": 2}),
        (["train", "val", "test"], {"train": 20, "valid": 20, "test": 20}),
    ],
)
def test_imagefolder_splits(cache, tmp_path, parts, expected):
    for part in parts or [""]:
        classes(tmp_path / "images" / part)
    images = ingest.prepare("pets", size=16, folder=tmp_path / "images")
    assert shares(images) == expected
    assert images.attrs["names"] == ["cat", "dog"] and images.attrs["task"] == "classes"
    of_dogs = np.array(["dog" in name for name in images.patient.values])
    np.testing.assert_array_equal(images.target.values, of_dogs)


def test_imagefolder_errors(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        ingest.ingest("pets", size=16, folder=tmp_path / "none", layout="imagefolder")
    classes(tmp_path / "train")
    classes(tmp_path / "val")
    (tmp_path / "val/dog").rename(tmp_path / "val/dogs")
    with pytest.raises(ValueError, match="class in .*val: 'dogs'; possible: cat, dog"):
        ingest.ingest("pets", size=16, folder=tmp_path)
    (tmp_path / "val/dogs").rename(tmp_path / "dog")
    with pytest.raises(ValueError, match="val: expected a folder a class, at least two"):
        ingest.ingest("pets", size=16, folder=tmp_path)
    (tmp_path / "val/dog").mkdir()
    with pytest.raises(ValueError, match="no image in .*dog; possible: .bmp"):
        ingest.ingest("pets", size=16, folder=tmp_path)


def jpegs(folder, *, shift=0, **changes):
    """200 classes, 2 training images and one other each, coloured by their class."""
    for part, repeats in (("train", 2), ("val", 1)):
        label = np.tile(np.arange(200), repeats) + shift
        files = [jpeg((i % 200, 40, 200 - i % 200)) for i in label]
        held = {
            "jpeg": np.concatenate(files),
            "offset": np.cumsum([0, *map(len, files)]),
            "label": label.astype(np.int16),
            "wnid": np.array([f"n{i:03}" for i in range(200)]),
        }
        folder.mkdir(exist_ok=True)
        np.savez(folder / f"{part}.npz", **held | (changes if part == "val" else {}))
    return folder


def test_jpegs_end_to_end(cache, tmp_path):
    images = ingest.prepare("photographs", size=16, folder=jpegs(tmp_path / "held"))
    assert shares(images) == {"train": 400, "valid": 100, "test": 100}
    assert images.attrs["outputs"] == 200 and images.attrs["names"][7] == "n007"
    red = images.pixels.values[:, 0].mean((1, 2))
    assert np.abs(red - images.target.values).max() < 4  # each image lies beside its own label
    other = ingest.ingest("photographs", size=16, folder=tmp_path / "held", seed=1)
    assert other != images.attrs["name"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shift": 1}, r"train.npz: label out of range .*0 to 199\), number 199: 200"),
        ({"wnid": np.array(["n000"])}, "val.npz: its class names `wnid` are not those of train"),
        ({"offset": np.arange(3)}, "val.npz: offset: expected 201 rising numbers from 0 to"),
        ({"jpeg": np.zeros(3)}, r"val.npz: jpeg: expected bytes in a row, got float64 \(3,\)"),
    ],
)
def test_jpegs_errors(cache, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ingest.ingest("photographs", size=16, folder=jpegs(tmp_path / "held", **changes))


def test_a_corrupt_jpeg_is_named(cache, tmp_path):
    folder = jpegs(tmp_path / "held")
    held = dict(np.load(folder / "train.npz"))
    held["jpeg"][held["offset"][5] : held["offset"][6]] = 0
    np.savez(folder / "train.npz", **held)
    name = ingest.ingest("photographs", size=16, folder=folder)
    attrs = tasks.attrs(config.Data(name=name, size=16))
    assert attrs["skipped"] == ["train/n005/5: truncated or not an image"]
    with pytest.raises(ValueError, match="train/n005/5: truncated or not an image"):
        ingest.ingest("photographs", size=24, folder=folder, tolerance=0)


def test_a_digest_covers_pixels_labels_and_layout(cache, tmp_path, rng):
    path = medmnist_file(tmp_path / "a.npz", rng, 6)
    first = ingest.ingest("mine", size=28, folder=path)
    held = dict(np.load(path))
    for change in ("train_images", "test_labels"):
        other = {name: values.copy() for name, values in held.items()}
        other[change].flat[0] ^= 1
        np.savez(tmp_path / "b.npz", **other)
        assert ingest.ingest("mine", size=28, folder=tmp_path / "b.npz") != first
    np.savez(tmp_path / "b.npz", **held)
    assert ingest.ingest("mine", size=28, folder=tmp_path / "b.npz") == first


def test_another_layout_of_the_same_files_is_another_set(cache, photographs):
    edit(photographs, lambda t: t.assign(level=t.label))
    graded = {"size": 16, "folder": photographs, "target": ["level"]}
    plain = ingest.ingest("mine", **graded)
    other = ingest.ingest("mine", **graded, layout="eyepacs", images=".")
    assert plain != other

"""Images as people have them: each kind with what is kept of it, or what is told."""

import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transfusion import cli, config, images, store
from transfusion.images import folds, ingest, tasks


def draw(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        seed = zlib.crc32(str(path).encode())
        pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def classes(place, splits, names=("benign", "malignant"), count=4):
    for split in splits:
        for name in names:
            for i in range(count):
                draw(place / split / name / f"{name}_{i}.png")
    return place


def table(place, rows, header="image,label,patient,split"):
    place.mkdir(exist_ok=True)
    (place / "labels.csv").write_text("\n".join([header, *(",".join(r) for r in rows)]) + "\n")
    return place


def simple(place, count=20, name="{}.png", header="image,label"):
    rows = [(name.format(i), str(i % 2)) for i in range(count)]
    for image, _ in rows:
        draw(place / image)
    return table(place, rows, header)


def kept(place, **options):
    return images.prepare("mine", size=16, folder=place, **options)


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "splits",
    [("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "dev", "test")],
)
def test_folders_of_splits_go_by_any_usual_name(cache, tmp_path, splits):
    found = kept(classes(tmp_path / "in", splits))
    assert found.attrs["names"] == ["benign", "malignant"]
    assert {s: int((found.split == s).sum()) for s in folds.SPLITS} == dict.fromkeys(
        folds.SPLITS, 8
    )


def test_a_given_test_set_is_the_test_set(cache, tmp_path):
    found = kept(classes(tmp_path / "in", ("train", "testing"), count=10))
    assert int((found.split == "test").sum()) == 20
    assert found.attrs["told"] == ["folder 'testing' is taken for test"]


def test_what_is_no_split_beside_splits_is_told_or_refused(cache, tmp_path):
    place = classes(tmp_path / "in", ("train", "val", "test"))
    draw(place / "extra" / "benign" / "a.png")
    assert kept(place).attrs["told"] == ["folder 'extra' is no split, and is left out"]
    shutil.rmtree(place / "train")
    with pytest.raises(ValueError, match="val beside no folder to train on.*got extra"):
        kept(place)
    classes(place, ("train", "training"))
    with pytest.raises(ValueError, match="train and training are one split, train"):
        kept(place)


def test_a_class_may_be_called_train(cache, tmp_path):
    for name in ("train", "plane"):
        for i in range(10):
            draw(tmp_path / "in" / name / f"{i}.png")
    assert kept(tmp_path / "in").attrs["names"] == ["plane", "train"]


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails"])
def test_hidden_and_system_folders_are_no_classes(cache, tmp_path, hidden):
    place = classes(tmp_path / "in", ("train", "val", "test"))
    draw(place / "train" / hidden / "benign_0.png")
    draw(place / "train" / "benign" / hidden / "benign_0.png")
    (place / hidden).mkdir()
    found = kept(place)
    assert found.attrs["names"] == ["benign", "malignant"] and found.sizes["image"] == 24
    assert found.attrs["told"] == found.attrs["skipped"] == []


def test_every_suffix_of_an_image_is_used_and_others_are_listed(cache, tmp_path):
    place = classes(tmp_path / "in", ("train", "val", "test"))
    for suffix, kind in ((".jfif", "JPEG"), (".pgm", "PPM"), (".JPG", "JPEG")):
        draw(place / "train" / "benign" / f"x{suffix}", format=kind)
        (place / "train" / "benign" / f"x{suffix}").rename(
            place / "train" / "benign" / f"{suffix[1:]}_x{suffix}"
        )
    (place / "train" / "benign" / "notes.docx").write_text("x")
    found = kept(place)
    assert found.sizes["image"] == 27
    assert found.attrs["skipped"] == ["train/benign/notes.docx: no image, by its suffix"]


# --- tables --------------------------------------------------------------------------------------


def test_splits_and_patients_of_the_table_hold_however_they_are_called(cache, tmp_path):
    splits = [("train", "train", "valid", "test")[i // 2 % 4] for i in range(40)]
    rows = [(f"{i}.png", str(i % 2), f"p{i // 2}", split) for i, split in enumerate(splits)]
    for row in rows:
        draw(tmp_path / "in" / row[0])
    found = kept(table(tmp_path / "in", rows, "File Name,label,Patient_ID,Split"))
    assert found.split.values.tolist() == splits
    assert found.patient.values.tolist() == [row[2] for row in rows]
    assert len(found.attrs["told"]) == 3


def test_a_column_that_is_named_goes_before_one_that_is_called_so(cache, tmp_path):
    rows = [(f"{i}.png", str(i % 2), f"p{i // 2}", f"q{i // 4}") for i in range(40)]
    for row in rows:
        draw(tmp_path / "in" / row[0])
    place = table(tmp_path / "in", rows, "image,subject,patient,person")
    found = kept(place, target=["subject"], patient="person")
    assert found.patient.values.tolist() == [row[3] for row in rows]
    assert found.target.values.tolist() == [i % 2 for i in range(40)]
    assert kept(place, target=["subject"]).patient.values.tolist() == [row[2] for row in rows]
    lines = (place / "labels.csv").read_text().replace("image,subject,patient", "image,subject,x")
    (place / "labels.csv").write_text(lines)
    told = []  # also where the same images were prepared before
    ingest.ingest("mine", size=16, folder=place, target=["subject"], told=told)
    assert told == ["column 'person' is taken for the patient"]


def test_without_a_column_every_image_is_its_own_patient_and_that_is_told(cache, tmp_path):
    found = kept(simple(tmp_path / "in", name="ISIC_{:07d}.png"))
    assert found.patient.values.tolist() == [f"ISIC_{i:07d}.png" for i in range(20)]
    assert found.attrs["patients"] == "not given: every image counts as one"


@pytest.mark.parametrize("second", ["700 ", "700.0", "700"])
def test_a_patient_in_two_splits_is_found_however_it_is_spelt(cache, tmp_path, second):
    rows = [
        (f"{i}.png", str(i % 2), str(i), ("train", "valid", "test")[min(2, i // 8)])
        for i in range(24)
    ]
    for row in rows:
        draw(tmp_path / "in" / row[0])
    rows[0], rows[23] = (*rows[0][:2], "700", "train"), (*rows[23][:2], second, "test")
    with pytest.raises(ValueError, match="patients in more than one split: 700"):
        kept(table(tmp_path / "in", rows))


@pytest.mark.parametrize("written", ["a{}", "deep/a{}.png", r"deep\a{}.png", "a{}.jpg"])
def test_images_are_found_by_their_names_and_that_is_told(cache, tmp_path, written):
    place = tmp_path / "in"
    for i in range(20):
        draw(place / "deep" / f"a{i}.png")
    rows = [(written.format(i), str(i % 2)) for i in range(20)]
    found = kept(table(place, rows, "id_code,label"), image="id_code")
    assert found.sizes["image"] == 20
    guessed = [told for told in found.attrs["told"] if "found by their names" in told]
    assert len(guessed) == ("deep" not in written)


def test_two_images_of_one_name_are_not_guessed_between(cache, tmp_path):
    place = tmp_path / "in"
    for folder in ("a", "b"):
        for i in range(20):
            draw(place / folder / f"{i}.png")
    with pytest.raises(ValueError, match="0 is a/0.png and b/0.png: say which"):
        kept(table(place, [(str(i), str(i % 2)) for i in range(20)], "image,label"))


def test_images_that_no_row_names_are_counted(cache, tmp_path):
    place = simple(tmp_path / "mine")
    for name in ("a/late.png", "b/later.png"):
        draw(place / name)
    told = kept(place).attrs["told"]
    assert "2 images lie there in no row of labels.csv, such as a/late.png" in told


def test_identical_images_of_two_splits_or_labels_are_told(cache, tmp_path):
    place = classes(tmp_path / "in", ("train", "val", "test"))
    shutil.copy(place / "train/benign/benign_0.png", place / "test/malignant/copy.png")
    shutil.copy(place / "train/benign/benign_1.png", place / "train/benign/again.png")
    (told,) = kept(place).attrs["told"]
    assert told.startswith("2 images are identical to others of another split or label, such as")
    assert "test/malignant/copy.png = train/benign/benign_0.png" in told


def test_a_split_of_one_answer_is_told(cache, tmp_path):
    rows = [
        (f"{i}.png", str(int(i % 2 and not 8 <= i < 16)), str(i), folds.SPLITS[i // 8])
        for i in range(24)
    ]
    for row in rows:
        draw(tmp_path / "in" / row[0])
    told = kept(table(tmp_path / "in", rows)).attrs["told"]
    assert told == ["all images of valid have one answer to 'label': it has no AUC"]


def test_what_is_told_is_printed(cache, tmp_path, capsys):
    place = classes(tmp_path / "in", ("Training", "Testing"), count=10)
    assert cli.main(["data", "mine", "--from", str(place), "--size", "16"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("target: mine@")
    assert "note: folder 'Testing' is taken for test" in printed.err


# --- pixels --------------------------------------------------------------------------------------


def test_an_image_is_kept_upright(cache, tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32], pixels[32:] = (220, 30, 30), (30, 30, 220)  # red above blue
    tag = Image.Exif()
    tag[0x0112] = 6  # a quarter turn to the right: blue left, red right
    place = simple(tmp_path / "in", name="{}.jpg")
    for i in range(20):
        Image.fromarray(pixels).save(place / f"{i}.jpg", exif=tag)
    found = kept(place).pixels.values[0]
    assert found[0, 8, 12] > 150 and found[2, 8, 3] > 150


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_black_whatever_colour_it_hides(mode):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., :3] = 200
    rgba[8:24, 8:24] = 255
    found = ingest._square(Image.fromarray(rgba).convert(mode), 32)
    if mode == "P":
        image = Image.fromarray(np.where(rgba[..., 3] > 0, 1, 0).astype(np.uint8), "P")
        image.putpalette([0, 200, 0, 255, 255, 255])
        image.info["transparency"] = 0
        found = ingest._square(image, 32)
    assert found[:, 0, 0].tolist() == [0, 0, 0] and found[:, 16, 16].tolist() == [255, 255, 255]


def deep_png(path, colour):
    """16 bits a channel: of colours Pillow would keep the upper half."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    values = np.full((8, 8, channels), 300, ">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)


@pytest.mark.parametrize("colour", [0, 2, 6])
def test_more_than_8_bits_are_refused_whatever_pillow_makes_of_them(cache, tmp_path, colour):
    place = simple(tmp_path / "in")
    deep_png(place / "3.png", colour)
    with pytest.raises(ValueError, match="3.png: more than 8 bits a channel"):
        kept(place)


def test_an_image_that_is_too_large_is_called_so(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    place = simple(tmp_path / "in", count=19)
    Image.new("1", (30, 30)).save(place / "19.png")
    table(place, [(f"{i}.png", str(i % 2)) for i in range(20)], "image,label")
    for i in range(19):
        draw(place / f"{i}.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="19.png: more than 200 pixels: make it smaller"):
        kept(place)


# --- the doors -----------------------------------------------------------------------------------


def test_prepare_takes_a_seed_and_a_number(cache, tmp_path):
    place = simple(tmp_path / "in", count=60)
    one, other = (kept(place, seed=seed) for seed in (0, 1))
    assert one.split.values.tolist() != other.split.values.tolist()
    assert one.attrs["name"] != other.attrs["name"]
    some, others = (kept(place, seed=seed, n=40) for seed in (0, 1))
    assert some.sizes["image"] == others.sizes["image"] == 40
    assert set(some.patient.values) != set(others.patient.values)
    assert set(some.patient.values) < set(one.patient.values)
    counts = {split: int((some.split == split).sum()) for split in folds.SPLITS}
    assert min(counts.values()) > 0 and counts["train"] < 40, counts
    with pytest.raises(ValueError, match="n=61 asked for, mine@.* has 60 images"):
        kept(place, n=61)


def test_a_medmnist_file_is_known_by_its_own_name(cache, tmp_path, rng):
    arrays = {}
    for part, count in (("train", 20), ("val", 10), ("test", 10)):
        arrays[f"{part}_images"] = rng.integers(0, 255, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 5
    np.savez(tmp_path / "retinamnist_64.npz", **arrays)
    for name in ("retinamnist", "retinamnist_64", "retina"):
        found = images.prepare(name, size=16, folder=tmp_path / "retinamnist_64.npz")
        assert (found.attrs["task"], found.attrs["positive_from"]) == ("grades", 2)


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRANSFUSION_CACHE", "~/studies")
    assert store.root() == tmp_path / "studies"


def test_what_was_prepared_before_keeps_its_name(cache, tmp_path):
    """The digest of a plain table is of what stands in it: results in git hang on such names."""
    pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    rows = [(f"{i}.png", str(i % 2), f"p{i // 2}", folds.SPLITS[i // 8]) for i in range(24)]
    for row in rows:
        path = draw(tmp_path / "in" / row[0], pixels)
        path.write_bytes(row[0].encode() + b" stands for an image")
    from unittest import mock

    with mock.patch.object(ingest, "_decoded", return_value=np.zeros((24, 3, 16, 16), np.uint8)):
        name = ingest.ingest("mine", size=16, folder=table(tmp_path / "in", rows))
    assert tasks.load(config.Data(name=name, size=16)).sizes["image"] == 24
    assert name == "mine@f85226f6f881"


@pytest.mark.parametrize("how", ["above", "absolute", "by a link", "by a linked folder"])
def test_a_table_of_a_stranger_reads_no_file_outside_its_folder(photographs, tmp_path, cache, how):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (photographs / "0.png").rename(elsewhere / "0.png")
    table = photographs / "labels.csv"
    said = {"above": "../elsewhere/0.png", "absolute": f"{elsewhere}/0.png"}
    said["by a linked folder"] = "more/0.png"
    if how == "by a link":
        (photographs / "0.png").symlink_to(elsewhere / "0.png")
    elif how == "by a linked folder":
        (photographs / "more").symlink_to(elsewhere)
    table.write_text(table.read_text().replace("\n0.png", f"\n{said.get(how, '0.png')}"))
    with pytest.raises(ValueError, match="1 of 40 images lie outside .*--allow-outside"):
        ingest.ingest("mine", size=32, folder=photographs)
    full = ingest.ingest("mine", size=32, folder=photographs, allow_outside=True)
    assert tasks.load(config.Data(name=full, size=32)).sizes["image"] == 40


def test_a_folder_may_itself_be_a_link(photographs, tmp_path, cache):
    (tmp_path / "link").symlink_to(photographs)
    assert ingest.ingest("mine", size=32, folder=tmp_path / "link").startswith("mine@")
    (photographs / "images").mkdir()
    for path in photographs.glob("*.png"):
        path.rename(photographs / "images" / path.name)
    (photographs / "images").rename(tmp_path / "disk")
    (photographs / "images").symlink_to(tmp_path / "disk")
    full = ingest.ingest("mine", size=32, folder=photographs, images="images")
    assert full.startswith("mine@")

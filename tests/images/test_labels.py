"""Tables as people write them: each kind with what it means, or the words that refuse it."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfusion.images import labels

PLAIN = "image,label,patient\na.png,0,p1\nb.png,1,p2\n"
MEANT = [["a.png", "0", "p1"], ["b.png", "1", "p2"]]


def table(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", " , "),
        PLAIN.replace("\n", "\n\n"),
        PLAIN.replace("\n", ",\n"),  # with a name for nothing
        "image,label,patient\n" + PLAIN.partition("\n")[2].replace("\n", ",\n"),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        '"image","label","patient"\n"a.png","0","p1"\n"b.png","1","p2"\n',
    ],
)
def test_however_a_table_is_separated_and_encoded_it_is_read_as_meant(tmp_path, content):
    found = labels.read(table(tmp_path, content))
    assert list(found.columns) == ["image", "label", "patient"]
    assert found.to_numpy().tolist() == MEANT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,label\n", "has no rows"),
        ("", "has no rows"),
        ("image,label\na.png,0,1\n", "row 2 has 3 values, the header has 2"),
        ("image,label\na.png,0\nb.png\n", "row 3 has 1 values, the header has 2"),
        ("image,label,label\na.png,0,1\n", "several columns are called 'label'"),
        ("image,note\na.png,dégénéré\n".encode("cp1252"), "line 2 is not UTF-8: save the table"),
    ],
)
def test_what_cannot_be_read_as_meant_names_the_table(tmp_path, content, message):
    path = table(tmp_path, content)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        labels.read(path)


CELL = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=8
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
    separator=st.sampled_from(labels.SEPARATORS),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_whatever_stands_in_the_cells_comes_back(
    tmp_path_factory, rows, separator, encoding, ending
):
    rows = [row for row in rows if any(cell.strip() for cell in row)] or [("a", "0", "p")]
    written = io.StringIO()
    writer = csv.writer(written, delimiter=separator, lineterminator=ending)
    writer.writerows([("image", "label", "patient"), *rows])
    path = tmp_path_factory.mktemp("table") / "labels.csv"
    path.write_bytes(written.getvalue().encode(encoding))
    found = labels.read(path)
    assert found.to_numpy().tolist() == [[cell.strip() for cell in row] for row in rows]


@pytest.mark.parametrize(
    ("column", "name"),
    [
        *(("Patient", "patient"), ("patient_id", "patient"), ("Patient ID", "patient")),
        *(("SUBJECT-ID", "patient"), ("Split", "split"), ("Train_Val_Test", "split")),
        *(("id_code", "image"), ("File Name", "image"), ("Path", "image")),
    ],
)
def test_columns_go_by_their_usual_names_and_that_is_told(column, name):
    told = []
    found = labels.role(pd.DataFrame({column: ["a"], "other": ["b"]}), name, told)
    assert list(found.columns) == [name, "other"]
    assert told == [f"column {column!r} is taken for the {name}"]
    assert labels.role(found, name, told) is found and len(told) == 1


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *(("train", "train"), ("Training", "train"), (" TRAIN ", "train"), ("val", "valid")),
        *(("Validation", "valid"), ("dev", "valid"), ("testing", "test"), ("hold-out", "test")),
        *(("glioma", None), ("trainee", None), ("", None)),
    ],
)
def test_splits_go_by_their_usual_names(word, split):
    assert labels.split_named(word) == split


def test_a_patient_has_one_spelling_and_is_never_blank(tmp_path):
    found = labels.patients(pd.Series(["700", "700.0", "p1.0", "1.50"]), tmp_path)
    assert found.tolist() == ["700", "700", "p1.0", "1.50"]
    with pytest.raises(ValueError, match="rows 2, 4 have no patient"):
        labels.patients(pd.Series(["", "a", ""]), tmp_path)
    with pytest.raises(ValueError, match="row 3 has no patient"):
        labels.patients(pd.Series(["a", ""]), tmp_path)


def test_labels_are_integers_from_0_however_they_are_written(tmp_path):
    found = labels.integers(pd.Series(["0", "1.0", "2,0"], name="label"), tmp_path, below=3)
    assert found.tolist() == [0, 1, 2]
    told = []
    with pytest.raises(ValueError, match="labels of column 'label' are 1, 2: no image has 0"):
        labels.check_grades(pd.Series([1, 2, 1], name="label"), tmp_path, told)
    labels.check_grades(pd.Series([0, 1, 4], name="label"), tmp_path, told)
    assert told == ["no image has label 2, 3 of column 'label'"]


def test_an_image_is_told_once_or_it_is_an_error(tmp_path):
    rows = pd.DataFrame({"image": ["a", "b", "a"], "label": [0, 1, 0]})
    told = []
    assert labels.once(rows, tmp_path, told)["image"].tolist() == ["a", "b"]
    assert told == ["1 rows say again what another says, and count once"]
    with pytest.raises(ValueError, match="different things of one image: a in rows 2, 4"):
        labels.once(rows.assign(label=[0, 1, 1]), tmp_path, told)
    whole = pd.DataFrame({"image": ["a", "b"], "label": [0, 0]})
    assert labels.once(whole, tmp_path, told) is whole
    assert np.array_equal(whole["label"], [0, 0])

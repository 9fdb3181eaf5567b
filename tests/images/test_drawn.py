import numpy as np
import pytest
from scipy import ndimage
from transfusion.images.drawn import films, objects, retinas

SETS = (retinas.fundus, films.cxr, objects.objects)
each_set = pytest.mark.parametrize("draw", SETS, ids=lambda draw: draw.__name__)


@each_set
def test_arrays_are_as_promised(draw):
    images = draw(8, 32, 0)
    findings = (len(films.FINDINGS),) if draw is films.cxr else ()
    assert images.image.shape == (8, 3, 32, 32) and images.image.dtype == np.uint8
    assert images.target.shape == (8, *findings) and images.target.dtype == np.int8
    assert images.patient.shape == (8,) and images.patient.dtype == np.int32
    assert np.ptp(images.image.reshape(8, -1), axis=1).min() > 80  # no image is blank


@each_set
def test_a_seed_names_the_images(draw):
    first, again, other = draw(6, 32, 0), draw(6, 32, 0), draw(6, 32, 1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all((a != b).any() for a, b in zip(first.image, other.image, strict=True))
    assert len(np.unique(first.image, axis=0)) == 6


@each_set
def test_fewer_images_are_a_prefix_of_more(draw):
    few, many = draw(5, 33, 2), draw(9, 33, 2)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:5])


@each_set
def test_labels_do_not_depend_on_size(draw):
    np.testing.assert_array_equal(draw(6, 32, 4).target, draw(6, 80, 4).target)


@each_set
def test_a_scene_is_the_same_at_every_size(draw):
    small, large = (draw(6, size, 3).image.astype(float) for size in (64, 128))
    halved = large.reshape(6, 3, 64, 2, 64, 2).mean((3, 5))
    smooth = [ndimage.gaussian_filter(a, (0, 0, 1, 1)) for a in (small, halved)]  # less the grain
    error = np.abs(smooth[0] - smooth[1]).mean()
    unlike = np.abs(smooth[0] - smooth[1][::-1]).mean()
    assert error < 3 and error < 0.15 * unlike


@each_set
@pytest.mark.parametrize(("n", "size", "name"), [(0, 64, "n"), (4, 31, "size"), (4, 225, "size")])
def test_what_cannot_be_drawn_is_refused(draw, n, size, name):
    wrong = n if name == "n" else size
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {wrong}$"):
        draw(n, size, 0)


@pytest.fixture(scope="module")
def grades():
    """Grades and labels as read, without drawing the images."""
    cases = pytest.MonkeyPatch()
    drawn = []
    cases.setattr(retinas, "_fundus_image", lambda size, seed, i, grade: drawn.append(grade))
    labels = [retinas._fundus_case(32, 0, i)[1] for i in range(3000)]
    cases.undo()
    return np.array(drawn), np.array(labels)


def test_grades_occur_in_their_shares(grades):
    true, read = grades
    share = np.bincount(true, minlength=5) / len(true)
    np.testing.assert_allclose(share, retinas.GRADE_SHARE, atol=0.04)
    assert 0.35 < (read >= 2).mean() < 0.45
    assert np.bincount(read, minlength=5).min() > 0.05 * len(read)


def test_grader_noise_is_the_documented_share_of_one_grade(grades):
    true, read = grades
    assert abs((true != read).mean() - retinas.GRADER_NOISE) < 0.03
    assert np.abs(true - read).max() == 1


def test_eyes_of_a_patient_are_neighbours_and_alike(grades):
    assert retinas.fundus(5, 32, 0).patient.tolist() == [0, 0, 1, 1, 2]
    true, _ = grades
    assert np.corrcoef(true[::2], true[1::2])[0, 1] > 0.6


def test_left_and_right_eyes_are_mirrored():
    pair = retinas.fundus(40, 32, 5).image.astype(float)
    brighter_right = pair[..., 16:].mean((1, 2, 3)) - pair[..., :16].mean((1, 2, 3))
    assert brighter_right[1::2].mean() > 0 > brighter_right[::2].mean()  # where the optic disc is


@pytest.mark.parametrize(("grade", "most"), [(1, 0.03), (2, 0.15), (3, 0.5), (4, 0.5)])
def test_a_grade_changes_the_eye_only_where_its_signs_are(grade, most):
    for i in range(4):
        healthy, sick = (retinas._fundus_image(128, 0, i, g) for g in (0, grade))
        assert 0 < (np.abs(sick - healthy) > 0.02).any(0).mean() < most


@pytest.mark.parametrize("size", [32, 64, 224])
def test_signs_grow_with_the_grade(size):
    eyes = [[retinas._fundus_image(size, 0, i, g) for g in range(5)] for i in range(6)]
    change = [np.mean([np.abs(eye[g] - eye[0]).mean() for eye in eyes]) for g in range(5)]
    assert change[0] == 0 and change[1] < change[2] < min(change[3:])


def test_films_of_a_patient_are_neighbours():
    assert films.cxr(7, 32, 0).patient.tolist() == [0, 0, 1, 2, 2, 3, 4]


def test_films_are_grey():
    image = films.cxr(4, 48, 0).image
    np.testing.assert_array_equal(image, image[:, :1].repeat(3, 1))


def test_findings_occur_together_at_their_prevalence(monkeypatch):
    monkeypatch.setattr(films, "_cxr_image", lambda *args: None)
    label = np.array([films._cxr_case(32, 0, i)[1] for i in range(4000)])
    noise = films.READER_NOISE
    expected = np.array(films.PREVALENCE) * (1 - 2 * noise) + noise
    np.testing.assert_allclose(label.mean(0), expected, atol=0.03)
    together = np.corrcoef(label.T)
    cardiomegaly, edema, effusion = map(films.FINDINGS.index, ("cardiomegaly", "edema", "effusion"))
    assert together[edema, effusion] > 0.15 and together[edema, cardiomegaly] > 0.1


@pytest.mark.parametrize("finding", range(5), ids=films.FINDINGS)
def test_a_finding_makes_the_lungs_denser(finding):
    severity = np.eye(5)[finding] * 0.8
    drawn = [
        [films._cxr_image(64, 0, i, s)[0, 16:52].mean() for s in (0 * severity, severity)]
        for i in range(12)
    ]
    healthy, sick = np.array(drawn).T
    assert (sick - healthy).mean() > 0


def test_objects_of_every_class_occur():
    assert np.unique(objects.objects(300, 32, 0).target).tolist() == list(range(20))
    assert objects.CLASSES == 20

from dataclasses import replace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_helpers import edit, images_below, series_below

from nnunet_ad.conversion.dicom import rtstruct
from nnunet_ad.conversion.dicom.references import is_of_another_patient, referenced_series, refers_to
from nnunet_ad.conversion.dicom.rtstruct import structure_names
from nnunet_ad.conversion.dicom.volume import read_series
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.testing.dicom_files import PLANTED, write_rtstruct, write_series

SHAPE = (6, 20, 24)  # z, y, x


@pytest.fixture
def series(tmp_path, grid):
    """Files of a made series on an oblique grid, and the image."""
    files = write_series(tmp_path / "images", np.arange(np.prod(SHAPE)).reshape(SHAPE) % 900, **grid)
    return files, read_series(images_below(tmp_path / "images")[0])


def to_mm(image, points, index):
    """Return points (points, 2), in voxels (x, y), of a slice as points in mm."""
    return [image.TransformContinuousIndexToPhysicalPoint((float(x), float(y), float(index))) for x, y in points]


def rectangle(x_0, x_1, y_0, y_1):
    """Return the corners of a rectangle that runs between the voxels before ``x_0`` and ``x_1``, and so in y."""
    x_0, x_1, y_0, y_1 = x_0 - 0.5, x_1 - 0.5, y_0 - 0.5, y_1 - 0.5
    return [(x_0, y_0), (x_1, y_0), (x_1, y_1), (x_0, y_1)]


def read_rtstruct(*arguments, **more):
    """Return all masks at once."""
    return dict(rtstruct.read_rtstruct(*arguments, **more))


def array_of(image):
    return sitk.GetArrayFromImage(image)


def test_rectangles_become_boxes(tmp_path, series):
    files, image = series
    contours = {
        "Organ": [to_mm(image, rectangle(2, 9, 4, 7), index) for index in (1, 2, 3)],
        "Other": [to_mm(image, rectangle(15, 20, 10, 18), 5), to_mm(image, rectangle(5, 7, 1, 3), 5)],
    }
    write_rtstruct(tmp_path / "rt.dcm", files, contours)
    masks = read_rtstruct(tmp_path / "rt.dcm", image)
    assert list(masks) == structure_names(tmp_path / "rt.dcm") == ["Organ", "Other"]
    expected = {name: np.zeros(SHAPE, np.uint8) for name in masks}
    expected["Organ"][1:4, 4:7, 2:9] = 1
    expected["Other"][5, 10:18, 15:20] = 1
    expected["Other"][5, 1:3, 5:7] = 1
    for name, mask in masks.items():
        assert mask.GetPixelID() == sitk.sitkUInt8
        assert (mask.GetSpacing(), mask.GetDirection()) == (image.GetSpacing(), image.GetDirection())
        np.testing.assert_array_equal(array_of(mask), expected[name])


def test_contour_within_a_contour_is_a_hole_and_a_third_an_island(tmp_path, series):
    files, image = series
    rings = [rectangle(2, 20, 2, 18), rectangle(5, 15, 5, 15), rectangle(8, 11, 8, 11)]
    write_rtstruct(tmp_path / "rt.dcm", files, {"Ring": [to_mm(image, ring, 2) for ring in rings]})
    expected = np.zeros(SHAPE, np.uint8)
    expected[2, 2:18, 2:20], expected[2, 5:15, 5:15], expected[2, 8:11, 8:11] = 1, 0, 1
    np.testing.assert_array_equal(array_of(read_rtstruct(tmp_path / "rt.dcm", image)["Ring"]), expected)


BOX, INNER, ISLAND = rectangle(2, 20, 2, 18), rectangle(5, 15, 5, 15), rectangle(8, 11, 8, 11)


def filled(*boxes):
    """Return the voxels of slices of boxes, each given as (value, x_0, x_1, y_0, y_1), later ones over earlier ones."""
    expected = np.zeros(SHAPE, np.uint8)
    for value, x_0, x_1, y_0, y_1 in boxes:
        expected[2, y_0:y_1, x_0:x_1] = value
    return expected


def smaller(step):
    """Return the large box with each side moved inwards."""
    return [(x + step * np.sign(11 - x), y + step * np.sign(10 - y)) for x, y in BOX]


@pytest.mark.parametrize(
    ("contours", "boxes"),
    [
        pytest.param([BOX, BOX], [(1, 2, 20, 2, 18)], id="twice"),
        pytest.param(
            [BOX, BOX[2:] + BOX[:2], BOX[::-1]], [(1, 2, 20, 2, 18)], id="from another point, other way round"
        ),
        pytest.param([BOX, [(x + 2e-4, y - 2e-4) for x, y in BOX]], [(1, 2, 20, 2, 18)], id="rounded otherwise"),
        pytest.param([BOX, [(x, y + 0.04) for x, y in BOX]], [(1, 2, 20, 2, 18)], id="drawn again"),
        pytest.param([BOX, smaller(0.3)], [(1, 2, 20, 2, 18)], id="drawn again a little smaller"),
        pytest.param([BOX, smaller(0.6)], [(1, 2, 20, 2, 18), (0, 3, 19, 3, 17)], id="ring with a thin wall"),
        pytest.param([BOX, INNER, BOX, INNER], [(1, 2, 20, 2, 18), (0, 5, 15, 5, 15)], id="twice with hole"),
        pytest.param([INNER, ISLAND, BOX], [(1, 2, 20, 2, 18), (0, 5, 15, 5, 15), (1, 8, 11, 8, 11)], id="any order"),
        pytest.param(
            [rectangle(2, 9, 4, 10), rectangle(5, 12, 7, 15)], [(1, 2, 9, 4, 10), (1, 5, 12, 7, 15)], id="overlapping"
        ),
        pytest.param([rectangle(2, 9, 4, 10), rectangle(9, 12, 4, 10)], [(1, 2, 12, 4, 10)], id="side by side"),
        pytest.param(
            [rectangle(1, 14, 1, 19), rectangle(6, 23, 1, 19), rectangle(8, 12, 5, 9)],
            [(1, 1, 23, 1, 19), (0, 8, 12, 5, 9)],
            id="hole in two that overlap",
        ),
        pytest.param(
            [rectangle(1, 14, 1, 19), rectangle(12, 23, 1, 19), rectangle(8, 13, 5, 9)],
            [(1, 1, 14, 1, 19), (0, 8, 13, 5, 9), (1, 12, 23, 1, 19)],
            id="hole in one that reaches into another",
        ),
    ],
)
def test_contours_of_a_slice_never_erase_each_other(tmp_path, series, contours, boxes):
    files, image = series
    write_rtstruct(tmp_path / "rt.dcm", files, {"Organ": [to_mm(image, points, 2) for points in contours]})
    mask = array_of(read_rtstruct(tmp_path / "rt.dcm", image)["Organ"])
    np.testing.assert_array_equal(mask, filled(*boxes))


def circle(radius=8.2, x=11.0, corners=60):
    """Return points (points, 2) on a circle within the slices."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + radius * np.cos(angles), 10 + radius * np.sin(angles)], axis=1)


@pytest.mark.parametrize(("voxel", "is_filled"), [(1.0, True), (4.0, False)])
def test_a_wall_thinner_than_a_coarse_voxel_is_no_repeat(tmp_path, series, voxel, is_filled):
    files, image = series
    image.SetSpacing((voxel, voxel, image.GetSpacing()[2]))
    contours = [to_mm(image, circle(radius), 2) for radius in (8.2, 7.8)]
    write_rtstruct(tmp_path / "rt.dcm", files, {"Bladder wall": contours})
    marked = array_of(read_rtstruct(tmp_path / "rt.dcm", image)["Bladder wall"]).sum()
    assert (marked > 190) == is_filled and (marked < 40) == (not is_filled)


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(circle().round(1), id="rounded"),
        pytest.param(circle(corners=24), id="fewer points"),
        pytest.param(circle(corners=16), id="far fewer points"),
        pytest.param(circle(radius=8.0), id="smaller"),
        pytest.param(circle(radius=8.19, x=11.07), id="aside"),
    ],
)
def test_a_contour_written_again_less_exactly_counts_once(tmp_path, series, again):
    """Else the smaller one is a hole, and hardly a rim is left."""
    files, image = series
    once, twice = [to_mm(image, circle(), 2)], [to_mm(image, points, 2) for points in (circle(), again)]
    write_rtstruct(tmp_path / "rt.dcm", files, {"Once": once, "Twice": twice})
    masks = read_rtstruct(tmp_path / "rt.dcm", image)
    assert array_of(masks["Once"]).sum() > 200
    np.testing.assert_array_equal(array_of(masks["Twice"]), array_of(masks["Once"]))


def test_contours_that_ask_for_it_are_combined_by_exclusive_or(tmp_path, series):
    files, image = series
    contours = [to_mm(image, points, 2) for points in (rectangle(2, 9, 4, 10), rectangle(5, 12, 4, 10))]
    write_rtstruct(tmp_path / "rt.dcm", files, {"Organ": contours}, kind="CLOSEDPLANAR_XOR")
    mask = array_of(read_rtstruct(tmp_path / "rt.dcm", image)["Organ"])
    np.testing.assert_array_equal(mask, filled((1, 2, 12, 4, 10), (0, 5, 9, 4, 10)))


def test_ellipse_has_its_area_and_centre(tmp_path):
    image = sitk.Image([120, 100, 3], sitk.sitkUInt8)
    image.SetSpacing((0.5, 0.8, 3.0))
    files = write_series(tmp_path / "images", np.ones((3, 4, 4)))
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = np.stack([31.3 + 20.2 * np.cos(angle), 37.7 + 13.1 * np.sin(angle), np.full(200, 3.0)], axis=1)
    write_rtstruct(tmp_path / "rt.dcm", files, {"Ellipse": [points]})
    mask = array_of(read_rtstruct(tmp_path / "rt.dcm", image)["Ellipse"])
    assert mask.sum() * 0.5 * 0.8 == pytest.approx(np.pi * 20.2 * 13.1, rel=0.005)
    z, y, x = np.argwhere(mask).mean(axis=0)
    assert z == 1
    assert (x * 0.5, y * 0.8) == pytest.approx((31.3, 37.7), abs=0.05)


def test_what_a_mask_refers_to(tmp_path, series):
    files, _ = series
    (mine,) = images_below(tmp_path / "images")
    write_rtstruct(tmp_path / "rt.dcm", files, {"Organ": []})
    other = replace(mine, uid="1.2.3")
    elsewhere = replace(other, frame_of_reference="1.2.4")
    assert [refers_to(tmp_path / "rt.dcm", each) for each in (mine, other, elsewhere)] == [True, True, False]
    assert not refers_to(tmp_path / "rt.dcm", replace(other, frame_of_reference=""))
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    del dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence
    dataset.save_as(tmp_path / "rt.dcm")
    assert [refers_to(tmp_path / "rt.dcm", each) for each in (mine, other, elsewhere)] == [True, True, False]
    assert refers_to(tmp_path / "rt.dcm", replace(elsewhere, frame_of_reference="")), "too little is stated to tell"
    del dataset.ReferencedFrameOfReferenceSequence
    dataset.save_as(tmp_path / "rt.dcm")
    assert refers_to(tmp_path / "rt.dcm", elsewhere), "nothing is stated"


def test_a_mask_of_another_patient_refers_to_the_image_only_by_its_series(tmp_path, series):
    files, _ = series
    (mine,) = images_below(tmp_path / "images")
    write_rtstruct(tmp_path / "rt.dcm", files, {"Organ": []})
    others = [replace(mine, uid="1.2.3", patient=patient) for patient in ("another", mine.patient, "")]
    assert [refers_to(tmp_path / "rt.dcm", each) for each in others] == [False, True, True]
    assert [is_of_another_patient(tmp_path / "rt.dcm", each) for each in others] == [True, False, False]
    renamed = replace(mine, patient="another")
    assert refers_to(tmp_path / "rt.dcm", renamed) and not is_of_another_patient(tmp_path / "rt.dcm", renamed)
    edit(tmp_path / "rt.dcm", ReferencedFrameOfReferenceSequence=None)
    assert [refers_to(tmp_path / "rt.dcm", each) for each in others] == [False, True, True]
    edit(tmp_path / "rt.dcm", PatientID="")
    assert refers_to(tmp_path / "rt.dcm", others[0]), "nothing is stated"


def test_the_grid_may_run_another_way(tmp_path, series):
    """A reoriented image gets the same voxels marked."""
    files, image = series
    contours = [to_mm(image, rectangle(2, 9, 4, 7), index) for index in (1, 2, 3)]
    write_rtstruct(tmp_path / "rt.dcm", files, {"Organ": contours})
    straight = read_rtstruct(tmp_path / "rt.dcm", image)["Organ"]

    def reorient(volume):
        return sitk.Flip(sitk.PermuteAxes(volume, [2, 0, 1]), [True, False, True])

    turned = read_rtstruct(tmp_path / "rt.dcm", reorient(image))["Organ"]
    np.testing.assert_array_equal(array_of(turned), array_of(reorient(straight)))


def test_structures_without_area_are_empty_and_those_of_one_name_are_united(tmp_path, series):
    files, image = series
    boxes = [to_mm(image, rectangle(2, 4, 2, 4), 1), to_mm(image, rectangle(8, 9, 2, 4), 2)]
    contours = {"Organ": boxes[:1], "More": boxes[1:], "Nothing": [], "Line": [boxes[0][:2]]}
    write_rtstruct(tmp_path / "rt.dcm", files, contours)
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    dataset.StructureSetROISequence[1].ROIName = "Organ"
    dataset.save_as(tmp_path / "rt.dcm")
    masks = read_rtstruct(tmp_path / "rt.dcm", image)
    assert {name: array_of(mask).sum() for name, mask in masks.items()} == {"Organ": 6, "Nothing": 0, "Line": 0}
    write_rtstruct(tmp_path / "points.dcm", files, {"Isocentre": [boxes[0][:1]]}, kind="POINT")
    assert not array_of(read_rtstruct(tmp_path / "points.dcm", image)["Isocentre"]).any()


def test_only_the_structures_asked_for(tmp_path, series):
    """A structure that nobody wants, as the couch, may lie outside the image."""
    files, image = series
    contours = {
        "Couch": [to_mm(image, rectangle(2, 9, 4, 7), 40)],
        "Organ": [to_mm(image, rectangle(2, 4, 2, 4), 1)],
    }
    write_rtstruct(tmp_path / "rt.dcm", files, contours)
    masks = read_rtstruct(tmp_path / "rt.dcm", image, names=["Organ"])
    assert {name: array_of(mask).sum() for name, mask in masks.items()} == {"Organ": 4}
    refused(tmp_path / "rt.dcm", image, "structure number 1 lies outside the image")


def test_reference(tmp_path, series):
    write_rtstruct(tmp_path / "rt.dcm", series[0], {"Organ": [np.eye(3)]})
    assert referenced_series(tmp_path / "rt.dcm") == pydicom.dcmread(series[0][0]).SeriesInstanceUID
    assert referenced_series(series[0][0]) is None


# --- what is refused


def refused(path, image, words):
    with pytest.raises(ConversionError, match=words) as caught:
        read_rtstruct(path, image)
    message = str(caught.value)
    assert "\n" not in message
    for secret in (*PLANTED.values(), str(path.parent), path.name, "Plantedorgan"):
        assert secret not in message


def write_one(tmp_path, series, contours, **settings):
    write_rtstruct(tmp_path / "rt.dcm", series[0], {"Plantedorgan": contours}, **settings)
    return tmp_path / "rt.dcm"


@pytest.mark.parametrize("index", [1.5, 2.3])
def test_contour_between_slices(tmp_path, series, index):
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), index)])
    refused(path, series[1], rf"lies {2.5 * abs(index - round(index)):.2f} mm off the nearest slice .*spacing 2.5 mm")


def test_contour_across_slices(tmp_path, series):
    points = to_mm(series[1], rectangle(2, 9, 4, 7), 1)[:2] + to_mm(series[1], rectangle(2, 9, 4, 7), 3)[2:]
    flat = [to_mm(series[1], rectangle(2, 9, 4, 7), index) for index in (1, 2, 3)]
    refused(write_one(tmp_path, series, [points, *flat]), series[1], "off the nearest slice")


def test_contours_of_a_coarser_series(tmp_path, series):
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), index) for index in (0, 2, 4)])
    refused(path, series[1], "lie in 3 slices, of which no two are neighbours")


@pytest.mark.parametrize("indices", [(0, 2, 3, 5), (0, 1, 3, 5), (0, 2, 4, 5)])
def test_contours_that_mostly_leave_out_slices(tmp_path, series, indices):
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), index) for index in indices])
    refused(path, series[1], "lie in 4 slices, of which 1 pair.* neighbours, while slices between 2 pair")


@pytest.mark.parametrize("indices", [(0, 1, 3, 4), (0, 2, 3), (0, 5)])
def test_contours_may_leave_out_a_slice(tmp_path, series, indices):
    """As between two parts of an organ, or where somebody forgot one."""
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), index) for index in indices])
    assert array_of(read_rtstruct(path, series[1])["Plantedorgan"]).any(axis=(1, 2)).nonzero()[0].tolist() == [*indices]


def test_lesions_at_other_places_leave_out_no_slice(tmp_path, series):
    places = [(0, 2), (1, 2), (3, 8), (5, 14)]
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(x, x + 4, 4, 7), index) for index, x in places])
    assert array_of(read_rtstruct(path, series[1])["Plantedorgan"]).sum() == 4 * 12


@pytest.mark.parametrize("shift", [(0, 0, 900), (900, 0, 0)])
def test_contour_outside(tmp_path, series, shift):
    points = np.add(to_mm(series[1], rectangle(2, 9, 4, 7), 1), shift)
    refused(write_one(tmp_path, series, [points]), series[1], "outside the image, between")


def test_image_instead_of_contours(series):
    refused(series[0][0], series[1], "modality CT, expected RTSTRUCT")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("ContourData", ["1", "2", "3", "4"]), ("ContourGeometricType", "SPIRAL"), ("NumberOfContourPoints", 17)],
)
def test_damaged_contour(tmp_path, series, keyword, value):
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), 1)])
    dataset = pydicom.dcmread(path)
    setattr(dataset.ROIContourSequence[0].ContourSequence[0], keyword, value)
    dataset.save_as(path)
    refused(path, series[1], "damaged|has 4 points, but states 17")


def test_closed_contours_and_lines_in_one_structure(tmp_path, series):
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), index) for index in (1, 2)])
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    dataset.save_as(path)
    refused(path, series[1], "closed contours and points or open lines")


def test_contours_of_a_structure_without_name(tmp_path, series):
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), 1)])
    dataset = pydicom.dcmread(path)
    dataset.ROIContourSequence[0].ReferencedROINumber = 9
    dataset.save_as(path)
    refused(path, series[1], "structure number 9, which has no name")


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.7, 0.9, 0.99])
def test_truncated_contours(tmp_path, series, part):
    path = write_one(tmp_path, series, [to_mm(series[1], rectangle(2, 9, 4, 7), index) for index in (1, 2, 3)])
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(path, series[1], "truncated")


# --- real files


def contour_moments(path):
    """Return area (mm²) and centroid (mm) of all closed contours together, by the shoelace formula."""
    (item,) = pydicom.dcmread(path).ROIContourSequence
    areas, centroids = [], []
    for contour in item.ContourSequence:
        x, y, z = np.reshape(np.array(contour.ContourData, float), (-1, 3)).T
        cross = x * np.roll(y, -1) - np.roll(x, -1) * y
        area = cross.sum() / 2
        centre = [((each + np.roll(each, -1)) * cross).sum() / (6 * area) for each in (x, y)]
        areas.append(abs(area))
        centroids.append([*centre, z[0]])
    return np.sum(areas), np.average(centroids, axis=0, weights=areas)


@pytest.mark.parametrize("patient", ["pat_2", "pat_3"])
def test_real_contours_keep_volume_and_centre(real, patient):
    (series,), (contours,) = series_below(real / "rtstruct" / patient)
    (path,) = contours.files
    assert referenced_series(path) == series.uid
    image = read_series(series)
    ((name, mask),) = read_rtstruct(path, image).items()
    assert [name] == structure_names(path)
    area, centre = contour_moments(path)
    spacing = np.array(mask.GetSpacing())
    indices = np.argwhere(array_of(mask))[:, ::-1]
    assert len(indices) * np.prod(spacing) == pytest.approx(area * spacing[2], rel=0.02)
    found = mask.TransformContinuousIndexToPhysicalPoint(indices.mean(axis=0).tolist())
    np.testing.assert_allclose(found, centre, atol=0.3)  # a third of a pixel

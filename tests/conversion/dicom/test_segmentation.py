import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_helpers import edit, images_below

from nnunet_ad.conversion.dicom import segmentation
from nnunet_ad.conversion.dicom.references import referenced_series
from nnunet_ad.conversion.dicom.segmentation import place_on_grid, segment_names
from nnunet_ad.conversion.dicom.volume import read_series
from nnunet_ad.conversion.errors import ConversionError
from nnunet_ad.testing.dicom_files import PLANTED, write_segmentation, write_series


@pytest.fixture
def series(tmp_path, values, grid):
    """Files of a made series of 6 x 9 x 7 voxels on an oblique grid, and the image."""
    files = write_series(tmp_path / "images", values, **grid)
    return files, read_series(images_below(tmp_path / "images")[0])


def boxes():
    """Return two overlapping masks (z, y, x), not symmetric in any axis, the second in two slices apart."""
    first, second = np.zeros((2, 6, 9, 7), np.uint8)
    first[1:4, 2:7, 1:3] = 1
    second[2, 3:8, 2:6] = 1
    second[4, 1:3, 0:2] = 1
    return {"Liver": first, "Tumour": second}


def read_segmentation(*arguments, **more):
    """Return all masks at once."""
    return dict(segmentation.read_segmentation(*arguments, **more))


def array_of(image):
    return sitk.GetArrayFromImage(image)


def centroid(mask):
    """Return the physical centroid of a mask in mm."""
    places = np.argwhere(array_of(mask))[:, ::-1].mean(axis=0)
    return np.array(mask.TransformContinuousIndexToPhysicalPoint(places.tolist()))


@pytest.mark.parametrize("omit_empty", [True, False])
def test_overlapping_segments_are_read_and_placed(tmp_path, series, omit_empty):
    files, image = series
    write_segmentation(tmp_path / "seg.dcm", files, boxes(), omit_empty=omit_empty)
    masks = read_segmentation(tmp_path / "seg.dcm")
    assert list(masks) == segment_names(tmp_path / "seg.dcm") == ["Liver", "Tumour"]
    assert len({(mask.GetSize(), mask.GetOrigin(), mask.GetDirection()) for mask in masks.values()}) == 1
    assert masks["Liver"].GetSize()[2] == (4 if omit_empty else 6)
    for name, expected in boxes().items():
        assert masks[name].GetPixelID() == sitk.sitkUInt8
        placed = place_on_grid(masks[name], image, resample=False)
        np.testing.assert_array_equal(array_of(placed), expected)
        assert (placed.GetOrigin(), placed.GetDirection()) == (image.GetOrigin(), image.GetDirection())
        np.testing.assert_allclose(centroid(placed), centroid(masks[name]), atol=1e-3)


def test_only_the_segments_asked_for(tmp_path, series):
    write_segmentation(tmp_path / "seg.dcm", series[0], boxes())
    masks = read_segmentation(tmp_path / "seg.dcm", names=["Tumour"])
    assert list(masks) == ["Tumour"]
    np.testing.assert_array_equal(array_of(place_on_grid(masks["Tumour"], series[1], False)), boxes()["Tumour"])


def test_label_map(tmp_path, series):
    masks = boxes()
    masks["Tumour"][masks["Liver"] > 0] = 0
    write_segmentation(tmp_path / "seg.dcm", series[0], masks, kind="LABELMAP")
    read = read_segmentation(tmp_path / "seg.dcm")
    assert list(read) == ["Liver", "Tumour"]
    for name, expected in masks.items():
        np.testing.assert_array_equal(array_of(place_on_grid(read[name], series[1], False)), expected)


def test_a_segment_in_one_slice(tmp_path, series):
    mask = np.zeros((6, 9, 7), np.uint8)
    mask[4, 2:5, 1:3] = 1
    write_segmentation(tmp_path / "seg.dcm", series[0], {"Spot": mask})
    (read,) = read_segmentation(tmp_path / "seg.dcm").values()
    np.testing.assert_array_equal(array_of(place_on_grid(read, series[1], False)), mask)


def test_segments_with_the_same_label_are_united(tmp_path, series):
    masks = boxes()
    write_segmentation(tmp_path / "seg.dcm", series[0], masks)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    dataset.SegmentSequence[1].SegmentLabel = "Liver"
    dataset.save_as(tmp_path / "seg.dcm")
    (read,) = read_segmentation(tmp_path / "seg.dcm").values()
    np.testing.assert_array_equal(array_of(place_on_grid(read, series[1], False)), masks["Liver"] | masks["Tumour"])


def test_reference(tmp_path, series):
    write_segmentation(tmp_path / "seg.dcm", series[0], boxes())
    assert referenced_series(tmp_path / "seg.dcm") == pydicom.dcmread(series[0][0]).SeriesInstanceUID


# --- what is refused


def refused(path, words):
    with pytest.raises(ConversionError, match=words) as caught:
        read_segmentation(path)
    message = str(caught.value)
    assert "\n" not in message
    for secret in (*PLANTED.values(), "Plantedcreator", str(path.parent), path.name):
        assert secret not in message


def test_fractional_segmentation(tmp_path, series):
    write_segmentation(tmp_path / "seg.dcm", series[0], boxes(), kind="FRACTIONAL")
    refused(tmp_path / "seg.dcm", "segmentation is fractional, expected a binary one")


def test_image_instead_of_segmentation(series):
    refused(series[0][0], "modality CT, expected SEG")


@pytest.mark.parametrize("size", [0, 140, 2000, -200, -2])
def test_truncated_segmentation(tmp_path, series, size):
    write_segmentation(tmp_path / "seg.dcm", series[0], boxes())
    content = (tmp_path / "seg.dcm").read_bytes()
    (tmp_path / "seg.dcm").write_bytes(content[:size])
    refused(tmp_path / "seg.dcm", "truncated")


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segment_without_description(tmp_path, series, kind):
    masks = boxes()
    masks["Tumour"][masks["Liver"] > 0] = 0
    write_segmentation(tmp_path / "seg.dcm", series[0], masks, kind=kind)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    dataset.SegmentSequence = [segment for segment in dataset.SegmentSequence if segment.SegmentNumber != 2]
    dataset.save_as(tmp_path / "seg.dcm")
    refused(tmp_path / "seg.dcm", r"holds segments \[2\] that it does not describe, expected only \[1\]")


def test_frames_off_the_grid(tmp_path, series):
    write_segmentation(tmp_path / "seg.dcm", series[0], boxes())
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    plane = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    plane.ImagePositionPatient = [float(each) + 0.9 for each in plane.ImagePositionPatient]
    dataset.save_as(tmp_path / "seg.dcm")
    refused(tmp_path / "seg.dcm", "positions that make no regular grid, expected .* grid of the image series")


# --- the place on the grid of an image


def make_mask(values, origin=(0.0, 0.0, 0.0), spacing=(1.0, 1.0, 1.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
    mask = sitk.GetImageFromArray(np.asarray(values, np.uint8))
    mask.SetOrigin(origin)
    mask.SetSpacing(spacing)
    mask.SetDirection([float(each) for each in direction])
    return mask


def test_reoriented_mask_is_copied_voxel_by_voxel(series):
    image = series[1]
    mask = make_mask(boxes()["Liver"])
    mask.CopyInformation(image)
    for axes in ([2, 0, 1], [1, 0, 2]):
        reoriented = sitk.Flip(sitk.PermuteAxes(mask, axes), [True, False, True])
        assert reoriented.GetDirection() != image.GetDirection()
        np.testing.assert_array_equal(array_of(place_on_grid(reoriented, image, False)), boxes()["Liver"])


@pytest.mark.parametrize(
    "grid",
    [
        {"origin": (0.4, 0, 0)},
        {"spacing": (1, 1, 2)},
        {"spacing": (1, 1.1, 1)},
        {"spacing": (1, 1, 0.5)},
        {"direction": (np.cos(0.1), -np.sin(0.1), 0, np.sin(0.1), np.cos(0.1), 0, 0, 0, 1)},
    ],
)
def test_other_lattice(grid):
    image = make_mask(np.zeros((6, 8, 8)))
    values = np.zeros((3, 4, 4))
    values[1:, 1:3, 1:3] = 1
    mask = make_mask(values, **grid)
    with pytest.raises(ConversionError, match=r"4 x 4 x 3 voxels of .* expected 8 x 8 x 6 voxels of .*--resample"):
        place_on_grid(mask, image, resample=False)
    placed = array_of(place_on_grid(mask, image, resample=True))
    expected = sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    assert placed.any()
    np.testing.assert_array_equal(placed, array_of(expected))


def test_mask_outside_the_image():
    image, mask = make_mask(np.zeros((6, 8, 8))), make_mask(np.ones((1, 2, 2)), origin=(7, 0, 0))
    with pytest.raises(ConversionError, match="2 of 4 marked voxels lie outside the image"):
        place_on_grid(mask, image, resample=False)
    far = make_mask(np.ones((3, 2, 2)), origin=(70.5, 0, 0))
    with pytest.raises(ConversionError, match="marks nothing inside the image"):
        place_on_grid(far, image, resample=True)


def test_unmarked_margin_outside_the_image_does_not_matter():
    values = np.zeros((8, 10, 10))
    values[2:4, 3, 3:5] = 1
    image, mask = make_mask(np.zeros((6, 8, 8))), make_mask(values, origin=(-1, -1, -1))
    np.testing.assert_array_equal(array_of(place_on_grid(mask, image, False)), values[1:-1, 1:-1, 1:-1])


# --- real files


def count_marked(path):
    """Count marked pixels of each segment by unpacking the frames with numpy, and give the height of each frame."""
    dataset = pydicom.dcmread(path)
    labels = {segment.SegmentNumber: segment.SegmentLabel for segment in dataset.SegmentSequence}
    num_pixels, num_frames = dataset.Rows * dataset.Columns, int(dataset.NumberOfFrames)
    raw = np.frombuffer(dataset.PixelData, np.uint8)
    is_map = dataset.SegmentationType == "LABELMAP"
    pixels = raw if is_map else np.unpackbits(raw, bitorder="little")
    frames = pixels[: num_frames * num_pixels].reshape(num_frames, num_pixels)
    counts = {}
    for frame, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        height = round(float(groups.PlanePositionSequence[0].ImagePositionPatient[2]), 3)
        for number, label in labels.items():
            if number == 0:
                continue
            if is_map:
                count = int((frame == number).sum())
            elif groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
                count = int(frame.sum())
            else:
                continue
            counts.setdefault(label, {})[height] = count
    return counts


@pytest.mark.parametrize("name", ["liver", "partial_overlaps", "sparse-labelmap-noppv"])
def test_real_segmentations_against_a_plain_count(real, name):
    path = real / "seg" / f"{name}.dcm"
    masks, expected = read_segmentation(path), count_marked(path)
    assert list(masks) == list(expected)
    for label, mask in masks.items():
        found = {}
        for index in range(mask.GetSize()[2]):
            height = round(mask.TransformIndexToPhysicalPoint((0, 0, index))[2], 3)
            found[height] = int(array_of(mask)[index].sum())
        assert {height: count for height, count in found.items() if count} == {
            height: count for height, count in expected[label].items() if count
        }


@pytest.mark.parametrize("name", ["liver", "partial_overlaps"])
def test_real_segmentations_lie_on_their_ct(real, name):
    path = real / "seg" / f"{name}.dcm"
    (series,) = images_below(real / "seg" / "ct-3slice")
    assert referenced_series(path) == series.uid
    image = read_series(series)
    placed = {label: place_on_grid(mask, image, False) for label, mask in read_segmentation(path).items()}
    for label, counts in count_marked(path).items():
        assert array_of(placed[label]).sum() == sum(counts.values())
    if name == "liver":
        inside = sitk.GetArrayFromImage(image)[array_of(placed["Liver"]) > 0]
        assert 40 < np.median(inside) < 200  # Hounsfield units of a liver, with or without contrast
    else:
        overlap = np.sum([array_of(mask) for mask in placed.values()], axis=0)
        assert overlap.max() > 1


def test_real_sparse_segmentation_is_filled_between_its_frames(real):
    (mask,) = read_segmentation(real / "seg" / "sparse-labelmap-noppv.dcm").values()
    np.testing.assert_allclose(mask.GetSpacing(), (0.7, 0.7, 2.5))
    marked = array_of(mask).sum(axis=(1, 2))
    assert len(marked) == 3
    assert marked[0] > 0
    assert marked[1] == 0
    assert marked[2] > 0


def without_spacing(path, spacing=None):
    """Let a DICOM-SEG state no distance of its slices, or another one."""
    dataset = pydicom.dcmread(path)
    for item in dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence:
        item.pop("SpacingBetweenSlices", None)
        if spacing:
            item.SpacingBetweenSlices = spacing
    dataset.save_as(path)


def test_slices_apart_of_the_series_itself_stay_apart(tmp_path, series):
    files, image = series
    mask = np.zeros((6, 9, 7), np.uint8)
    mask[[0, 3], 2:5, 1:4] = 1
    write_segmentation(tmp_path / "seg.dcm", files, {"Liver": mask})
    without_spacing(tmp_path / "seg.dcm")
    uid = referenced_series(tmp_path / "seg.dcm")
    assert segmentation.skips_empty_slices(tmp_path / "seg.dcm", uid)
    assert not segmentation.skips_empty_slices(tmp_path / "seg.dcm", "1.2.3")
    (read,) = read_segmentation(tmp_path / "seg.dcm").values()
    np.testing.assert_array_equal(array_of(place_on_grid(read, image, False, skips_empty=lambda: True)), mask)
    with pytest.raises(ConversionError, match="another grid"):
        place_on_grid(read, image, False)
    without_spacing(tmp_path / "seg.dcm", 3 * image.GetSpacing()[2])
    assert not segmentation.skips_empty_slices(tmp_path / "seg.dcm", uid), "thick slices were segmented"


def rounded_series(folder, step, decimals):
    """Return files of a series of 40 slices whose positions are rounded, and the image."""
    files = write_series(folder, np.random.default_rng(1).integers(0, 9, (40, 6, 5)), spacing=(1, 1, step))
    for index, file in enumerate(files):
        edit(file, ImagePositionPatient=["0", "0", f"{step * index:.{decimals}f}"])
    return files, read_series(images_below(folder)[0])


@pytest.mark.parametrize("marked", [range(5, 20), [0, 39], [7], [3, 4, 12, 13, 30]])
@pytest.mark.parametrize("states_distance", [False, True])
@pytest.mark.parametrize(("step", "decimals"), [(1.25, 1), (3.333, 1)])
def test_frames_lie_in_the_slices_of_an_image_with_rounded_positions(tmp_path, marked, states_distance, step, decimals):
    files, image = rounded_series(tmp_path / "images", step, decimals)
    masks = {name: np.zeros((40, 6, 5), np.uint8) for name in ("Liver", "Spot")}
    masks["Liver"][list(marked), 1:4, 2:5] = 1
    masks["Spot"][marked[0], 4:, 0] = 1
    write_segmentation(tmp_path / "seg.dcm", files, masks)
    without_spacing(tmp_path / "seg.dcm", step if states_distance else None)
    read = read_segmentation(tmp_path / "seg.dcm", grid=image)
    for name, mask in masks.items():
        placed = place_on_grid(read[name], image, False, skips_empty=lambda: not states_distance)
        np.testing.assert_array_equal(array_of(placed), mask)


def test_frames_between_the_slices_of_the_image_stay_there(tmp_path, series):
    """As do those of a series of thicker slices."""
    files, image = series
    write_segmentation(tmp_path / "seg.dcm", files, boxes())
    (alone,) = read_segmentation(tmp_path / "seg.dcm", names=["Liver"]).values()
    image.SetOrigin(image.TransformContinuousIndexToPhysicalPoint((0, 0, 0.06)))
    (beside,) = read_segmentation(tmp_path / "seg.dcm", names=["Liver"], grid=image).values()
    assert beside.GetOrigin() == alone.GetOrigin()
    image.SetSpacing((*image.GetSpacing()[:2], image.GetSpacing()[2] / 2))
    image.SetOrigin(alone.GetOrigin())
    (thicker,) = read_segmentation(tmp_path / "seg.dcm", names=["Liver"], grid=image).values()
    assert thicker.GetSpacing() == pytest.approx(alone.GetSpacing())
    with pytest.raises(ConversionError, match="another grid"):
        place_on_grid(thicker, image, False)


@pytest.mark.parametrize("lost", ["NumberOfFrames", "DimensionIndexSequence"])
def test_a_segmentation_that_lacks_what_tells_its_frames_apart(tmp_path, series, lost):
    write_segmentation(tmp_path / "seg.dcm", series[0], boxes())
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    delattr(dataset, lost)
    for groups in dataset.PerFrameFunctionalGroupsSequence if lost == "DimensionIndexSequence" else ():
        del groups.FrameContentSequence
    dataset.save_as(tmp_path / "seg.dcm")
    with pytest.raises(ConversionError, match=r"has 1 frame\(s\), but describes|cannot be decoded"):
        read_segmentation(tmp_path / "seg.dcm")


def test_no_number_of_a_file_is_logged(tmp_path, series, caplog, capfd):
    write_segmentation(tmp_path / "seg.dcm", series[0], boxes())
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    referenced = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    referenced.append(referenced[0])
    dataset.save_as(tmp_path / "seg.dcm")
    assert set(read_segmentation(tmp_path / "seg.dcm")) == set(boxes())
    assert not caplog.records
    assert capfd.readouterr().err == ""

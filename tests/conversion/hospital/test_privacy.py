"""Nothing of the source survives: every written byte and every printed word is searched for planted identifiers."""

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hospital_helpers import NAME, convert, make_arrays, make_volume, write

pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from nnunet_ad.testing.dicom_files import PLANTED, write_segmentation, write_series

REAL_STUDY = Path(__file__).parents[4] / "shared" / "data" / "dicom" / "brain_study"
SECRET = "Plantedsecret"
DATE = "19690720"
HEADER_FIELDS = {"descrip": SECRET, "aux_file": SECRET, "intent_name": SECRET, "db_name": SECRET}


def everything_in(folder):
    """Yield the content of every file, decompressed where it is compressed, pictures of the page included."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder)).encode()
        if path.is_file():
            content = path.read_bytes()
            yield content
            if path.suffix == ".gz":
                yield gzip.decompress(content)
            for picture in re.findall(rb"data:image/png;base64,([A-Za-z0-9+/=]+)", content):
                yield base64.b64decode(picture)


def assert_nothing_of(secrets, folder, capfd):
    printed = capfd.readouterr()
    contents = [*everything_in(folder), printed.out.encode(), printed.err.encode()]
    assert len(contents) > 5
    for secret in secrets:
        for content in contents:
            assert secret.encode().lower() not in content.lower(), f"{secret} in {content[:300]!r}"


def with_metadata(volume):
    for key in ("PatientName", "ITK_FileNotes", "Comment", "0010|0010"):
        volume.SetMetaData(key, f"{SECRET} {DATE}")
    return volume


def write_nifti_with_secrets(array, case, path):
    """Write a NIfTI file with secrets in all its text fields and in an extension."""
    write(make_volume(array, case), path)
    image = nib.load(path)
    header = image.header.copy()
    for field, value in HEADER_FIELDS.items():
        header[field] = value
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine, header), path)


@pytest.fixture
def hospital(tmp_path):
    """Cases of all formats full of identifiers, good ones and bad ones."""
    root = tmp_path / f"{SECRET} hospital"
    array, mask = make_arrays("ann")
    direction = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    write_nifti_with_secrets(array, "ann", root / "labeled" / f"{SECRET}_Ann" / "mr.nii.gz")
    write_nifti_with_secrets(mask, "ann", root / "labeled" / f"{SECRET}_Ann" / f"{SECRET}_mask.nii.gz")
    dicom = root / "labeled" / f"{SECRET}^Bob {DATE}"
    files = write_series(dicom / DATE, array + 3, (0.8, 0.9, 2.5), description=SECRET)
    write_segmentation(dicom / f"{SECRET}.dcm", files, {f"{SECRET} liver": mask == 1, "tumour": mask == 2})
    nrrd = with_metadata(make_volume(array + 1, "bob", direction=direction))
    write(nrrd, root / "unlabeled" / f"{SECRET} {DATE}.nrrd")
    mha = with_metadata(make_volume(array + 2, "cid", direction=direction))
    write(mha, root / "unlabeled" / f"{DATE} {SECRET}.mha")
    write_series(root / "unlabeled" / SECRET / "b", array + 4, (0.8, 0.9, 2.5), description=f"{SECRET} t1")
    labels = {"liver": {"value": 1, "sources": ["*liver"]}, "tumour": 2}
    (root / "labels.json").write_text(json.dumps(labels))
    return root


def add_bad_cases(root):
    """Add one case for each kind of finding that has something of the source at hand."""
    array, mask = make_arrays("dan")
    labeled, unlabeled = root / "labeled", root / "unlabeled"
    (labeled / f"{SECRET} empty").mkdir()
    write(make_volume(array, "dan"), labeled / f"{SECRET} without mask" / f"{SECRET}.nii.gz")
    for name in ("1", "2"):
        write(make_volume(array, "dan"), labeled / f"{SECRET} ambiguous" / f"{SECRET}{name}.nii.gz")
    write(make_volume(array + 5, "dan"), labeled / f"{SECRET} unnamed" / "mr.nii.gz")
    for name in ("1", "2"):
        write(make_volume(mask, "dan"), labeled / f"{SECRET} unnamed" / "masks" / f"{SECRET}{name}.nii.gz")
    write(make_volume(array + 6, "dan"), labeled / f"{SECRET} values" / "mr.nii.gz")
    write(make_volume(mask * 7, "dan"), labeled / f"{SECRET} values" / f"{SECRET}_mask.nii.gz")
    (unlabeled / f"{SECRET} broken.nii.gz").write_bytes(b"broken")
    (unlabeled / f"{SECRET} unknown.xyz").write_bytes(b"unknown")
    shutil.copy(unlabeled / f"{SECRET} {DATE}.nrrd", unlabeled / f"{SECRET} copy.nrrd")
    for number in (1, 2):
        folder = unlabeled / f"{SECRET} two series"
        names = f"{SECRET}{number}_{{}}.dcm"
        write_series(folder, array + number, description=f"{SECRET} {number}", number=number, names=names)
    write_series(unlabeled / f"{SECRET} gap", array, description=SECRET, drop_slices=[3])
    files = write_series(labeled / f"{SECRET} segments" / "ct", array + 9, (0.8, 0.9, 2.5), description=SECRET)
    write_segmentation(labeled / f"{SECRET} segments" / "seg.dcm", files, {f"{SECRET} other": mask == 1})


SECRETS = (SECRET, DATE, "hospital/", *PLANTED.values(), "Plantedcreator", "planted segmentation")


def test_nothing_of_the_source_is_written_or_printed(hospital, raw, tmp_path, capfd):
    table = tmp_path / "patients.csv"
    names = [path.name for role in ("labeled", "unlabeled") for path in (hospital / role).iterdir()]
    table.write_text("case,patient\n" + "".join(f"{name},{SECRET}{index}\n" for index, name in enumerate(names)))
    options = ("--accept-outliers", "--patients", table, "--mapping", tmp_path / "mapping.csv")
    assert convert(hospital, *options) == 0
    assert_nothing_of(SECRETS, raw, capfd)
    assert SECRET in (tmp_path / "mapping.csv").read_text()


def test_patients_that_headers_state_are_nowhere_but_in_the_mapping(hospital, raw, tmp_path, capfd):
    """They decide about folds here, and are told from each other; one is for test and training, which is an error."""
    names = {"PatientID": "Plantedpatient", "IssuerOfPatientID": "Plantedissuer"}
    secrets, array = (*SECRETS, *names.values()), make_arrays("ann")[0]
    for number in (1, 2):
        patient = names | {"PatientID": f"Plantedpatient{number}"}
        write_series(hospital / "unlabeled" / f"c{number}", array + 9 + number, (0.8, 0.9, 2.5), patient=patient)
    mapping = tmp_path / "mapping.csv"
    assert convert(hospital, "--accept-outliers", "--mapping", mapping) == 0
    assert "told apart by the DICOM headers" in (raw / NAME / "nnunet_ad.json").read_text()
    assert_nothing_of(secrets, raw, capfd)
    assert "Plantedpatient2" in mapping.read_text()
    write_series(hospital / "test" / "c", array + 20, (0.8, 0.9, 2.5), patient=patient)
    report = tmp_path / "report"
    assert convert(hospital, "--accept-outliers", "--overwrite", "--report", report) == 1
    assert "the patient of this test case also has" in (report / "conversion_report.json").read_text()
    assert_nothing_of(secrets, report, capfd)


def test_nothing_of_the_source_is_in_findings(hospital, raw, tmp_path, capfd):
    add_bad_cases(hospital)
    report = tmp_path / "report"
    assert convert(hospital, "--accept-outliers", "--report", report) == 1
    assert not raw.exists() or not any(path.is_file() for path in raw.rglob("*"))
    errors = json.loads((report / "conversion_report.json").read_text())["cases"]
    assert sum(any(finding["severity"] == "error" for finding in case["findings"]) for case in errors) == 11
    assert_nothing_of(SECRETS, report, capfd)
    assert convert(hospital, "--accept-outliers", "--skip-bad") == 0
    assert_nothing_of(SECRETS, raw, capfd)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: shutil.rmtree(root / "labeled"),
        lambda root: (root / "labels.json").write_text("{"),
        lambda root: shutil.rmtree(root / "unlabeled") or (root / "unlabeled").mkdir(),
        lambda root: (root / "labeled" / "masks").mkdir(),
    ],
)
def test_nothing_of_the_source_is_in_errors_as_a_whole(change, hospital, raw, tmp_path, capfd):
    change(hospital)
    options = ["--labeled", str(hospital / "labeled")] if not (hospital / "labeled").exists() else []
    (tmp_path / "report").mkdir()
    assert convert(hospital, *options) == 1
    printed = capfd.readouterr()
    assert "error: " in printed.err
    assert SECRET.lower() not in (printed.out + printed.err).lower()


@pytest.mark.skipif(not REAL_STUDY.is_dir(), reason="needs the real DICOM study of shared/data")
def test_real_study_is_converted_with_its_geometry_and_without_its_patient(raw, tmp_path, capfd):
    import pydicom

    from nnunet_ad.conversion.dicom.series import find_series

    root = tmp_path / "in"
    case = shutil.copytree(REAL_STUDY, root / "labeled" / "case")
    images, _ = find_series(path for path in case.rglob("*") if path.is_file())
    series = max(images, key=lambda each: len(each.files))
    expected = sitk.ReadImage([str(file) for file in series.files])
    mask = np.zeros(expected.GetSize()[::-1], dtype=np.uint8)
    mask[2:6, 10:30, 12:25] = 1
    label = sitk.GetImageFromArray(mask)
    label.CopyInformation(expected)
    write(label, case / "mask.nii.gz")
    (root / "labels.json").write_text('{"box": 1}')
    assert convert(root, "--series-description", f"^{re.escape(series.description)}$") == 0
    found = sitk.ReadImage(str(raw / NAME / "imagesTr" / "Liver_0001_0000.nii.gz"))
    assert found.GetSpacing() == pytest.approx(expected.GetSpacing(), abs=1e-5)
    assert found.GetDirection() == pytest.approx(expected.GetDirection(), abs=1e-5)
    assert found.GetOrigin() == pytest.approx(expected.GetOrigin(), abs=1e-3)
    voxels = sitk.GetArrayFromImage(found)
    np.testing.assert_array_equal(voxels, sitk.GetArrayFromImage(expected).astype(np.float32))
    header = pydicom.dcmread(series.files[0], stop_before_pixels=True)
    secrets = {
        str(element.value)
        for element in header
        if (element.tag.group == 0x10 or element.VR in ("PN", "DA", "TM", "UI", "LO")) and len(str(element.value)) >= 6
    }
    assert secrets
    assert_nothing_of(secrets, raw, capfd)

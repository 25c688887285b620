"""Patients, domains, folds, and the list of structures."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hospital_helpers import ALL_CASES, CASES, NAME, change_voxels, convert

from nnunet_ad.conversion.cases import Role
from nnunet_ad.conversion.errors import ConversionError, SourceError
from nnunet_ad.conversion.folds import VALIDATION_IS_LABELED, VALIDATION_KEPT_ASIDE
from nnunet_ad.conversion.hospital.command_line import LAYOUTS
from nnunet_ad.conversion.hospital.groups import (
    headers_tell_patients,
    look_up,
    make_folds,
    patient_of,
    read_table,
    untrained_structures,
)
from nnunet_ad.conversion.hospital.labels import read_labels
from nnunet_ad.conversion.hospital.names import natural_key, split_last_word, without_fixed_parts
from nnunet_ad.conversion.hospital.sources import Source


def own_patients(*names):
    return {name: name for group in names for name in group}


def test_fewer_than_ten_labelled_cases_all_train_and_validate():
    labeled, unlabeled = [f"l{i}" for i in range(9)], ["u"]
    (fold,) = make_folds(labeled, unlabeled, own_patients(labeled, unlabeled), None, 0)
    assert fold.train == fold.val == tuple(labeled)
    assert fold.unlabeled == ("u",) and fold.validation == VALIDATION_IS_LABELED


@pytest.mark.parametrize(("count", "expected"), [(10, 2), (12, 2), (20, 4), (31, 6)])
def test_of_ten_or_more_a_fifth_is_kept_aside(count, expected):
    labeled = [f"l{i:02d}" for i in range(count)]
    (fold,) = make_folds(labeled, [], own_patients(labeled), None, 0)
    assert len(fold.val) in (expected, expected + 1)
    assert sorted((*fold.train, *fold.val)) == labeled and fold.validation == VALIDATION_KEPT_ASIDE


@pytest.mark.parametrize(("sizes", "expected"), [((9, 1), 1), ((6, 1, 1, 1, 1, 1, 1), 2), ((5, 5, 5, 5), 5)])
def test_a_patient_with_many_cases_is_not_kept_aside_for_that(sizes, expected):
    patients = {f"l{who}_{number:02d}": str(who) for who, size in enumerate(sizes) for number in range(size)}
    for seed in range(5):
        (fold,) = make_folds(list(patients), [], patients, None, seed)
        assert len(fold.val) == expected


@pytest.mark.parametrize("rare", range(10))
def test_the_single_fold_leaves_every_structure_a_training_case(rare):
    labeled = [f"l{i:02d}" for i in range(10)]
    structures = {name: ("liver", "tumour")[: 1 + (number == rare)] for number, name in enumerate(labeled)}
    for seed in range(5):
        (fold,) = make_folds(labeled, [], own_patients(labeled), None, seed, structures)
        assert len(fold.val) == 2 and labeled[rare] in fold.train
        assert untrained_structures(fold, structures) == []


def test_the_single_fold_is_rather_small_than_without_a_structure():
    patients = {f"l{i:02d}": "a" if i < 2 else "b" if i == 2 else "c" for i in range(10)}
    structures = dict.fromkeys(patients, ("liver",)) | dict.fromkeys(("l00", "l05"), ("tumour",))
    (fold,) = make_folds(list(patients), [], patients, None, 0, structures)
    assert fold.val == ("l00", "l01")
    structures["l05"] = ("liver",)
    (fold,) = make_folds(list(patients), [], patients, None, 0, structures)
    assert fold.val == ("l02",) and untrained_structures(fold, structures) == []


def test_a_fold_without_a_training_case_of_a_structure_is_noted(hospital, raw, capsys):
    for case in CASES["labeled"][1:]:
        path = hospital / "labeled" / "masks" / f"{case}.nii.gz"
        change_voxels(path, lambda array: np.where(array == 2, 1, array))
    assert convert(hospital) == 0
    assert "no training case" not in capsys.readouterr().out
    assert convert(hospital, "--folds", 4, "--overwrite") == 0
    folds = json.loads((raw / NAME / "splits_final.json").read_text())
    number = next(number for number, fold in enumerate(folds) if fold["val"] == ["Liver_0001"])
    notes = json.loads((raw / NAME / "nnunet_ad.json").read_text())["notes"]
    assert [note for note in notes if "no training case" in note] == [
        f"in fold {number} no training case has tumour, hence none learns it; take another --seed or "
        "number of --folds, or label more cases"
    ]


def test_folds_are_those_of_the_seed():
    labeled = [f"l{i:02d}" for i in range(20)]
    folds = [make_folds(labeled, [], own_patients(labeled), 4, seed) for seed in (0, 0, 1)]
    assert folds[0] == folds[1] != folds[2]


def test_no_patient_crosses_a_fold():
    labeled, unlabeled = [f"l{i:02d}" for i in range(14)], [f"u{i:02d}" for i in range(14)]
    patients = {name: name[0] and str(int(name[1:]) // 2) for name in (*labeled, *unlabeled)}
    folds = make_folds(labeled, unlabeled, patients, 3, 5)
    assert sorted(name for fold in folds for name in fold.val) == labeled
    for fold in folds:
        val = {patients[name] for name in fold.val}
        assert val and not val & {patients[name] for name in (*fold.train, *fold.unlabeled)}
        assert len(fold.unlabeled) == len(unlabeled) - 2 * len(val)


@pytest.mark.parametrize("num_folds", [1, 4])
def test_more_folds_than_patients_are_refused(num_folds):
    patients = {"a": "1", "b": "1", "c": "2", "d": "3"}
    with pytest.raises(ConversionError, match=f"--folds {num_folds} was asked for, but there are 3 labelled patients"):
        make_folds(list("abcd"), [], patients, num_folds, 0)


def source(name, role=Role.LABELED, *patients):
    channels = tuple(SimpleNamespace(patient=patient) for patient in patients)
    return Source(name, role, channels, (), ())


def test_patients_by_pattern_table_or_none():
    assert patient_of(source("P01_pre"), re.compile("^(P[0-9]+)_"), None) == "P01"
    assert patient_of(source("P01_pre"), re.compile("^P[0-9]+"), None) == "P01"
    assert patient_of(source("a"), None, {"a": "x", "labeled/a": "y"}) == "y"
    assert patient_of(source("a"), None, None) != patient_of(source("a", Role.TEST), None, None)
    with pytest.raises(ConversionError, match="finds no patient"):
        patient_of(source("smith"), re.compile("^(P[0-9]+)_"), None)
    with pytest.raises(ConversionError, match="not in the table of --patients"):
        patient_of(source("smith"), None, {})


def test_patients_by_headers_unless_an_option_says_more():
    stated = source("a_1", Role.LABELED, "P1", "P1", "")
    assert patient_of(stated, None, None, by_headers=True) == "P1"
    assert patient_of(stated, None, None) == "labeled/a_1"
    assert patient_of(source("b"), None, None, by_headers=True) == "labeled/b"
    assert patient_of(stated, re.compile("^a"), None, by_headers=True) == "a"
    assert patient_of(stated, None, {"a_1": "x"}, by_headers=True) == "x"
    with pytest.raises(ConversionError, match="state 2 patients"):
        patient_of(source("c", Role.LABELED, "P1", "P2"), None, None, by_headers=True)


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        ([], False),
        (["", ""], False),
        (["P1"], True),
        (["P1", ""], True),
        (["P1", "P1", ""], False),
        (["P1", "P1", "P2"], True),
    ],
)
def test_one_patient_of_all_cases_is_a_placeholder(patients, expected):
    sources = [source(f"c{index}", Role.LABELED, patient) for index, patient in enumerate(patients)]
    assert headers_tell_patients([*sources, source("file")]) is expected


def test_a_patient_for_test_and_training_is_refused(hospital, raw, refused):
    (hospital / "test" / "images" / "hal.nii.gz").rename(hospital / "test" / "images" / "ann_2.nii.gz")
    (hospital / "test" / "masks" / "hal.nii.gz").rename(hospital / "test" / "masks" / "ann_2.nii.gz")
    assert convert(hospital, "--dry-run") == 0
    refused(convert(hospital, "--patient-regex", "^[a-z]+"), "Liver_0008 (test 1 of 1), patient", "also has Liver_0001")


def test_cross_validation_is_written_and_keeps_patients_together(hospital, raw, tmp_path):
    table = tmp_path / "patients.csv"
    patients = dict.fromkeys(ALL_CASES, "?") | {"ann": "1", "bob": "1", "cid": "2", "dan": "3", "eva": "3", "hal": "4"}
    table.write_text("\ufeffcase;patient\n" + "".join(f"{case};{who}\n" for case, who in patients.items()))
    assert convert(hospital, "--patients", table, "--folds", 3) == 0
    folds = json.loads((raw / NAME / "splits_final.json").read_text())
    assert sorted(fold["val"] for fold in folds) == [["Liver_0001", "Liver_0002"], ["Liver_0003"], ["Liver_0004"]]
    for fold in folds:
        assert ("Liver_0005" in fold["unlabeled"]) == ("Liver_0004" not in fold["val"])
        assert {"Liver_0006", "Liver_0007"} <= set(fold["unlabeled"])
    notes = json.loads((raw / NAME / "nnunet_ad.json").read_text())["notes"]
    assert any(note.startswith("1 times an unlabelled case is not used in a fold") for note in notes)
    assert not any("of its own" in note for note in notes)


def test_without_a_word_about_patients_a_note_says_what_was_assumed(hospital, raw, capsys):
    assert convert(hospital) == 0
    note = "each file or folder counts as a patient of its own; say by --patients or --patient-regex whose case it is"
    assert note in json.loads((raw / NAME / "nnunet_ad.json").read_text())["notes"]
    assert f"note: {note}" in capsys.readouterr().out


def test_a_case_missing_in_a_table_is_told(hospital, raw, refused, tmp_path):
    table = tmp_path / "domains.csv"
    table.write_text("case,domain\n" + "".join(f"{case},A\n" for case in ALL_CASES if case != "fay"))
    assert "fay" not in refused(convert(hospital, "--domains", table), "Liver_0006", "not in the table of --domains")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has not the columns"),
        ("name,domain\na,b\n", "has not the columns 'case' and 'domain'"),
        ("case,domain\na,\n", "line 2 lacks a case or a domain"),
        ("case,domain\n\na,b\n\nc,\n", "line 5 lacks a case or a domain"),
        ("case,domain\na,b\na.nii.gz,c\n", "line 3 gives a case another domain"),
        ('case,domain\na,"b\nc,d\n', "the file is no CSV .*quotation mark"),
        ('"case,domain\n' + "a,b\n" * 50_000, "the file is no CSV .*quotation mark"),
    ],
)
def test_tables_that_are_wrong(text, message, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConversionError, match=message):
        read_table(tmp_path / "t.csv", "domain")


def test_tables_of_any_separator_and_ending(tmp_path):
    for separator in ",;\t":
        text = f"Domain{separator} case \nA{separator}labeled/x.nii.gz\nB{separator}y\n"
        (tmp_path / "t.csv").write_text(text)
        assert read_table(tmp_path / "t.csv", "domain") == {"labeled/x": "A", "y": "B"}


def test_a_folder_whose_name_ends_as_a_file_is_found_in_a_table(tmp_path):
    for entry in ("p.nii", "labeled/p.nii"):
        (tmp_path / "t.csv").write_text(f"case,domain\n{entry},A\n")
        table = read_table(tmp_path / "t.csv", "domain")
        assert look_up(source("p.nii"), table, "domain") == look_up(source("p"), table, "domain") == "A"
        with pytest.raises(ConversionError, match="not in the table"):
            look_up(source("p.x"), table, "domain")


# labels.json


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "expected names with values"),
        ("{}", "no structure in it"),
        ('{"background": 0}', "no structure in it"),
        ('{"liver": 0}', "has the value 0"),
        ('{"liver": "1"}', "expected whole numbers"),
        ('{"liver": true}', "expected whole numbers"),
        ('{"liver": 1, "tumour": 1}', "the value 1 is given twice"),
        ('{"liver": 1, "liver": 2}', "the name 'liver' is given twice"),
        ('{"liver": {"sources": ["a"]}, "tumour": {"sources": ["A"]}}', "the source 'a' is given twice"),
        ('{"liver": {"sources": ["*"]}}', "only the background may have"),
        ('{"liver": {"valeu": 1}}', "'valeu'"),
        ('{" ": 1}', "empty name"),
        (json.dumps({f"s{number}": number for number in range(1, 256)}), "255 structures in it, expected at most 254"),
        ('{"liver": ' + "9" * 5000 + "}", "the file is no JSON"),
        ('{"liver": ' + "9" * 20 + "}", "a value of 'liver' is beyond 2147483647"),
        ('{"liver": ' + "[" * 100_000, "the file is no JSON"),
    ],
    ids=lambda text: text[:40],
)
def test_labels_that_are_wrong(text, message, tmp_path):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ConversionError, match=message):
        read_labels(tmp_path / "labels.json")


def test_labels_have_values_sources_background_and_ignore_last(tmp_path):
    content = {"ignore": 255, "background": [7, 8], "liver": [1, 5], "tumour": {"value": 2, "sources": ["HCC*"]}}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = read_labels(tmp_path / "labels.json")
    assert labels.numbers == {"background": 0, "liver": 1, "tumour": 2, "ignore": 3}
    assert labels.values == {0: 0, 7: 0, 8: 0, 1: 1, 5: 1, 2: 2, 255: 3}
    assert [labels.number_of([name]) for name in ("LIVER", "hcc 1", "spleen")] == [1, 2, None]


def test_the_examples_of_the_help_and_the_documentation_are_read(tmp_path):
    examples = re.findall(r'^ *({"liver".*?})(?: {2}.*)?$', LAYOUTS, re.MULTILINE)
    documentation = (Path(__file__).parents[3] / "docs" / "hospital-data.md").read_text(encoding="utf-8")
    examples += re.findall(r"```json\n(.*?)```", documentation, re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        (tmp_path / "labels.json").write_text(example)
        assert read_labels(tmp_path / "labels.json").number_of(["liver"]) == 1


def test_brackets_in_a_source_stand_for_themselves(tmp_path):
    (tmp_path / "labels.json").write_text('{"low": {"sources": ["CTV[high]"]}, "high": {"sources": ["GTV [*Gy]"]}}')
    labels = read_labels(tmp_path / "labels.json")
    assert [labels.number_of([name]) for name in ("ctv[HIGH]", "GTV [70Gy]", "CTVh", "GTV 7")] == [1, 2, None, None]


def test_exact_names_go_before_patterns_of_any_structure(tmp_path):
    content = {"liver": {"sources": ["liver*"]}, "liver_tumour": {"sources": ["hcc"]}, "cyst": {"sources": ["*cyst?"]}}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = read_labels(tmp_path / "labels.json")
    for names in (["Liver_Tumour"], ["liver_tumour.nii.gz", "liver_tumour"], ["liver_1", "HCC"]):
        assert labels.number_of(names) == 2
    assert [labels.number_of([name]) for name in ("liver_1", "cyst1", "livid")] == [1, 3, None]


def test_a_name_that_patterns_of_two_structures_match_is_refused(tmp_path):
    content = {"liver": {"sources": ["liver*"]}, "cyst": {"sources": ["*cyst?"]}, "background": {"sources": ["*old*"]}}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    labels = read_labels(tmp_path / "labels.json")
    for names in (["Liver_cyst1"], ["liver_1", "smith_cyst1"]):
        with pytest.raises(SourceError, match="matches patterns of liver and cyst") as caught:
            labels.number_of(names)
        assert names[0] in str(caught.value) and names[0] not in caught.value.public_message
    with pytest.raises(SourceError, match="liver and background"):
        labels.number_of(["liver_old"])


def test_a_structure_may_name_a_source_twice_and_the_file_may_begin_with_a_mark(tmp_path):
    content = {"liver": {"value": 1, "sources": ["Liver", "a", "A"]}, "background": {"sources": ["b", "B"]}}
    (tmp_path / "labels.json").write_text(json.dumps(content), encoding="utf-8-sig")
    labels = read_labels(tmp_path / "labels.json")
    assert [labels.number_of([name]) for name in ("LIVER", "a", "b")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "pattern", "rest"),
    [
        ("p01_T1.nii.gz", "*_T1.*", "p01"),
        ("p01_a1.nii.gz", "*_[a]1.nii.gz", "p01"),
        ("p01_b1.nii.gz", "*_[!a]1*", "p01"),
        ("T1-p01.mha", "T1-*", "p01"),
        ("p01_pre_2.nii", "*_pre_?.nii", "p012"),
        ("other.nii", "p*", "other.nii"),
    ],
)
def test_what_the_wildcards_of_a_pattern_stand_for(name, pattern, rest):
    assert without_fixed_parts(name, pattern) == rest


def test_words_of_names():
    assert split_last_word("p01_T1", ["t1"]) == ("p01", "t1")
    assert split_last_word("T1", ["t1"]) == ("", "t1")
    assert split_last_word("start1", ["t1"]) == ("start1", None)
    assert sorted(["c10", "c2", "C1"], key=natural_key) == ["C1", "c2", "c10"]


def test_labels_file_missing(hospital, raw, refused):
    (hospital / "labels.json").unlink()
    refused(convert(hospital), "--labels: the file cannot be read")

"""Our numbers beside the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from volumes_on_disk import LEFT, LEFT_SHIFTED, box, write_dataset, write_labels

from nnunet_ad.cli.main import main
from nnunet_ad.evaluation.compare import STRUCTURE_ALIASES
from nnunet_ad.evaluation.published import load_benchmarks

SHARED_NUMBERS = Path(__file__).resolve().parents[3] / "shared" / "published_results.json"
SYNAPSE_NAMES = {column: STRUCTURE_ALIASES[column][0] for column in load_benchmarks()["Synapse_20pct"].part_columns}


def evaluated(folder, labels, domains=None, protocol="paper", prediction=LEFT_SHIFTED, cases=("a",)):
    """Evaluate small cases, the structures stacked along x, and return the path of the result."""
    values = [value for name, value in labels.items() if name != "background"]
    for name, region in (("ref", LEFT), ("pred", prediction)):
        stack = [box({1: region}) * value for value in values]
        for case in cases:
            write_labels(folder / name / f"{case}.nii.gz", np.concatenate(stack, axis=2).astype(np.uint8))
    dataset = write_dataset(folder, labels, domains)
    inputs = ["-p", str(folder / "pred"), "-r", str(folder / "ref"), "-d", str(dataset)]
    assert main(["evaluate", *inputs, "-o", str(folder / "out"), "--protocol", protocol, "-np", "1"]) == 0
    return folder / "out" / "evaluation.json"


def compared(capsys, benchmark, *results):
    """Return the exit status, output and error of the command."""
    capsys.readouterr()
    status = main(["compare", *map(str, results), "--benchmark", benchmark])
    return status, *capsys.readouterr()


def cells(text, method):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{method}  ")]
    return line.removeprefix(method).split()


def test_the_package_ships_the_numbers_that_were_collected():
    if not SHARED_NUMBERS.exists():
        pytest.skip("the project's shared files are not here")
    collected = json.loads(SHARED_NUMBERS.read_text())
    shipped = json.loads((Path(__file__).parents[2] / "nnunet_ad/evaluation/published_results.json").read_text())
    benchmarks = {name: entry["methods"] for name, entry in shipped["benchmarks"].items()}
    assert {**benchmarks, "note": shipped["note"], "ablation": shipped["ablation"]} == collected


def test_every_benchmark_names_its_table_and_starts_with_the_paper():
    benchmarks = load_benchmarks()
    assert {benchmark.table for benchmark in benchmarks.values()} == {1, 2, 3, 4}
    for benchmark in benchmarks.values():
        assert benchmark.paper.name == "A&D, the paper"
        assert {*benchmark.metric_columns, *benchmark.part_columns} == set(benchmark.paper.numbers)
        assert benchmark.methods[-1].name.endswith("(later)")


def test_published_means_of_parts_are_the_published_mean():
    for benchmark in load_benchmarks().values():
        if benchmark.part_columns:
            numbers = [benchmark.paper.numbers[column] for column in benchmark.part_columns]
            assert np.mean(numbers) == pytest.approx(benchmark.paper.numbers["Dice"], abs=0.1)


def test_left_atrium(tmp_path, capsys):
    path = evaluated(tmp_path, {"background": 0, "left_atrium": 1})
    status, text, _ = compared(capsys, "LASeg_5pct", path)
    assert status == 0
    assert "table 1 of the paper" in text
    assert cells(text, "ours")[:3] == ["75.00", "60.00", "1.00"]
    assert cells(text, "A&D, the paper") == ["89.93", "81.82", "5.25", "1.86"]
    assert cells(text, "S&D Messenger (later)") == ["90.21", "-", "-", "-"]
    assert cells(text, "ours minus the paper")[0] == "-14.93"
    assert "--protocol paper" not in text


def test_the_default_protocol_is_not_put_beside_without_a_word(tmp_path, capsys):
    path = evaluated(tmp_path, {"background": 0, "left_atrium": 1}, protocol="default")
    _, text, _ = compared(capsys, "LASeg_5pct", path)
    assert "the published numbers follow --protocol paper" in text
    assert cells(text, "ours")[3] == "-"  # the symmetric distance is not the published ASD


def test_synapse_by_structure(tmp_path, capsys):
    labels = {"background": 0} | {name: value for value, name in enumerate(SYNAPSE_NAMES.values(), start=1)}
    _, text, _ = compared(capsys, "Synapse_20pct", evaluated(tmp_path, labels))
    assert cells(text, "ours")[0] == "75.00"
    assert len(cells(text, "ours")) == 2 + 13
    assert "60.88 ± 0.7" in text and "IVC" in text


def test_heart_by_structure_in_the_order_of_the_paper(tmp_path, capsys):
    labels = {"background": 0, "MYO": 1, "left atrium": 2, "left_ventricle": 3, "ascending aorta": 4}
    _, text, _ = compared(capsys, "MMWHS_mr2ct", evaluated(tmp_path, labels))
    assert cells(text, "A&D, the paper") == ["90.1", "1.7", "93.2", "89.5", "91.7", "86.2"]
    assert cells(text, "ours")[2:] == ["75.00"] * 4


def test_domains_are_gathered_from_several_results(tmp_path, capsys):
    labels = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    paths = [evaluated(tmp_path / name, labels, {"a": name}) for name in ("A", "vendor B", "C")]
    _, text, _ = compared(capsys, "MnMs_2pct", *paths)
    assert cells(text, "ours") == ["-", "75.00", "75.00", "75.00", "-"]
    paths.append(evaluated(tmp_path / "D", labels, {"a": "D"}, prediction=LEFT))
    _, text, _ = compared(capsys, "MnMs_2pct", *paths)
    assert cells(text, "ours") == ["81.25", "75.00", "75.00", "75.00", "100.00"]


def test_another_domain_is_not_a_target(tmp_path, capsys):
    labels = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    status, _, error = compared(capsys, "MnMs_2pct", evaluated(tmp_path, labels, {"a": "CT"}))
    assert status == 1
    assert "the result has a domain 'CT'; MnMs_2pct has the target domains A, B, C, D" in error


def test_a_result_of_several_domains_is_not_that_of_a_target(tmp_path, capsys):
    labels = {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    path = evaluated(tmp_path, labels, {"a": "A", "b": "B"}, cases="ab")
    status, _, error = compared(capsys, "MnMs_2pct", path)
    assert status == 1
    assert "the result has cases of the domains A, B; a model of MnMs_2pct is tested on one" in error


NOT_THESE = "public test cases that the published numbers are of"


@pytest.mark.parametrize(
    ("benchmark", "labels", "number", "domain"),
    [
        ("LASeg_5pct", ["left_atrium"], 20, None),
        ("Synapse_20pct", SYNAPSE_NAMES.values(), 6, None),
        ("MMWHS_ct2mr", ["AA", "LAC", "LVC", "MYO"], 4, None),
        ("MnMs_5pct", ["LV", "MYO", "RV"], 100, "vendor D"),
    ],
)
def test_other_cases_than_the_public_ones_are_pointed_out(tmp_path, capsys, benchmark, labels, number, domain):
    public = sorted(load_benchmarks()[benchmark].test_cases((domain or "")[-1:]))
    assert len(public) == number
    labels = {"background": 0, **{name: i for i, name in enumerate(labels, 1)}}
    for cases in (public[:3], ["x", public[0]], public):
        path = evaluated(tmp_path / cases[0], labels, domain and dict.fromkeys(cases, domain), cases=cases)
        _, text, _ = compared(capsys, benchmark, path)
        told = f"of the {len(cases)} scored cases are among the {number} {NOT_THESE}" in text
        assert told == (cases != public)


def test_the_table_is_written_as_markdown(tmp_path):
    path = evaluated(tmp_path, {"background": 0, "left_atrium": 1})
    out = tmp_path / "tables" / "out.md"
    assert main(["compare", str(path), "--benchmark", "LASeg_10pct", "-o", str(out)]) == 0
    assert "| A&D, the paper | 90.31 | 82.4 | 5.55 | 1.64 |" in out.read_text()


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ("Synapse_20pct", "the result has the structures left, right; Synapse_20pct has Sp"),
        ("LASeg_5pct", "the result has the structures left, right; LASeg_5pct has LAC"),
        ("MnMs_2pct", "the result has the structures left, right; MnMs_2pct has LVC, MYO, RV"),
    ],
)
def test_results_of_another_dataset_are_refused(tmp_path, capsys, benchmark, message):
    path = evaluated(tmp_path, {"background": 0, "left": 1, "right": 2}, {"a": "CT"})
    status, _, error = compared(capsys, benchmark, path)
    assert status == 1 and message in error


def test_results_without_domains_are_refused_where_there_should_be_some(tmp_path, capsys):
    path = evaluated(tmp_path, {"background": 0, "LV": 1, "MYO": 2, "RV": 3})
    assert "the result has no domains" in compared(capsys, "MnMs_5pct", path)[2]


def test_a_domain_given_twice_is_refused(tmp_path, capsys):
    path = evaluated(tmp_path, {"background": 0, "LV": 1, "MYO": 2, "RV": 3}, {"a": "A"})
    assert "domain A occurs in two of the results" in compared(capsys, "MnMs_5pct", path, path)[2]


def test_several_results_of_one_dataset_are_refused(tmp_path, capsys):
    path = evaluated(tmp_path, {"background": 0, "left": 1})
    assert "compares one at a time" in compared(capsys, "LASeg_5pct", path, path)[2]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_other_files_are_refused(tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content)
    assert "not a result of nnunet_ad evaluate" in compared(capsys, "LASeg_5pct", tmp_path / "x.json")[2]


def test_results_of_another_version_are_refused(tmp_path, capsys):
    path = evaluated(tmp_path, {"background": 0, "left": 1})
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    assert "run nnunet_ad evaluate again" in compared(capsys, "LASeg_5pct", path)[2]

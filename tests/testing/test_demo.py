import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from nnunet_ad.testing import demo
from nnunet_ad.testing.hospital_folder import write_hospital_folder

CONVERTER = Path(__file__).parents[2] / "scripts" / "convert_hospital_data.py"
EVALUATION = {
    "overall": [
        {"structure": "organ", "metrics": {"Dice": {"mean": 0.9}}},
        {"structure": "vessel", "metrics": {"Dice": {"mean": 0.7}}},
        {"structure": "mean", "metrics": {"Dice": {"mean": 0.8}}},
    ],
    "per_domain": [
        {"domain": domain, "structure": structure, "metrics": {"Dice": {"mean": mean}}}
        for domain, means in (("B", (0.8, 0.6, 0.7)), ("A", (1.0, 0.8, 0.9)))
        for structure, mean in zip(("organ", "vessel", "mean"), means, strict=True)
    ],
}


def test_every_command_is_one_that_is_installed():
    scripts = {entry_point.name for entry_point in entry_points(group="console_scripts")}
    first, *others = (command.split()[0] for command in demo.demo_commands(Path("/demo"), CONVERTER, "cpu"))
    others.remove("python")
    assert {first, *others} <= scripts


def test_folders_with_spaces_stay_one_argument(tmp_path, capfd):
    folder = tmp_path / "a b"
    environment = demo.demo_environment(folder)
    predict = next(command for command in demo.demo_commands(folder, CONVERTER, "cpu") if "predict" in command)
    show = f"python -c 'import sys; print(sys.argv[1:])' {predict}"
    demo.run_command(show, environment)
    output = capfd.readouterr().out
    assert f"$ {show}" in output
    assert f"'{folder / 'predictions'}'" in output


def test_the_made_folder_becomes_the_dataset_of_the_demo(tmp_path):
    folder = tmp_path / "a b"
    demo.empty_folder(folder)
    write_hospital_folder(
        folder / demo.HOSPITAL, seed=0, num_labeled=2, num_unlabeled=3, num_test=2, shape=(16, 18, 16)
    )
    _, convert, *_ = demo.demo_commands(folder, CONVERTER, "cpu")
    demo.run_command(convert, demo.demo_environment(folder))
    cases = demo._overlay_cases(folder)
    assert [case.title.split(", ")[1] for case in cases] == ["domain A", "domain B"]
    assert all(case.image.is_file() and case.reference.is_file() for case in cases)


def test_commands_are_those_of_this_interpreter(tmp_path, capfd):
    demo.run_command("python -c 'import sys; print(sys.prefix)'", demo.demo_environment(tmp_path))
    assert capfd.readouterr().out.splitlines()[-1] == sys.prefix


def test_how_long_threads_spin_is_the_users_choice_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert demo.demo_environment(tmp_path)["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert demo.demo_environment(tmp_path)["GOMP_SPINCOUNT"] == "30000"


def test_a_command_that_fails_stops_the_demo(tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        demo.run_command("python -c 'import sys; sys.exit(3)'", {**os.environ})


def test_an_earlier_demo_is_removed_and_nothing_else(tmp_path):
    demo.empty_folder(tmp_path / "demo")
    (tmp_path / "demo" / "old").touch()
    demo.empty_folder(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        demo.empty_folder(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_the_table_has_a_row_a_domain_and_a_column_a_structure():
    assert [line.split() for line in demo.dice_table(EVALUATION).splitlines()] == [
        ["domain", "organ", "vessel", "mean"],
        ["A", "1.00", "0.80", "0.90"],
        ["B", "0.80", "0.60", "0.70"],
        ["all", "0.90", "0.70", "0.80"],
    ]
    assert demo.mean_dice(EVALUATION) == 0.8


@pytest.mark.slow
@pytest.mark.timeout(2400)  # nine minutes alone, but another process of the suite may have a core
def test_the_whole_demo_learns_and_ends_with_the_mean_dice(tmp_path, capfd):
    mean = demo.run_demo(tmp_path / "a demo", CONVERTER)
    output = capfd.readouterr().out
    assert output.splitlines()[-1] == f"mean Dice {mean:.2f}"
    assert mean >= 0.8
    for command in demo.demo_commands(tmp_path / "a demo", CONVERTER, demo.find_device()):
        assert f"$ {command}" in output
    for label in ("Overlay: ", "Curves:  "):
        (line,) = (line for line in output.splitlines() if line.startswith(label))
        assert Path(line.removeprefix(label)).stat().st_size > 10_000

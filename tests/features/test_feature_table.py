"""``docs/nnunet-features.md`` and the tests that it names agree."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "nnunet-features.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| feature ")
]


def named_in(cell: str) -> list[tuple[str, str]]:
    return re.findall(r"`([\w/]+\.py)::(\w+)`", cell)


def functions_of(file: Path) -> dict[str, ast.FunctionDef]:
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def strings_in(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@pytest.mark.parametrize(("feature", "result", "tests"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_its_result_and_tests_that_exist(feature, result, tests):
    assert re.match(r"(works|refused)\b", result)
    named = named_in(tests)
    assert named
    nodes = [functions_of(TESTS / file)[name] for file, name in named]
    quoted = re.findall("“(.*?)”", result)
    assert bool(quoted) == result.startswith("refused")
    for sentence in quoted:
        assert any(sentence in string for node in nodes for string in strings_in(node)), sentence


def test_every_test_of_a_feature_is_in_the_table():
    named = {test for _, _, cell in ROWS for test in named_in(cell)}
    files = set(Path(__file__).parent.glob("test_*.py")) - {Path(__file__)}
    assert {(f"features/{file.name}", name) for file in files for name in functions_of(file)} <= named

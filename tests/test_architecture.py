"""The shape of the package: imports point downwards only, and the cheap parts stay cheap."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import nnunet_ad

PACKAGE = Path(nnunet_ad.__file__).parent
REPOSITORY = PACKAGE.parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

PURE = {"diffusion", "difficulty", "pseudo_label", "losses", "distillation", "config"}
LEAVES = {"json_file", "parallel", "regions", "whole_file", "worker_processes"}
# What the first part of a module's name may import from this package, apart from its own part.
LAYERS = {
    **dict.fromkeys(PURE, PURE),
    "registration": set(),
    **dict.fromkeys(LEAVES, LEAVES),
    "diagnosis": {"registration"},
}
MIDDLE = {"data", "augmentation", "network", "planning", "evaluation", "conversion", "testing"}
LAYERS |= dict.fromkeys(MIDDLE, MIDDLE | PURE | LEAVES)
LAYERS["trainer"] = MIDDLE - {"testing", "conversion"} | PURE | LEAVES
LAYERS["ranking"] = {"data", "network", "trainer"} | PURE | LEAVES
LAYERS["model_sharing"] = {"network"} | PURE | LEAVES
LAYERS["external_trainers"] = {"trainer"}
LAYERS["report"] = {"evaluation"} | LEAVES
LAYERS["train"] = {"network", "trainer"}
LAYERS["cli"] = MIDDLE | PURE | LEAVES | {"diagnosis", "model_sharing", "ranking", "registration", "report", "trainer"}


def _imported_modules(path):
    """Return the absolute names of all modules that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            parent = ".".join(("nnunet_ad", *path.parent.parts))
            module = importlib.util.resolve_name(relative, parent)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def _part(path):
    return path.parts[0].removesuffix(".py")


def _parts_of_this_package(names):
    dotted = {name.split(".")[1] for name in names if name.startswith("nnunet_ad.")}
    return {part for part in dotted if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name != "__init__.py" or len(path.parts) > 1], ids=str
)
def test_imports_point_downwards(path):
    part = _part(path)
    assert part in LAYERS, f"nnunet_ad/{part} has no place in the shape of the package: give it one in LAYERS"
    upwards = _parts_of_this_package(_imported_modules(path)) - LAYERS[part] - {part}
    assert not upwards, f"nnunet_ad/{path} imports {sorted(upwards)}"


@pytest.mark.parametrize("part", sorted(PURE))
def test_pure_modules_do_not_import_nnunet(part):
    paths = [path for path in MODULES if _part(path) == part]
    assert paths, f"nnunet_ad.{part} is missing"
    for path in paths:
        hosts = {name for name in _imported_modules(path) if name.split(".")[0] == "nnunetv2"}
        assert not hosts, f"nnunet_ad/{path} imports {sorted(hosts)}"


@pytest.mark.parametrize("path", [path for path in MODULES if _part(path) != "cli"], ids=str)
def test_only_the_command_line_exits(path):
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise):
            assert "SystemExit" not in ast.unparse(node), f"nnunet_ad/{path}:{node.lineno} exits"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"sys.exit", "exit", "quit", "os._exit"}, f"nnunet_ad/{path}:{node.lineno} exits"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_star_imports_but_in_the_folder_for_nnunet(path):
    if _part(path) != "external_trainers":
        assert not [name for name in _imported_modules(path) if name.endswith(".*")]


@pytest.mark.parametrize("module", ["nnunet_ad", "nnunet_ad.registration", "nnunet_ad.cli.main"])
def test_importing_the_package_is_cheap(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'nnunetv2', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("folder", ["scripts", "dataset_conversion"])
def test_scripts_are_thin(folder):
    for path in (REPOSITORY / folder).glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, f"{folder}/{path.name} is not thin"
        assert not [node for node in tree.body if isinstance(node, ast.ClassDef)]

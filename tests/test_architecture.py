"""The house keeps its walls: imports go one way, files stay small, names say something."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gavel

HOME = Path(gavel.HOME)
PACKAGES = ("gavel", "generate", "judge", "train", "rounds", "demo")
MAY_IMPORT = {
    "gavel": set(),
    "generate": {"gavel"},
    "judge": {"gavel"},
    "train": {"gavel"},
    "rounds": {"gavel", "generate", "judge", "train"},
    "demo": {"gavel", "generate", "judge", "train", "rounds"},
}
HEAVY = {
    "torch",
    "transformers",
    "vllm",
    "datasets",
    "trl",
    "pyarrow",
    "wandb",
    "peft",
    "accelerate",
    "numpy",
}
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "handler", "misc", "core", "base"}


def modules(*packages: str) -> list[Path]:
    return sorted(file for package in packages for file in (HOME / package).rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, at its top or inside a function, with the line."""
    package = ".".join(file.relative_to(HOME).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield (f"{package}.{module}" if node.level else module), node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from ((str(a.value), node.lineno) for a in node.args if isinstance(a, ast.Constant))


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_go_one_way(package: str) -> None:
    files = modules(package)
    assert files
    ours = {*PACKAGES, "prompts", "tests", "benchmarks"}
    wrong = [
        f"{file.relative_to(HOME)}:{line} imports {name}"
        for file in files
        for name, line in imports(file)
        if name.split(".")[0] in ours - MAY_IMPORT[package] - {package}
    ]
    assert not wrong, "\n".join(wrong)


def test_the_imports_are_seen() -> None:
    """The check above finds what it looks for."""
    found = {name for name, _ in imports(HOME / "generate" / "cli.py")}
    assert {"gavel.engines", "generate.stage", "click"} <= found


def test_only_the_command_table_names_the_stages() -> None:
    """What gavel loads by name, it loads from one table."""
    stages = tuple(f'"{package}.' for package in PACKAGES[1:])
    naming = {
        str(file.relative_to(HOME))
        for file in modules("gavel")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value
        if f'"{node.value}'.startswith(stages)
    }
    assert naming == {"gavel/cli.py"}


@pytest.mark.parametrize("module", ["gavel.cli", "gavel", "gavel.records", "gavel.options", "gavel.rundir"])
def test_light_imports(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & HEAVY


def test_files_stay_small() -> None:
    sizes = {f.relative_to(HOME): len(f.read_text("utf-8").splitlines()) for f in modules(*PACKAGES)}
    assert not {str(file): size for file, size in sizes.items() if size > 500}


def test_functions_stay_small() -> None:
    long = [
        f"{file.relative_to(HOME)}:{node.lineno} {node.name}"
        for file in modules(*PACKAGES)
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.body[0].lineno > 150
    ]
    assert not long


def test_names_say_something() -> None:
    parts = {
        (part, str(file.relative_to(HOME)))
        for file in modules(*PACKAGES, "tests")
        for part in file.relative_to(HOME).with_suffix("").parts
    }
    assert not [file for part, file in parts if EMPTY_NAMES & set(part.lower().split("_"))]


def test_no_two_test_modules_of_one_name() -> None:
    names = [file.stem for file in modules("tests")]
    assert len(names) == len(set(names))


def test_data_is_found_from_anywhere(tmp_path: Path) -> None:
    """Beside a folder of the same name, too."""
    (tmp_path / "prompts" / "gptscore").mkdir(parents=True)
    (tmp_path / "prompts" / "gptscore" / "aspects.toml").write_text("[mine]\n")
    program = (
        "from gavel.templates import load, tables\n"
        "assert 'coherence' in tables('gptscore', 'aspects')\n"
        "assert 'mine' not in tables('gptscore', 'aspects')\n"
        "assert load('gptscore', 'direct').texts\n"
    )
    env = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, check=True, env=env)


def test_every_package_is_installed() -> None:
    """A package that pyproject.toml does not name is missing from a wheel."""
    import tomllib

    named = set(tomllib.loads((HOME / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"])
    found = {
        ".".join(file.parent.relative_to(HOME).parts)
        for package in (*PACKAGES, "prompts")
        for file in (HOME / package).rglob("__init__.py")
    }
    assert found == named

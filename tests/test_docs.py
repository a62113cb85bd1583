"""What is said about the library is there: docstrings, commands, version."""

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from absl import flags

import speechsim_jax as ss

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SOURCES = sorted([*(ROOT / "speechsim_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")])


def _undocumented(path: Path) -> list[str]:
    """Public modules, classes, functions and methods of a file that say nothing."""
    missing = []

    def visit(node: ast.Module | ast.ClassDef, prefix: str) -> None:
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                if child.name.startswith("_"):
                    continue
                if not ast.get_docstring(child):
                    missing.append(f"{path.name}:{child.lineno} {name}")
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{name}.")

    tree = ast.parse(path.read_text())
    if not ast.get_docstring(tree):
        missing.append(f"{path.name}: the module")
    visit(tree, "")
    return missing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_has_a_docstring(path):
    assert not _undocumented(path)


def test_what_is_undocumented_is_found(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(
        'class A:\n    "Doc."\n    def b(self): ...\n    def _c(self): ...\ndef d(): ...\n'
    )
    assert _undocumented(file) == [
        "sample.py: the module",
        "sample.py:3 A.b",
        "sample.py:5 d",
    ]


@pytest.mark.parametrize("name", ss.__all__)
def test_exported_names_are_documented(name):
    thing = getattr(ss, name)
    assert callable(thing)
    # A dataclass without a docstring is given its signature as one.
    assert inspect.getdoc(thing) and not thing.__doc__.startswith(f"{name}(")
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        function = value.fget if isinstance(value, property) else value
        function = getattr(function, "__func__", function)
        ours = getattr(function, "__module__", "").startswith("speechsim_jax")
        if inspect.isfunction(function) and ours and not member.startswith("_"):
            assert inspect.getdoc(function), f"{name}.{member}"


def test_exported_names_are_sorted_and_complete():
    assert list(ss.__all__) == sorted(ss.__all__)
    tree = ast.parse((ROOT / "speechsim_jax" / "__init__.py").read_text())
    imported = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == set(ss.__all__)


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ss.__version__ == project["version"]


def _makefile_targets() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    rules = [line.split(":")[0] for line in lines if re.match(r"[\w\- ]+:(?!=)", line)]
    return {target for rule in rules for target in rule.split()}


def test_makefile_explains_its_targets():
    """`make help` lists exactly the targets that there are."""
    text = (ROOT / "Makefile").read_text()
    explained = set(re.findall(r'@echo "make (\w+) ', text))
    assert explained == {
        "setup", "demo", "test", "parity", "check", "format", "bench", "matrix", "clean",
    }  # fmt: skip
    assert explained <= _makefile_targets()


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """The command lines in README's code blocks."""
    if not README.strip():
        pytest.skip("README.md is not written yet")
    blocks = re.findall(r"```(?:sh|bash|console|shell|)\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.strip()]
    assert found
    return [words for words in found if words]


def test_readme_names_targets_that_exist(commands):
    named = {word for words in commands if words[0] == "make" for word in words[1:]}
    assert {word for word in named if "=" not in word} <= _makefile_targets()


def test_readme_names_scripts_and_flags_that_exist(commands):
    wrong = []
    for words in commands:
        script = next((word for word in words if word.startswith("experiments.")), None)
        if script is None:
            continue
        importlib.import_module(script)
        given = [word[2:].split("=")[0] for word in words if word.startswith("--")]
        wrong += [f"{script} --{name}" for name in given if name not in flags.FLAGS]
    assert not wrong

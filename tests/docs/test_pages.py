"""What the pages name exists: links, commands and flags, files, measures, make targets."""

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import speechsim_jax as ss
from experiments import benchmark
from speechsim_jax.commands import entry
from tests.support.pages import PAGES, blocks, name_of
from tests.support.paths import ROOT

SCRIPTS = sorted(
    f"experiments.{path.stem}"
    for path in (ROOT / "experiments").glob("*.py")
    if not path.stem.startswith("_")
)


def test_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ss.__version__ == project["version"]


# --- links ---


def _anchors(page: Path) -> set[str]:
    """What headings are called in links, as on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_exist(page):
    """Files of the repository that a page names, from its root or from the package."""
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|js|md|toml|sh))`", page.read_text()))
    roots = (ROOT, ROOT / "speechsim_jax")
    ours = [name for name in named if any((r / name.split("/")[0]).is_dir() for r in roots)]
    assert not [
        name
        for name in ours
        if "NAME" not in name and not any((root / name).exists() for root in roots)
    ]


def test_every_page_is_on_the_site():
    """Through a list of contents; `make docs` is strict about it, and slower."""
    listed = set()
    for page in (ROOT / "docs").rglob("*.md"):
        for block in blocks(page):
            if "{toctree}" in block.mark:
                lines = [line for line in block.code.splitlines() if line and line[0] != ":"]
                listed |= {page.parent / f"{line}.md" for line in lines if "*" not in line}
                for line in lines:
                    listed |= set(page.parent.glob(f"{line}.md")) if "*" in line else set()
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "index.md"}
    assert pages <= listed


def test_pictures_are_small():
    pictures = [file for file in (ROOT / "docs").iterdir() if file.suffix == ".png"]
    assert all(file.stat().st_size < 150_000 for file in pictures)


# --- commands ---


def _commands(page: Path) -> list[list[str]]:
    """The command lines in a page's code blocks."""
    shells = [b.code for b in blocks(page) if b.language in ("", "sh") and not b.mark]
    lines = [line for code in shells for line in code.replace("\\\n", " ").splitlines()]
    commands = [
        line for line in lines if re.match(r"(\$ )?(make|python|pip|speechsim|\.venv/)\b", line)
    ]
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in commands]


COMMANDS = [(page, words) for page in PAGES for words in _commands(page)]


def _script(words: list[str]) -> str | None:
    """The script that a command line runs; `speechsim NAME` is `python -m experiments.NAME`."""
    if words[0] == "speechsim" and not words[1].startswith("-"):
        return f"experiments.{words[1]}"
    return next((word for word in words if word in SCRIPTS), None)


def _flags_of(script: str) -> set[str]:
    """What `--help` of a script lists."""
    name = script.split(".")[1]
    return set((benchmark if name == "benchmark" else entry.load(name)).define_flags())


def test_there_are_commands():
    assert len({page for page, _ in COMMANDS}) >= 3
    assert len([words for _, words in COMMANDS if _script(words)]) >= 8


def test_flags_in_commands_exist():
    """Each is one of its own script."""
    wrong = []
    for page, words in COMMANDS:
        if script := _script(words):
            named = {word[2:].split("=")[0] for word in words if word.startswith("--")}
            wrong += [f"{name_of(page)}: {script} --{flag}" for flag in named - _flags_of(script)]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_the_text_exist(page):
    """Outside commands a flag may be that of any script."""
    of_commands = (set(entry.load(name).define_flags()) for name in entry.COMMANDS)
    known = set.union({"help"}, *map(_flags_of, SCRIPTS), *of_commands)
    # Not those of other programs.
    text = " ".join(page.read_text().split())
    text = re.sub(r"(python -m (?!experiments\.\w+[ `])|pytest |pip )[^`]*`", "", text)
    named = set(re.findall(r"(?<![\w-])--([a-z_]+)", text))
    assert named <= known | {"jaxtyping", "array"}  # of pytest and sbatch


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_in_commands_exist(page):
    text = page.read_text()
    named = set(re.findall(r"python -m ((?:experiments|tests)[\w.]*\w)", text))
    named |= set(re.findall(r"`(experiments\.[\w.]*\w)", text))
    assert not [name for name in named if importlib.util.find_spec(name) is None]


def test_every_script_is_named():
    """A script that no page names is one that nobody finds."""
    text = " ".join(page.read_text() for page in PAGES)
    names = [script.split(".")[1] for script in SCRIPTS]
    assert not [name for name in names if f"`{name}`" not in text and f".{name}" not in text]


# --- make ---


def _makefile_targets() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    rules = [line.split(":")[0] for line in lines if re.match(r"[\w\- ]+:(?!=)", line)]
    return {target for rule in rules for target in rule.split()}


def test_make_help_lists_targets_that_exist():
    listed = set(re.findall(r'@echo "make ([\w-]+) ', (ROOT / "Makefile").read_text()))
    assert {"setup", "demo", "test", "parity", "check", "docs", "clean"} <= listed
    assert listed <= _makefile_targets()


def test_pages_name_targets_that_exist():
    named = {word for _, words in COMMANDS if words[0] == "make" for word in words[1:]}
    texts = " ".join(page.read_text() for page in PAGES)
    named |= set(re.findall(r"`make\s(\w[\w-]*)`", texts))
    assert {"demo", "test", "check", "parity", "docs"} <= named
    assert {word for word in named if "=" not in word} <= _makefile_targets()


# --- layers ---


def test_architecture_shows_the_layers_of_the_import_contract():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (contract,) = (c for c in tool["importlinter"]["contracts"] if c["type"] == "layers")
    shown = [block.code.splitlines() for block in blocks(ROOT / "docs" / "architecture.md")]
    assert contract["layers"] in shown


# --- measures ---


def test_every_measure_is_explained():
    """In docs/measures.md, which recommends only measures that exist."""
    known = {measure.name for measure in ss.list_measures()}
    page = (ROOT / "docs" / "measures.md").read_text()
    assert known <= set(re.findall(r"`(\w+)`", page))
    table = page.split("## Which measure")[1].split("## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.count("|") == 4]
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    assert {"maxcorr", "linreg", "lincka", "svcca"} <= names <= known

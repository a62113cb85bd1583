"""What README and docs/ say of the library is there: commands, flags, links, measures, modules."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import speechsim_jax as ss
from experiments import benchmark
from speechsim_jax.commands import entry
from tests.support.pages import PAGES, blocks
from tests.support.paths import ROOT

SCRIPTS = sorted(
    f"experiments.{path.stem}"
    for path in (ROOT / "experiments").glob("*.py")
    if not path.stem.startswith("_")
)


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


def _commands(page: Path) -> list[list[str]]:
    """The command lines in a page's code blocks."""
    shells = [block.code for block in blocks(page) if block.language in ("", "sh")]
    lines = [line for code in shells for line in code.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.strip()]
    return [words for words in found if words]


COMMANDS = [(page, words) for page in PAGES for words in _commands(page)]


def _script(words: list[str]) -> str | None:
    return next((word for word in words if word.startswith("experiments.")), None)


def _flags_of(script: str) -> set[str]:
    """What `--help` of a script lists."""
    name = script.split(".")[1]
    return set((benchmark if name == "benchmark" else entry.load(name)).define_flags())


def test_there_are_commands():
    assert len({page for page, _ in COMMANDS}) >= 3
    assert len([words for _, words in COMMANDS if _script(words)]) >= 8


def test_pages_name_targets_that_exist():
    named = {word for _, words in COMMANDS if words[0] == "make" for word in words[1:]}
    texts = " ".join(page.read_text() for page in PAGES)
    named |= set(re.findall(r"`make (\w+)`", texts))
    assert {"demo", "test", "check", "parity", "matrix", "bench"} <= named
    assert {word for word in named if "=" not in word} <= _makefile_targets()


def test_pages_name_scripts_and_flags_that_exist():
    """In commands: each flag is one of its own script."""
    wrong = []
    for page, words in COMMANDS:
        script = _script(words)
        if script is None:
            continue
        given = {word[2:].split("=")[0] for word in words if word.startswith("--")}
        wrong += [f"{page.name}: {script} --{name}" for name in given - _flags_of(script)]
    assert not wrong


def test_flags_in_the_text_exist():
    """Outside commands a flag may be that of any script."""
    known = set.union({"help"}, *map(_flags_of, SCRIPTS))
    for page in PAGES:
        named = set(re.findall(r"`[^`\n]*?--([a-z_]+)", page.read_text()))
        named |= set(re.findall(r"(?<![\w-])--([a-z_]+)", page.read_text()))
        assert named <= known, page.name


def test_scripts_in_the_text_exist():
    for page in PAGES:
        named = set(re.findall(r"`experiments\.(\w+)", page.read_text()))
        named |= set(re.findall(r"python -m experiments\.(\w+)", page.read_text()))
        assert {f"experiments.{name}" for name in named} <= set(SCRIPTS), page.name


def test_readme_lists_the_scripts():
    """A script that the pages do not name is one that nobody finds."""
    text = " ".join(page.read_text() for page in PAGES)
    table = re.findall(r"^\| (`.*`) \|", PAGES[0].read_text(), flags=re.MULTILINE)
    named = {word for cell in table for word in re.findall(r"`(\w+)`", cell)}
    silent = [s for s in SCRIPTS if s not in text and s.split(".")[1] not in named]
    assert not silent


def test_links_lead_somewhere():
    wrong = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                wrong.append(f"{page.name}: {target}")
    assert not wrong


def _anchors(page: Path) -> set[str]:
    """What a heading is called in a link, as GitHub does it."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_pictures_are_small():
    pictures = [file for file in (ROOT / "docs").iterdir() if file.suffix == ".png"]
    assert all(file.stat().st_size < 150_000 for file in pictures)


def test_every_measure_is_explained_and_no_other():
    """In docs/measures.md; and what README advises on is there."""
    known = {measure.name for measure in ss.list_measures()}
    page = ROOT / "docs" / "measures.md"
    rows = [
        re.findall(r"`([^`]+)`", line.split("|")[1])
        for line in page.read_text().splitlines()
        if re.match(r"\| `\w+`.*\| (neuron|mixed|layer) \|", line) or line.startswith("| `attn_")
    ]
    assert sorted(name for row in rows for name in row) == sorted(known)
    table = PAGES[0].read_text().split("## Which measure")[1].split("## ")[0]
    advised = [line.split("|")[2] for line in table.splitlines() if line.count("|") == 4]
    names = {name for cell in advised for name in re.findall(r"`(\w+)`", cell)}
    assert {"maxcorr", "linreg", "lincka", "svcca"} <= names <= known


def test_every_module_is_on_the_map_and_no_other():
    """docs/extending.md, "Where things are"."""
    text = (ROOT / "docs" / "extending.md").read_text().split("## Where things are")[1]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    package = ROOT / "speechsim_jax"
    modules = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    # A folder is a module, too, where its __init__ is more than a sentence.
    modules += [
        path.parent
        for path in package.glob("*/__init__.py")
        if len(path.read_text().splitlines()) > 1
    ]
    there = {str(path.relative_to(package).with_suffix("")) for path in modules}
    assert len(named) == len(set(named))
    assert set(named) == there

"""Every example in a docstring, and every Python block of the pages, is run.

They name models of the hub and folders of speech. Here these are folders of the same names below
the working directory, which come before the hub for every user, too: tiny encoders with random
weights, and noise for speech. So an example can only print what does not depend on size or weights.
"""

import ast
import dataclasses
import doctest
import importlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.measures import registry
from speechsim_jax.models.families import config_from_hf
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.pipeline import accumulators
from speechsim_jax.statistics import store
from tests.support.pages import PAGES, Block, blocks, name_of
from tests.support.paths import ROOT

RECOGNIZER = ROOT / "tests" / "data" / "ctc" / "wav2vec2-base"
ENCODERS = ("facebook/hubert-base-ls960", "facebook/wav2vec2-base", "runs/mine")
CORPORA = ("LibriSpeech/dev-clean", "speech", "part1", "part2")


class Example(NamedTuple):
    """A docstring with prompts: of which file and name, at which line."""

    path: Path
    name: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.name}"


def _examples(path: Path) -> list[Example]:
    """Read from the source: what type checks wrap, doctest's own finder does not see."""
    found = []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef

    def visit(node: ast.AST, name: str) -> None:
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and ">>>" in text:
            found.append(Example(path, name or "module", node.body[0].lineno, text))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, documented):
                visit(child, f"{name}.{child.name}".lstrip("."))

    visit(ast.parse(path.read_text()), "")
    return found


EXAMPLES = [
    example
    for path in sorted((ROOT / "speechsim_jax").rglob("*.py"))
    for example in _examples(path)
]

WITH_CODE = [page for page in PAGES if any(b.language == "python" for b in blocks(page))]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A working directory with everything that examples name."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(RECOGNIZER, folder / "facebook" / "wav2vec2-base-960h")
    parsed = [
        json.loads((RECOGNIZER / f"{n}.json").read_text())
        for n in ("config", "preprocessor_config")
    ]
    config = config_from_hf(*parsed)
    for seed, name in enumerate(ENCODERS):
        family = "wav2vec2" if "wav2vec2" in name else "hubert"
        config = dataclasses.replace(config, family=family)
        save_folder(folder / name, config, random_tensors(config, seed))
    rng = np.random.default_rng(0)
    for name in CORPORA:
        for number in range(3):  # of one length, so that they share their compilations
            path = folder / name / f"speaker{number % 2}" / f"{Path(name).name}-{number}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(16_000), 16_000)
    return folder


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What an example may use without saying so: `ss`, `np`, and a `result` of two models."""
    x = np.random.default_rng(0).standard_normal((500, 64))
    representations = {"mine/0": x, "mine/1": x**3, "theirs/0": x[:, ::-1], "theirs/1": np.tanh(x)}
    result = ss.compare_activations(representations, ["maxcorr", "lincka"])
    return {"ss": ss, "np": np, "result": result}


@pytest.fixture(autouse=True)
def _here(world, monkeypatch):
    """In that directory; measures and statistics that a page registers are removed after it."""
    monkeypatch.chdir(world)
    registries = (registry.MEASURES, store.STATES, accumulators._FACTORIES)
    before = [dict(entries) for entries in registries]
    yield
    for entries, those in zip(registries, before):
        entries.clear()
        entries.update(those)


def _run_prompts(text: str, names: dict[str, Any], where: str, line: int) -> None:
    """Run an example with prompts; what is wrong is in the failure."""
    test = doctest.DocTestParser().get_doctest(text, names, where, where, line)
    assert test.examples
    said: list[str] = []
    # `names` go on to the next block of a page.
    doctest.DocTestRunner(verbose=False).run(test, out=said.append, clear_globs=False)
    names |= test.globs
    assert not said, "".join(said)


def test_wrong_examples_are_found():
    _run_prompts(">>> 1 + 1\n2\n", {}, "right", 0)
    with pytest.raises(AssertionError, match=r"Got:\n\s+2"):
        _run_prompts(">>> 1 + 1\n3\n", {}, "wrong", 0)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_docstring(example, names):
    """With the names of its module, as doctest does it, and those of `names`."""
    parts = example.path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    _run_prompts(example.text, vars(module) | names, str(example), example.line)


@pytest.mark.parametrize("name", ss.__all__)
def test_every_public_name_has_an_example(name):
    """In its docstring, in that of a method, or by its name in that of another or on a page."""
    code = [example.text for example in EXAMPLES]
    code += [b.code for page in WITH_CODE for b in blocks(page) if b.language == "python"]
    own = [example for example in EXAMPLES if name in example.name.split(".")]
    assert own or any(f"ss.{name}(" in text for text in code)


def _run(page: Path, block: Block, names: dict[str, Any]) -> None:
    where = str(page.relative_to(ROOT))
    if block.code.startswith(">>>"):
        _run_prompts(block.code, names, where, block.line)
    else:  # with the page's line numbers
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_page(page):
    """All blocks of a page in order, in one namespace; those for torch are for `make parity`."""
    names: dict[str, Any] = {"__name__": "page"}
    found = [block for block in blocks(page) if block.language == "python"]
    assert {block.mark for block in found} <= {"", "parity"}
    for block in found:
        if block.mark != "parity":
            _run(page, block, names)


def test_pages_have_examples():
    names = {page.stem for page in WITH_CODE}
    expected = {"README", "start", "ideas", "comparing", "models", "notebook", "measures"}
    assert expected | {"uncertainty", "concepts", "extending", "scaling"} <= names


@pytest.mark.parity
def test_the_fixture_of_the_example_agrees_with_torch():
    """docs/extending.md whole, with the block that makes a parity fixture."""
    page = ROOT / "docs" / "extending.md"
    found = [block for block in blocks(page) if block.language == "python"]
    assert "parity" in {block.mark for block in found}
    names: dict[str, Any] = {"__name__": "page"}
    for block in found:
        _run(page, block, names)

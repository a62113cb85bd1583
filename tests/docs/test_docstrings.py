"""Docstrings say what can be checked that they say: parameters, errors, sources.

Everything public has one. Those of the names that outsiders use name every parameter whose
annotation does not speak for itself, and the UserError that they raise; those of measures agree
with their records.
"""

import ast
import functools
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import speechsim_jax as ss
from speechsim_jax import figures, measures
from speechsim_jax.measures.attention import AttentionMeasure
from tests.support.paths import ROOT

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


# --- the names that outsiders use ---


def _function(value: Any) -> Callable[..., Any] | None:
    """The function behind a method, property or class method; None for what is no function."""
    if isinstance(value, property | functools.cached_property):
        value = value.fget if isinstance(value, property) else value.func
    value = inspect.unwrap(getattr(value, "__func__", value))
    return value if inspect.isfunction(value) else None


def _members(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """A class or function, and the public methods of a class that are written in this package."""
    yield name, thing
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        function = _function(value)
        written = function is not None and function.__code__.co_filename.startswith(str(ROOT))
        if written and (not member.startswith("_") or member == "__call__"):
            yield f"{name}.{member}", function


def _outside() -> dict[str, Any]:
    """What README and docs/ use: the package's names, its measures' records, its figures."""
    found = {name: getattr(ss, name) for name in ss.__all__}
    found |= {name: getattr(measures, name) for name in ("Measure", "Pair", "SamplePair")}
    found["register"] = measures.register
    for name in figures.__all__:
        if inspect.isfunction(getattr(figures, name)):
            found[f"figures.{name}"] = getattr(figures, name)
    return found


PUBLIC = dict(pair for name, thing in _outside().items() for pair in _members(name, thing))

# Words of annotations that say nothing about what is meant.
_PLAIN = {
    "str", "int", "float", "bool", "Any", "None", "Sequence", "Mapping", "Iterable", "tuple",
    "list", "dict", "Callable", "np", "ndarray",
}  # fmt: skip
_UNITS = re.compile(r"(^|_)(seconds|minutes|gb|hz|frames|samples)$")


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> list[tuple[str, str]]:
    """Name and annotation of each parameter of a function, or field of a dataclass."""
    if isinstance(node, ast.ClassDef):
        fields = [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]
        named = [(ast.unparse(entry.target), entry.annotation) for entry in fields]
    else:
        given = node.args
        every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
        named = [(one.arg, one.annotation) for one in every if one is not None]
    return [
        (name, ast.unparse(annotation) if annotation else "no annotation")
        for name, annotation in named
        if name not in ("self", "cls") and not name.startswith("_")
    ]


def _explained(name: str, annotation: str, doc: str) -> bool:
    """In prose, or by an annotation that says more than the kind of thing, or a name with a unit.

    Shapes, choices and our own types say more. A unit explains numbers, not words.
    """
    speaks = set(re.findall(r"[A-Za-z_]\w*", annotation)) - _PLAIN - {"no", "annotation"}
    number = re.search(r"\b(int|float)\b", annotation) and _UNITS.search(name)
    return bool(re.search(rf"\b{name}\b", doc) or speaks or number)


def _raises(node: ast.AST) -> bool:
    """Whether its own body raises UserError."""
    calls = [child.exc for child in ast.walk(node) if isinstance(child, ast.Raise)]
    return any(isinstance(c, ast.Call) and ast.unparse(c.func) == "UserError" for c in calls)


def _faults(source: str, shared: str = "") -> list[str]:
    """What the docstring of a function or class leaves out.

    `shared`: what explains parameters of many.
    """
    node = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    doc = ast.get_docstring(node)
    if not doc:
        return ["has no docstring"]
    found = []
    first, _, rest = doc.partition("\n")
    if first[-1] not in ".?:" or (rest and not rest.startswith("\n")):
        found.append("does not begin with one line of its own")
    for name, annotation in _parameters(node):
        if not _explained(name, annotation, f"{doc} {shared}"):
            found.append(f"says nothing of {name}: {annotation}")
    if isinstance(node, ast.FunctionDef) and _raises(node) and "UserError" not in doc:
        found.append("raises UserError without saying so")
    if isinstance(node, ast.FunctionDef) and node.returns is None:
        found.append("does not annotate what it returns")
    return found


@pytest.mark.parametrize("name", PUBLIC)
def test_public_docstrings_are_complete(name):
    thing = PUBLIC[name]
    # A dataclass without a docstring is given its signature as one.
    assert not (thing.__doc__ or "").startswith(f"{name}(")
    shared = str(figures.__doc__) if name.startswith("figures.") else ""
    faults = _faults(inspect.getsource(thing), shared)
    assert not faults, f"{name}: {'; '.join(faults)}"


def test_what_is_outside_is_all_walked():
    assert {"compare", "SimilarityResult.matrix", "SpeechEncoder.__call__"} <= set(PUBLIC)
    assert {"Recognizer.transcribe", "figures.plot", "Pair.correlation"} <= set(PUBLIC)
    assert not [name for name in PUBLIC if "._" in name and not name.endswith(".__call__")]


@pytest.mark.parametrize(
    ("source", "faults"),
    [
        ("def f() -> int: pass", ["has no docstring"]),
        ("def f() -> int:\n 'One line'", ["does not begin with one line of its own"]),
        ("def f() -> int:\n 'One.\\nTwo.'", ["does not begin with one line of its own"]),
        ("def f() -> int:\n 'One.\\n\\nTwo.'", []),
        ("def f(k: int) -> int:\n 'Does it.'", ["says nothing of k: int"]),
        ("def f(k: int) -> int:\n 'Does it k times.'", []),
        ("def f(k) -> int:\n 'Does it.'", ["says nothing of k: no annotation"]),
        ("def f(self, *, k: str | None) -> int:\n 'It.'", ["says nothing of k: str | None"]),
        ("def f(wait_seconds: float | int) -> int:\n 'Waits.'", []),
        ("def f(wait_seconds: str) -> int:\n 'Waits.'", ["says nothing of wait_seconds: str"]),
        ("def f(x: Float[Array, 'row neuron']) -> int:\n 'Reads.'", []),
        ("def f(how: Literal['a', 'b']) -> int:\n 'Does it.'", []),
        ("def f():\n 'Does it.'", ["does not annotate what it returns"]),
        (
            "def f() -> int:\n 'Does it.'\n raise UserError('no')",
            ["raises UserError without saying so"],
        ),
        ("def f() -> int:\n 'Does it. Raises UserError.'\n raise UserError('no')", []),
        ("class A:\n 'It.'\n size: int\n", ["says nothing of size: int"]),
        ("class A:\n 'Has a `size`.'\n size: int\n _own: int\n", []),
    ],
)
def test_what_a_docstring_lacks_is_found(source, faults):
    assert _faults(source) == faults


# --- measures ---

MEASURES = {measure.name: measure for measure in ss.list_measures()}


def _docstring(measure: Any) -> str:
    if isinstance(measure, AttentionMeasure):
        return inspect.getdoc(measure.of_heads or measure.of_layers) or ""
    return inspect.getdoc(measure.function) or ""


@pytest.mark.parametrize("name", MEASURES)
def test_measures_have_a_reference(name):
    """Author and year, or that the definition is this package's own."""
    measure = MEASURES[name]
    assert measure.summary and not measure.summary.endswith(".")
    assert re.search(r"^[A-Za-z].* (18|19|20)\d\d\b|^this package$", measure.reference)


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "mincorr"])
def test_measures_name_their_source(name):
    """Their functions name the author of the record; `mincorr` is a line without a docstring."""
    doc, reference = _docstring(MEASURES[name]), MEASURES[name].reference
    assert "Source:" in doc
    assert reference == "this package" or reference.removeprefix("after ").split()[0] in doc


@pytest.mark.parametrize("name", measures.MEASURES)
def test_measures_say_range_and_symmetry(name):
    measure = measures.MEASURES[name]
    doc = _docstring(measure)
    said = {word.lower() for word in re.findall(r"\b(?:a?symmetric)\b", doc, re.IGNORECASE)}
    assert said == {"symmetric" if measure.symmetric else "asymmetric"}
    ends = {"0": 0.0, "1": 1.0, "-1": -1.0, "pi / 2": math.pi / 2}
    if interval := re.search(r"[Ii]n \[([^,]+), ([^\]]+)\]", doc):
        assert (ends[interval[1]], ends[interval[2]]) == measure.limits
    else:
        assert "at most 1" in doc and measure.limits == (-1.0, 1.0)

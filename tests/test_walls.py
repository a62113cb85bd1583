"""The house of DESIGN.md, section 3: which module may import which, read from the sources."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "speechsim_jax"

BASE = {"errors", "typing", "joining"}
SOUND = {"audio", "hub_audio", "selection", "groups", "batching", "transcripts", "alignments"}
NETWORK = {"models", "zoo"}
MATHS = {"statistics", "measures"}
FACE = {
    "results", "storage", "labels", "drawing", "curves", "head_maps", "heat_maps", "contrasts",
    "figures", "report", "summaries",
    "verdicts", "pairings", "claims", "findings", "published", "dynamics",
}  # fmt: skip
JOINTS = {
    "engine", "reading", "accumulate", "checkpoints", "arrays", "attention_maps", "settings",
    "frames", "provenance", "sharding", "packing", "plan", "costs", "kept", "passes", "jobs",
    "gathering", "training", "processes", "watch", "probes",
    "probe_findings", "probe_figure", "__init__",
}  # fmt: skip

# Room -> the rooms it may import from (itself always); the first part after speechsim_jax counts.
MAY_IMPORT = {
    "errors": set(),
    "typing": set(),
    "joining": set(),
    "audio": {"errors"},
    "hub_audio": {"errors", "audio"},
    "selection": {"errors", "audio", "hub_audio"},
    "groups": {"errors", "audio", "selection"},
    "batching": {"errors", "audio", "selection"},
    "transcripts": {"errors"},
    "alignments": {"errors", "audio"},
    "zoo": {"errors"},
    "models": BASE | {"zoo"},
    "statistics": BASE,
    "measures": BASE | {"statistics"},
    "storage": {"errors"},
    "summaries": set(),
    "results": {"errors", "storage", "summaries"},
    "labels": {"errors", "results"},
    "drawing": {"errors", "labels"},
    "curves": {"errors", "results", "labels", "drawing"},
    "head_maps": {"errors", "results", "labels", "drawing"},
    "heat_maps": {"errors", "results", "labels", "drawing"},
    "contrasts": {"errors", "results", "labels", "drawing", "heat_maps"},
    "figures": {"results", "labels", "drawing", "curves", "head_maps", "heat_maps", "contrasts"},
    "report": {"results", "labels", "drawing", "summaries", "storage"},
    "verdicts": set(),
    "pairings": {"results", "curves"},
    "claims": {"pairings"},
    "findings": {"errors", "results", "verdicts", "pairings", "claims"},
    "published": {"errors", "results", "labels", "drawing"},
    "dynamics": {"errors", "labels", "drawing"},
    "provenance": BASE,
    "probes": {"errors", "statistics"},
    "probe_findings": {"probes"},
    "probe_figure": {"labels", "drawing", "probe_findings"},
    "sharding": BASE | NETWORK | {"statistics"},
    "packing": set(),
    "plan": BASE | MATHS | {"sharding", "packing"},
    "training": BASE | SOUND | NETWORK | {"sharding", "provenance", "checkpoints"},
    "watch": {"errors"},
    "processes": {"errors", "watch"},
    "settings": {"errors"},
    "frames": BASE | SOUND | NETWORK | {"statistics"},
    "attention_maps": BASE | NETWORK | MATHS | {"results", "provenance"},
    "accumulate": BASE
    | SOUND
    | NETWORK
    | MATHS
    | {"results", "settings", "attention_maps", "sharding", "plan", "kept"},
    "kept": {"errors", "statistics"},
    "costs": BASE | SOUND | NETWORK | {"sharding", "plan"},
    "checkpoints": {"errors"},
    "reading": BASE
    | SOUND
    | NETWORK
    | {"frames", "settings", "accumulate", "checkpoints", "sharding", "processes"},
    "gathering": BASE | MATHS | {"results", "kept", "processes"},
    "passes": BASE
    | SOUND
    | NETWORK
    | MATHS
    | {"sharding", "plan", "costs", "frames", "settings", "attention_maps", "accumulate"}
    | {"reading", "checkpoints", "kept", "gathering", "processes"},
    "engine": BASE
    | SOUND
    | NETWORK
    | MATHS
    | {"results", "provenance", "sharding", "frames", "settings", "accumulate", "reading"}
    | {"costs", "passes", "kept", "jobs", "gathering", "processes"},
    "jobs": BASE | MATHS | {"results", "provenance", "accumulate", "kept"},
    "arrays": BASE | MATHS | {"results", "provenance", "accumulate", "settings"},
    "__init__": BASE
    | NETWORK
    | MATHS
    | {"transcripts", "results", "engine", "jobs", "arrays", "attention_maps"},
}
# Opened when asked: a result draws itself, to the figures and the page; audio may be a dataset.
LATE_DOORS = {("results", "figures"), ("results", "report"), ("audio", "hub_audio")}

JAX = {"jax", "jaxlib", "flax"}
MAY_NOT_IMPORT = {
    **{room: JAX | {"matplotlib"} for room in SOUND},
    **{room: {"matplotlib", "xarray"} for room in NETWORK | MATHS},
    "results": JAX | {"matplotlib"},
    "storage": JAX | {"matplotlib"},
    **{room: JAX for room in FACE - {"results", "storage"}},
}
NOWHERE = {"absl", "torch", "torchaudio", "transformers", "tensorflow", "pytest", "experiments"}
# Importing them takes seconds, so only what needs a tokenizer or a checkpoint does, when asked.
LATE_LIBRARIES = {("models", "transformers"), ("checkpoints", "orbax")}


class Import(NamedTuple):
    """`module` in full, where it is written, and whether a function runs it later."""

    module: str
    where: str
    late: bool


def _imports(path: Path) -> list[Import]:
    """Everything a file imports, but for what only type checkers see."""
    found: list[Import] = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                visit(child, late)
            return
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, where, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}: a relative import hides the room it leads to"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                module = whole if _path_of(whole) else str(node.module)
                found.append(Import(module, where, late))
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, late)

    visit(ast.parse(path.read_text()), False)
    return found


def _path_of(module: str) -> Path | None:
    """The file of a module of this repository."""
    base = ROOT.joinpath(*module.split("."))
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _room_of_module(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "speechsim_jax":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
IMPORTS = {path: _imports(path) for path in MODULES + SCRIPTS}
EDGES = [(path, found) for path in MODULES for found in IMPORTS[path]]


def test_every_module_has_a_room():
    assert {_room(path) for path in MODULES} <= set(MAY_IMPORT)
    rooms = [BASE, SOUND, NETWORK, MATHS, FACE, JOINTS]
    assert sum(map(len, rooms)) == len(set.union(*rooms)) == len(MAY_IMPORT)


def test_the_reader_of_imports_sees_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "inner.py").touch()
    file = tmp_path / "sample.py"
    file.write_text(
        "import os.path, jax\n"
        "from pack import inner as i, name\n"
        "try:\n    import torch\nexcept ImportError:\n    pass\n"
        "if TYPE_CHECKING:\n    import pandas\nelse:\n    import h5py\n"
        "def f():\n    from scipy import linalg\n"
    )
    assert [(found.module, found.late) for found in _imports(file)] == [
        ("os.path", False),
        ("jax", False),
        ("pack.inner", False),
        ("pack", False),
        ("torch", False),
        ("h5py", False),
        ("scipy", True),
    ]


def test_doors_between_rooms():
    wrong = []
    for path, found in EDGES:
        here, there = _room(path), _room_of_module(found.module)
        allowed = there is None or there == here or there in MAY_IMPORT[here]
        if not allowed and not (found.late and (here, there) in LATE_DOORS):
            wrong.append(f"{found.where}: {here} imports {found.module}")
    assert not wrong


def test_columns_meet_only_in_the_joints():
    """The table above, held against the rules of DESIGN.md in their own words."""
    columns = (SOUND, NETWORK, MATHS, FACE)
    for room, allowed in MAY_IMPORT.items():
        met = [column for column in columns if column & (allowed | {room})]
        if room not in JOINTS:
            assert len(met) <= 1, room
            assert not allowed & JOINTS, room


def test_libraries_in_rooms():
    wrong = []
    for path, found in EDGES:
        library = found.module.split(".")[0]
        forbidden = MAY_NOT_IMPORT.get(_room(path), set()) | NOWHERE
        late = found.late and (_room(path), library) in LATE_LIBRARIES
        if library in forbidden and not late:
            wrong.append(f"{found.where}: {_room(path)} imports {found.module}")
    assert not wrong


@pytest.mark.parametrize("room", sorted(SOUND | {"results", "storage", "errors"}))
def test_no_jax_through_a_back_door(room):
    """Nothing these rooms import, or what that imports, and so on, imports jax."""
    waiting, seen = [path for path in MODULES if _room(path) == room], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for found in IMPORTS[path]:
            assert found.module.split(".")[0] not in JAX, found.where
            beyond = _path_of(found.module)
            if beyond and not found.late and beyond not in seen:
                waiting.append(beyond)


def test_only_experiments_define_flags():
    users = [p for p in SCRIPTS if any(i.module.startswith("absl") for i in IMPORTS[p])]
    assert ROOT / "experiments" / "_flags.py" in users
    shared = (ROOT / "experiments" / "_flags.py").read_text()
    for name in re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", shared):
        for script in SCRIPTS:
            if script.name != "_flags.py":
                pattern = rf"DEFINE_\w+\(\s*\"{name}\""
                assert not re.search(pattern, script.read_text()), f"{script.name}: --{name}"


def test_no_drawer_for_odds_and_ends():
    assert not [path for path in MODULES + SCRIPTS if path.stem in ("utils", "util", "helpers")]


def test_annotations_are_executed():
    """`from __future__ import annotations` would hide them from jaxtyping and beartype."""
    assert not [f.where for path in IMPORTS for f in IMPORTS[path] if f.module == "__future__"]


def test_dependencies_are_the_imports():
    """Nothing that is used is missing from pyproject.toml, and nothing unused is listed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed, hub = (
        {re.split(r"[<>=!\[; ]", line)[0].lower().replace("-", "_") for line in lines}
        for lines in (project["dependencies"], project["optional-dependencies"]["hub"])
    )
    distributions = importlib.metadata.packages_distributions()
    used = set()
    for path in MODULES + [ROOT / "experiments" / n for n in ("_flags.py", "compare.py")]:
        for found in IMPORTS[path]:
            library = found.module.split(".")[0]
            if library not in sys.stdlib_module_names | {"speechsim_jax", "experiments"}:
                names = distributions.get(library, [library])
                used.add(names[0].lower().replace("-", "_"))
    assert hub < used <= listed | hub
    # jaxlib is jax's other half; xarray writes netCDF through h5netcdf, and that through h5py.
    assert listed - used <= {"jaxlib", "h5netcdf", "h5py"}


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_import_has_no_side_effect():
    """No device is touched (there is no such platform), no flag defined, nothing heavy loaded."""
    done = _python(
        "import sys, speechsim_jax, jax\n"
        "heavy = {'matplotlib', 'plotly', 'torch', 'transformers', 'sklearn', 'librosa',"
        " 'huggingface_hub'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "from absl import flags\n"
        "owners = flags.FLAGS.flags_by_module_dict()\n"
        "print([name for name in owners if 'speechsim' in name or 'experiments' in name])\n"
        "try:\n"
        "    jax.devices()\n"
        "except RuntimeError:\n"
        "    print('no backend before this')\n",
        JAX_PLATFORMS="no_such_platform",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[]", "[]", "no backend before this"]


def test_scripts_import_together():
    """No flag is defined twice: all scripts load in one process, in either order."""
    names = [f"experiments.{path.stem}" for path in SCRIPTS if path.stem != "__init__"]
    assert len(names) >= 3
    done = _python(
        f"import importlib\nfor name in {names + names[::-1]}:\n    importlib.import_module(name)\n"
        "from absl import flags\nprint('workdir' in flags.FLAGS, 'models' in flags.FLAGS)\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True True\n"

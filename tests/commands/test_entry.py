"""Commands, their flags and pages of help: each has its own, from the records, and starts light."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from speechsim_jax.commands import (
    compare,
    dynamics,
    entry,
    flags,
    main,
    merge,
    probe,
    replicate,
    transcribe,
)
from speechsim_jax.commands.entry import COMMANDS
from speechsim_jax.settings import Output, Resources, Settings
from tests.support.commands import Ended, assert_mistake, call, flags_of, in_subprocess
from tests.support.paths import ROOT

HEAVY = (
    "jax", "flax", "matplotlib", "xarray", "transformers", "librosa", "sklearn", "orbax", "plotly",
    "h5netcdf", "scipy", "numpy", "soundfile", "huggingface_hub",
)  # fmt: skip
BASE = ROOT / "tests" / "data" / "parity" / "wav2vec2-base"


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def program(capsys, *arguments: str) -> Ended:
    """`speechsim ARGUMENTS` in this process."""
    code = 0
    try:
        main(arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return Ended(code, out, err.splitlines())


# --- the program ---


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_commands_are_listed(arguments, capsys):
    ended = program(capsys, *arguments)
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 100
    listed = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert tuple(listed) == COMMANDS
    for name, line in listed.items():
        assert line.endswith((entry.load(name).__doc__ or "").splitlines()[0])


def test_every_module_with_a_main_is_a_command():
    """And has a script in experiments/, unless that would hide a module of Python's library."""
    folder = ROOT / "speechsim_jax" / "commands"
    modules = {path.stem for path in folder.glob("*.py") if "def main(values" in path.read_text()}
    assert modules == set(COMMANDS)
    for name in COMMANDS:
        script = ROOT / "experiments" / f"{name}.py"
        assert script.is_file() == (name not in sys.stdlib_module_names)


def test_version_and_misspelt_commands(capsys):
    assert program(capsys, "--version").out.split()[0] == "speechsim_jax"
    assert_mistake(program(capsys, "comparre"), "'comparre'", "did you mean 'compare'", "--help")
    assert_mistake(program(capsys, "--jobs=a"), "--jobs=a")


# --- flags and help ---


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_exactly_the_flags(name, capsys):
    ended = program(capsys, name, "--help")
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == (entry.load(name).__doc__ or "").splitlines()[0]
    assert f"speechsim {name}" in ended.out and "experiments." not in ended.out
    shown = [line.split()[0].split("=")[0] for line in lines if line.startswith("  --")]
    assert sorted(word.removeprefix("--").removeprefix("[no]") for word in shown) == sorted(
        flags_of(name)
    )
    assert "(default: None)" not in ended.out


def test_a_page_of_help(capsys):
    """What is compared comes first, kinds of values and defaults are shown."""
    page = program(capsys, "compare", "--help").out
    lines = page.splitlines()
    for flag in (
        "--models=A,B", "--workdir=TEXT", "--[no]overwrite", "--seed=N", "--max_minutes=X",
        "--last_layer=normed|raw", "--[no]quiet", "--figure_formats=A,B",
    ):  # fmt: skip
        assert sum(line.split()[:1] == [flag] for line in lines) == 1, flag
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles[:2] == ["What is compared:", "How:"] and "What is written:" in titles
    assert "(default: 4096)" in page and "(default: 0)" in page
    page = program(capsys, "replicate", "--help").out
    assert page.index("--preset=zoo|paper") < page.index("What is compared:")
    assert "seeded choice of so much audio. (default: 60" in " ".join(page.split())
    assert "may be repeated." in " ".join(program(capsys, "card", "--help").out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_one_default_of_each_flag(name, capsys):
    for entry_ in re.split(r"\n  --", program(capsys, name, "--help").out)[1:]:
        assert entry_.count("(default: ") <= 1 and "repeat this option" not in entry_


def test_compare_has_a_flag_for_every_setting():
    for record in (Settings, Resources, Output):
        declared = {f.name for f in dataclasses.fields(record) if f.metadata["flag"]}
        assert declared <= flags_of("compare")


@pytest.mark.parametrize("name", ["dynamics", "replicate", "merge"])
def test_flags_of_nested_records(name):
    """A record in a Config that has only some flags has no others."""
    module = entry.load(name)
    for field in dataclasses.fields(module.Config):
        only = field.metadata.get("only")
        if only is not None:
            record = field.metadata["record"]
            others = {f.name for f in dataclasses.fields(record)} - set(only)
            assert set(only) <= flags_of(name)
            assert not others & flags_of(name) - {f.name for f in dataclasses.fields(module.Config)}


CONFIGS = {
    "compare": compare.Config(("m",), "a", "w"),
    "merge": merge.Config("w", ("j",), audio="a"),
    "dynamics": dynamics.Config("r", "a", "w"),
    "probe": probe.Config(("m",), "a", "t", "w"),
    "transcribe": transcribe.Config(("m",), "a"),
    "replicate": replicate.Config(("m",), "a", "w"),
}
VALUES = {"models": "m", "audio": "a", "workdir": "w", "jobs": "j", "run": "r", "alignments": "t"}


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_of_flags_are_those_of_the_config(name):
    required = set(VALUES) & flags_of(name) - ({"workdir"} if name == "transcribe" else set())
    if name == "compare":
        required -= {"alignments"}
    module = entry.load(name)
    values = module.define_flags()
    values(["speechsim", *(f"--{flag}={VALUES[flag]}" for flag in required)])
    assert module.config_from_flags(values) == CONFIGS[name]


def test_flags_reach_every_record():
    values = compare.define_flags()
    values([
        "speechsim", "--models=m,n", "--audio=a", "--workdir=w", "--layers=0,-1", "--buckets=2",
        "--max_minutes=3", "--mesh=data:1", "--local_files_only", "--note=x", "--quiet",
        "--levels=neuron,layer", "--figure_formats=pdf,svg", "--keep_statistics",
    ])  # fmt: skip
    assert compare.config_from_flags(values) == compare.Config(
        models=("m", "n"),
        audio="a",
        workdir="w",
        levels=("neuron", "layer"),
        settings=Settings(layers=(0, -1), buckets=2, max_minutes=3),
        resources=Resources(mesh="data:1", local_files_only=True),
        output=Output(note="x", progress=False),
        keep_statistics=True,
        figure_formats=("pdf", "svg"),
    )


def test_present_values_are_those_on_the_command_line():
    values = compare.define_flags()
    values(["speechsim", "--seed=0", "--rows_per_update=8"])
    assert flags.present_values(values, Settings) == {"seed": 0, "rows_per_update": 8}
    base = Settings(seed=4, buckets=2)
    assert flags.from_flags(values, Settings, base) == Settings(rows_per_update=8, buckets=2)


FOREIGN = {
    "demo": ("--measures=all", "--groups=9"),
    "synthesise": ("--steps=3", "--max_minutes=3"),
    "card": ("--steps=3", "--levels=neuron"),
    "merge": ("--models=a", "--seed=1"),
    "pretrain": ("--pool=utterance", "--freeze_feature_encoder"),
    "transcribe": ("--measures=lincka", "--coordinator=auto"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_flags_of_other_commands_are_unknown(name, capsys):
    for flag in FOREIGN[name]:
        word = flag[2:].split("=")[0]
        assert_mistake(call(capsys, name, flag), f"'{word}'", "--help")


# --- start-up ---


def test_importing_the_commands_is_light():
    modules = [f"speechsim_jax.commands.{name}" for name in COMMANDS]
    done = python(
        f"import importlib, sys\nfor name in {modules}:\n"
        "    importlib.import_module(name).define_flags()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_a_comparison_imports_no_tests_of_significance():
    """scipy.stats takes half a second, and few results need it."""
    done = python(
        "import sys\nimport speechsim_jax as ss\n"
        "print(ss.compare.__name__, 'scipy.stats' in sys.modules)"
    )
    assert (done.stdout.split(), done.stderr) == (["compare", "False"], "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--modells=m"],
        ["--models=/nonexistent", "--audio=a", "--workdir={tmp}"],
        ["--models=zoo:none", "--audio=a", "--workdir={tmp}"],
        [f"--models={BASE}", "--audio=/nonexistent", "--workdir={tmp}"],
        [f"--models=random:{BASE}@1,./none", "--audio=a", "--workdir={tmp}"],
    ],
    ids=["help", "flag", "model", "zoo", "audio", "second model"],
)
def test_mistakes_are_found_without_jax(arguments, tmp_path):
    words = [word.format(tmp=tmp_path / "out") for word in arguments]
    done = python(
        "import sys\nfrom speechsim_jax.commands import run_command\n"
        f"try:\n    run_command('compare', {words})\n"
        "except SystemExit as ended:\n    print(ended.code)\n"
        f"print([name for name in ('jax', 'flax', 'matplotlib') if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1] == "[]", done
    if arguments != ["--help"]:
        assert done.stdout.splitlines() == ["2", "[]"]
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_help_in_a_process():
    ended = in_subprocess("compare", "--help")
    assert (ended.code, ended.err) == (0, [])
    assert ended.out.startswith((compare.__doc__ or "").splitlines()[0])


# --- how a process ends ---

MODULE = """
import os, signal, sys, time, types, logging
from speechsim_jax.commands import entry, flags
# a background job of a shell ignores it, and so do its children
signal.signal(signal.SIGINT, signal.default_int_handler)
module = types.SimpleNamespace(
    __doc__="", define_flags=lambda: flags.define(flags.Terminal), main=lambda values: {body}
)
entry.run_module(module, {arguments})
"""

SWALLOWED = (
    "exec('try: os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\\n'"
    "'except KeyboardInterrupt: time.sleep(60)')"
)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("1 // 0", 1, "ZeroDivisionError: integer division or modulo by zero"),
        ("(os.kill(os.getpid(), signal.SIGINT), time.sleep(9))", 130, "interrupted"),
        (SWALLOWED, 130, "interrupted"),
        ("sys.stdout.write('said')", 0, None),
    ],
    ids=["failure", "ctrl-C", "swallowed", "nothing"],
)
def test_exit_codes_of_a_process(body, code, message):
    """With --quiet: the reason on stderr, and nothing on stdout."""
    done = python(MODULE.format(body=body, arguments=["--quiet"]))
    assert (done.returncode, done.stdout) == (code, ""), done
    lines = done.stderr.splitlines()
    assert (lines[-1] if lines else None) == message
    assert ("Traceback" in done.stderr) == (code == 1)
    assert len(lines) <= 1 or code == 1


@pytest.mark.parametrize("name", ["huggingface_hub.utils._http", "another"])
def test_warnings_of_libraries_are_printed_once(name):
    """huggingface_hub has a handler of its own."""
    body = f"(__import__('huggingface_hub'), logging.getLogger('{name}').warning('Retrying in 1s'))"
    done = python(MODULE.format(body=body, arguments=[]))
    assert (done.returncode, done.stderr) == (0, "Retrying in 1s\n")


def test_arguments_from_a_file(tmp_path, capsys):
    """absl's --flagfile."""
    file = tmp_path / "flags.txt"
    file.write_text("--models=m\n--seed=-1\n")
    ended = call(capsys, "compare", f"--flagfile={file}", "--audio=a", f"--workdir={Path('w')}")
    assert_mistake(ended, "--seed", "at least 0")

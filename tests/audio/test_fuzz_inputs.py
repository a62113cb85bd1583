"""Mutated inputs are read, refused in one line or skipped with a reason."""

import json
import signal
import subprocess
import sys

import pytest

from tests.support import fuzz_inputs
from tests.support.paths import ROOT


@pytest.mark.slow
def test_no_mutated_input_crashes_a_reader():
    counts = {"audio": 800, "alignments": 500, "manifests": 500, "configs": 500}
    found = fuzz_inputs.run(counts, seed=2)
    for kind, count in counts.items():
        row = found[kind]
        assert row["crashes"] == row["hangs"] == 0, (kind, row)
        assert row["accepted"] + row["refused"] == count
        # Both ends of the readers are reached.
        assert row["accepted"] > count / 10 and row["refused"] > count / 10
        assert row["slowest_s"] < fuzz_inputs.SECONDS_PER_INPUT and row["peak_mb"] < 1000


BAD_READERS = """
def good(path): return "accepted"
def refuse(path): raise fuzz.UserError("one line")
def silent(path): raise fuzz.UserError("")
def fail(path): return {}["x"]
def allocate(path): return str(len(bytearray(2**31)))
def hang(path): any(iter(int, 1))
readers = [good, good, refuse, silent, fail, allocate, LAST]
"""


@pytest.mark.parametrize("last", ["hang", "__import__('os').abort"])
def test_the_fuzzer_sees_bad_readers(tmp_path, last):
    code = (
        f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support import fuzz_inputs as fuzz\n"
        f"{BAD_READERS.replace('LAST', last)}"
        "fuzz.SECONDS_PER_INPUT = 0.5\n"
        "def reader(path):\n"
        "    read = readers.pop(0)\n"
        "    return read() if read.__name__ == 'abort' else read(path)\n"
        "fuzz.KINDS['alignments'] = (fuzz.KINDS['alignments'][0], reader)\n"
        f"fuzz.run_child('alignments', 0, 0, 9, pathlib.Path({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    outcomes = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    assert outcomes[:2] == ["accepted", "refused"]
    assert all(outcome.startswith("crash: ") for outcome in outcomes[2:]) and len(outcomes) == 5
    assert "KeyError" in outcomes[3] and "MemoryError" in outcomes[4]
    killed_by = signal.SIGALRM if last == "hang" else signal.SIGABRT
    assert done.returncode == -killed_by, done.stderr


def test_a_case_is_made_again_from_its_number(tmp_path):
    for kind in fuzz_inputs.KINDS:
        made = [fuzz_inputs.make_case(kind, 3, 5, tmp_path / name / "case") for name in "ab"]
        contents = [
            {
                p.name: p.read_bytes()
                for p in (m if m.is_dir() else m.parent).rglob("*")
                if p.is_file()
            }
            for m in made
        ]
        assert contents[0] == contents[1] and contents[0]

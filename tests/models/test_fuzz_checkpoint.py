"""The fuzzer: finds nothing in the readers, and sees what bad readers do."""

import json
import signal
import subprocess
import sys

import pytest

from tests.support import fuzz_checkpoint
from tests.support.paths import ROOT


def test_fuzz_500_cases(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fuzz_checkpoint", "--cases=500", "--seed=1"])
    with pytest.raises(SystemExit) as exited:
        fuzz_checkpoint.main()
    printed = capsys.readouterr()
    found = dict(line.rsplit(" ", 1) for line in printed.out.splitlines())
    assert not exited.value.code, printed
    assert found["executions"] == found["crashes"] == found["hangs"] == "0"
    assert int(found["accepted"]) + int(found["refused"]) == 500
    assert int(found["reached pickle stage"]) > 250 and int(found["reached tensor stage"]) > 150
    assert int(found["reached settings"]) > 50 and int(found["accepted"]) > 25


BAD_READERS = """
def write(path): open("executed", "w")
def system(path): __import__("os").system("true")
def unpickle(path): __import__("pickle").loads(b"cos\\nsystem\\n.")
def allocate(path): return {"w": bytearray(2**30)}
def fail(path): return {}["x"]
def no_arrays(path): return {"w": 3}
def hang(path): any(iter(int, 1))
bad = [write, system, unpickle, allocate, fail, no_arrays, hang]
def reader(path): return bad.pop(0)(path) if path.stem == "case" else {}
"""


def test_the_fuzzer_sees_bad_readers(tmp_path):
    code = (
        f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support import fuzz_checkpoint as fuzz\n"
        f"{BAD_READERS}"
        "fuzz.SECONDS_PER_CASE = 0.5\n"
        "fuzz.torch_bin.read_torch_bin = fuzz.checkpoint_files._read_safetensors = reader\n"
        "fuzz.read_training = reader\n"
        f"fuzz.run_child(0, 0, 9, pathlib.Path({str(tmp_path)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["executions"] > 0 for line in lines] == [True] * 3 + [False] * 3
    outcomes = [line["outcome"] for line in lines]
    assert "MemoryError" in outcomes[3] and "KeyError" in outcomes[4]
    assert outcomes[5] == "crash: not a dict of arrays"
    assert done.returncode == -signal.SIGALRM, done.stderr

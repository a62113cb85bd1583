"""The benchmark of accelerators: on this CPU, without most libraries, and within its time."""

import json
import subprocess
import sys

import pytest

from experiments.benchmarks import accelerator_comparison
from experiments.benchmarks.budget import Budget, seconds_of
from tests.support.paths import ROOT

MISSING = (
    "soundfile", "soxr", "librosa", "matplotlib", "plotly", "netCDF4", "h5netcdf", "h5py",
    "datasets", "sklearn", "torch",
)  # fmt: skip

# What a machine has on which only jax, flax, transformers and what these need are installed.
WITHOUT = f"""
import importlib.machinery, importlib.metadata, sys

MISSING, version = {MISSING}, importlib.metadata.version

def known(name):
    if name in MISSING:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.split(".")[0] in MISSING else super().find_spec(name, *rest)

importlib.metadata.version = known
ordinary = importlib.machinery.PathFinder
sys.meta_path = [Finder if finder is ordinary else finder for finder in sys.meta_path]

from experiments import benchmark
from speechsim_jax.commands.entry import run_module

run_module(benchmark)
"""


@pytest.mark.slow
def test_all_of_it_without_what_may_be_missing():
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT, "--what=accelerator", "--small", "--minutes_limit=9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    printed, _, table = process.stdout.partition("\n\n")
    about, *lines = [json.loads(line) for line in printed.splitlines()]
    assert about["machine"]["device"] == "1 x cpu (cpu)"
    assert all(line["what"] == "accelerator" for line in lines)
    figures = [line for line in lines if "figure" in line]
    named = {line["figure"] for line in figures}
    skipped = {line["skipped"]: line["why"] for line in lines if "skipped" in line}
    for name in [name for name, why in skipped.items() if "BF16 x BF16 = F32" in why]:
        del skipped[name]  # jax 0.7 has no such product on a CPU
        named.add(name.rpartition(",")[0])
    assert {
        "selfcheck", "products", "covariance error", "update", "update, share of peak", "decode",
        "transfer", "encode", "score", "save", "device idle while reading", "ours, hidden states",
        "ours, with attentions", "ours, hidden states, bfloat16", "attention sums",
    } <= named  # fmt: skip
    assert {line["passes"] for line in figures if "passes" in line} == {"yes"}
    compared = [line for line in figures if line["figure"] == "encode"]
    assert [line["sizes"] for line in compared] == ["base+base", "base+base+large+large"]
    assert all(line["audio"] == "arrays" for line in compared)
    assert skipped.pop("scaling") == "there is one device"
    for part, why in skipped.items():
        assert ("torch" in part and "torch" in why) or (
            "products by" in part and why == "this device does not have it"
        )
    assert len(table.splitlines()) == len(lines)


def test_what_does_not_fit_is_said(capsys):
    budget = Budget("accelerator", 1.0)
    done = []
    budget.attempt("quick", lambda: done.append("quick"), 1)
    budget.attempt("long", lambda: done.append("long"), 1e6)
    budget.attempt("impossible", lambda: [][1], 1)
    budget.attempt("last", lambda: budget.report("rate", 2.0, "TFLOP/s", size=3), 1)
    assert done == ["quick"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("skipped") for line in lines] == ["long", "impossible", None]
    assert "s are left" in lines[0]["why"] and "IndexError" in lines[1]["why"]
    table = budget.table().splitlines()
    assert len(table) == 3 and table[-1].split() == ["rate:", "size", "3", "2", "TFLOP/s"]


def test_a_call_is_compiled_before_it_is_timed():
    called = []
    assert 0 <= seconds_of(lambda: called.append(1)) < 1
    assert len(called) == 6


def test_speech_is_of_the_length_asked_for():
    made = accelerator_comparison.speech(0.5)
    assert sum(map(len, made.values())) == pytest.approx(30 * 16_000, abs=16_000)
    assert all(9_000 < abs(samples.astype(int)).max() <= 20_000 for samples in made.values())
    assert len(made) == len(set(made)) > 1

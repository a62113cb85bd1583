"""The whole of `compare` on several devices, in a process that has eight (`mesh_runs`)."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import tolerances
from tests.support.mesh_runs import SETTINGS, VARIANTS
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    actual = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.mesh_runs",
            str(tmp_path_factory.mktemp("saved") / "c"),
        ],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert actual.returncode == 0, actual.stderr[-2000:]
    return json.loads(actual.stdout.splitlines()[-1])


def assert_equal(
    actual: dict, measures: int, errors_relative: float = tolerances.ERRORS_RELATIVE
) -> None:
    assert len(actual["errors"]) == measures
    assert max(actual["errors"].values()) <= tolerances.MESH, actual["errors"]
    assert actual["standard_errors"] <= errors_relative
    assert actual["heldout"] <= tolerances.MESH
    assert actual["null"] <= tolerances.MESH
    assert set(actual["choices"]) == {"rank", "best_match", "mincorr_order"}
    assert all(actual["choices"].values()), actual["choices"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_gives_the_scores_of_one_device_in_one_pass(variant, report):
    several = "several passes" in variant
    settings = SETTINGS | VARIANTS[variant]
    same_batches = all(settings[name] == SETTINGS[name] for name in ("batch_seconds", "buckets"))
    bar = tolerances.ERRORS_RELATIVE if same_batches else tolerances.ERRORS_RELATIVE_BATCHES
    assert_equal(report[variant], 7 if several else 9, bar)
    assert (report[variant]["passes"] >= 3) == several
    mesh = ",".join(f"{axis}:{size}" for axis, size in report[variant]["mesh"].items())
    assert mesh.startswith(variant.split(", ")[0])


def test_utterances_that_are_swapped(report):
    assert report["swapped"] <= tolerances.MESH


def test_pooled_frames(report):
    assert report["pooled"] <= tolerances.MESH


@pytest.mark.parametrize("kind", ["numpy", "jax"])
@pytest.mark.parametrize("mesh", ["data:2", "data:2,feature:2"])
def test_encoders_that_are_objects(kind, mesh, report):
    errors = report[f"objects, {kind}, {mesh}"]
    assert len(errors) == 2 and max(errors.values()) <= tolerances.MESH


def test_a_run_resumes_on_another_mesh(report):
    assert report["interrupted"] == 3
    assert_equal(report["resumed"], 9)

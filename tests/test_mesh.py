"""The whole of `compare` on several devices, in a process that has four (`mesh_runs`)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tolerances
from tests.mesh_runs import MESHES


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    found = subprocess.run(
        [sys.executable, "-m", "tests.mesh_runs", str(tmp_path_factory.mktemp("saved") / "c")],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_gives_the_scores_of_one_device(mesh, report):
    assert len(report[mesh]["errors"]) == 9
    assert max(report[mesh]["errors"].values()) <= tolerances.MESH, report[mesh]["errors"]


def test_pooled_frames(report):
    assert report["pooled"]["errors"]["lincka"] <= tolerances.MESH


def test_the_result_names_the_mesh(report):
    assert report["data:2,feature:2"]["mesh"] == {"data": 2, "feature": 2}
    assert report["data:4"]["mesh"] == {"data": 4, "feature": 1}


def test_a_run_goes_on_on_another_mesh(report):
    assert report["broken off"] == 3
    assert max(report["gone on"]["errors"].values()) <= tolerances.MESH, report["gone on"]["errors"]

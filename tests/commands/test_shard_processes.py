"""Shards as processes, on one machine: killed, started twice, on other devices, as on a pod."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.tolerances import MESH


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("shards") / "runs"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.shard_runs", str(folder), "3"],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("job", ["four", "hosts"])
def test_shards_give_the_result_of_one_job(report, job):
    assert max(report[job]["errors"].values()) <= MESH
    assert report[job]["choices"] and all(report[job]["choices"])


@pytest.mark.slow
def test_a_killed_shard_and_one_that_is_started_twice(report):
    four = report["four"]
    assert four["killed"] == -9
    assert four["twice"] in ([0, 2], [0, 0]) and four["others"] == [0, 0, 0]
    assert all("works in it" in line or "unfinished run" in line for line in four["said"])
    assert report["hosts"]["codes"] == [0, 0], report["hosts"]


@pytest.mark.slow
def test_of_two_runs_in_one_workdir_one_wins(report):
    assert report["rivals"] == {"winners": [1] * 3, "said": True}

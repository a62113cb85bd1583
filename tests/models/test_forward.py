"""Meshes by name, and what compiled programs say; the statistics on meshes are `eight_devices`."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks.compiled import Collective, collectives
from speechsim_jax.errors import UserError
from speechsim_jax.models.forward import on_devices
from speechsim_jax.models.load import load_encoder
from speechsim_jax.runtime.mesh import mesh_from, place_batch
from tests.support.paths import DATA, ROOT


def test_statistics_on_eight_devices():
    """In a process of its own: how many devices a CPU shows is fixed when JAX starts."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/support/eight_devices.py",
        ],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


def test_all_devices_along_data():
    mesh = mesh_from(None)
    assert dict(mesh.shape) == {"data": len(jax.devices()), "feature": 1}
    assert dict(mesh_from("feature:1").shape) == {"data": 1, "feature": 1}


@pytest.mark.parametrize(
    "text",
    ["", "data", "data:", "data:0", "data:-1", "data:2.0", "rows:2", "data:2,data:2", "data:1;2",
     "data:²"],
)  # fmt: skip
def test_nonsense_is_refused_with_an_example(text):
    with pytest.raises(UserError, match='expected for example "data:4"') as error:
        mesh_from(text)
    assert "\n" not in str(error.value) and repr(text) in str(error.value)


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=r"needs 8000 devices, but there are \d"):
        mesh_from("data:4000,feature:2")


def test_one_device_gets_what_it_got():
    samples, lengths = np.zeros((3, 5), np.float32), np.full(3, 5, np.int32)
    assert place_batch(samples, lengths, mesh_from("data:1")) == (samples, lengths)


def test_parameters_that_are_on_the_device_are_not_copied():
    encoder = load_encoder(DATA / "parity" / "wavlm-base")
    placed = on_devices(encoder, mesh_from("data:1"))
    for before, after in zip(
        jax.tree.leaves(encoder.parameters), jax.tree.leaves(placed.parameters)
    ):
        assert before.unsafe_buffer_pointer() == after.unsafe_buffer_pointer()


def test_collectives_of_a_program():
    program = """
  %a = f32[2,8]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={0}
  %b = (f32[4]{0}, f32[4]{0}) all-to-all(%x, %y), replica_groups=[2,2]<=[4]
  %c = f32[4]{0} all-reduce-start(%x), replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
  %d = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1}}
  %e = f32[4]{0} all-reduce-done(%c)
  %g = f32[4]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=2] {'a'}, to_apply=%add
  %f = f32[4]{0} add(%all-reduce, %x), metadata={op_name="all-gather"}
"""
    assert collectives(program) == {
        Collective("all-gather", ((0, 1), (2, 3))),
        Collective("all-to-all", ((0, 1), (2, 3))),
        Collective("all-reduce", ((0, 2), (1, 3))),
        Collective("collective-permute", ()),
        Collective("reduce-scatter", ((0, 2), (1, 3))),
    }

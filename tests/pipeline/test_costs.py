"""Memory and work of devices and models, against counts by hand."""

import dataclasses
import os

import jax
import numpy as np
import pytest

from experiments.benchmarks.one_by_one import compilations
from speechsim_jax.audio.batching import Bucket
from speechsim_jax.measures.registry import resolve
from speechsim_jax.models import forward
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.pipeline import costs
from speechsim_jax.runtime import mesh
from tests.support.parity import fixture

MESH = mesh.mesh_from("data:1")
ENCODER = "hubert-large"


def test_budget():
    assert costs.budget_bytes(1.5, MESH) == 1_500_000_000
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0.7 * machine < costs.budget_bytes(None, MESH) * len(MESH.local_devices) < 0.8 * machine


@pytest.mark.parametrize(("devices", "rows"), [(1, 5), (2, 3), (8, 1)])
def test_frames_of_a_batch_with_its_fillers(devices, rows):
    frames = costs.frames_of(Bucket(5, 16_080), fixture(ENCODER).encoder.config, devices)
    assert frames == rows * 50


def test_parameters_are_those_of_the_layers_and_the_rest():
    encoder = fixture(ENCODER).encoder
    front, layers = costs.parameter_bytes(encoder)
    size, inner = encoder.config.hidden_size, encoder.config.intermediate_size
    # Four projections, two products and two norms, with their biases, in float32.
    layer = 4 * (size + 1) * size + (size + 1) * inner + (inner + 1) * size + 4 * size
    assert layers == 4 * layer * encoder.config.num_hidden_layers
    assert front + layers == sum(x.nbytes for x in jax.tree.leaves(encoder.parameters))


def test_a_model_costs_what_its_program_does_for_each_batch():
    encoder, bucket = fixture(ENCODER).encoder, Bucket(2, 16_080)
    depth = encoder.config.num_hidden_layers
    layers = tuple(range(depth + 1))
    outputs = Outputs(layers)

    def cost(seconds: float):
        return costs.model_cost(encoder, layers, outputs, "highest", bucket, seconds, MESH)

    batch = cost(2 * 16_080 / 16_000)
    program = forward.lower_encode(encoder, (2, 16_080), outputs, "highest", MESH).compile()
    memory, work = program.memory_analysis(), program.cost_analysis()
    assert memory and work
    assert batch.workspace_bytes == memory.temp_size_in_bytes > 0
    counted = work["flops"]
    np.testing.assert_allclose(batch.front_flops + depth * batch.layer_flops, counted)
    # A product of a layer's parameters with each of the 2 x 50 frames, multiply and add.
    np.testing.assert_allclose(batch.layer_flops, 2 * 100 * batch.layer_bytes / 4)
    assert 0 < batch.front_flops < counted
    np.testing.assert_allclose(cost(20 * 16_080 / 16_000).layer_flops, 10 * batch.layer_flops)


@pytest.mark.parametrize("of_host", [True, False], ids=["on the host", "on devices"])
def test_what_was_compiled_ahead_is_not_compiled_again(of_host):
    """Whatever there is to be compiled: samples, lengths and parameters as a pass gives them."""
    encoder = fixture(ENCODER).encoder
    outputs = Outputs((0, 1))
    given = forward.on_host(encoder) if of_host else encoder
    jax.clear_caches()
    placed = forward.on_devices(encoder, MESH, 1)
    samples, lengths = np.zeros((2, 16_080), np.float32), np.array([16_000, 9_000], np.int32)
    with compilations() as seconds:
        forward.lower_encode(given, samples.shape, outputs, "highest", MESH).compile()
        assert len(seconds) == 1
        placed_batch = mesh.place_batch(samples, lengths, MESH)
        forward.encode(placed, *placed_batch, outputs, "highest", MESH)
        assert len(seconds) == 1


def test_programs_are_worth_more_audio_where_models_are_small():
    small = fixture(ENCODER).encoder
    one = costs.program_seconds([small])
    assert one == pytest.approx(costs.program_seconds([small, small]) * 2)  # they share it
    leaves = jax.tree.map(lambda x: np.broadcast_to(x, (4, *x.shape)), small.parameters)
    larger = dataclasses.replace(small, parameters=leaves)
    assert costs.program_seconds([larger]) == pytest.approx(one / 4)
    assert costs.program_seconds([]) == 0


def test_speed_counts_every_device():
    assert 1e8 < costs.rate(MESH) < 1e16


def test_the_work_of_scoring_grows_with_what_is_scored():
    def flops(measures, widths, rows=0, pairs=None, errors=False):
        selection = resolve(measures)._replace(errors=errors)
        return costs.scoring_flops(widths, pairs, selection, rows)

    norms, paper = flops("lincka", [64] * 4), flops("paper", [64] * 4)
    assert 0 < norms < paper
    assert flops("paper", [128] * 4) == 8 * paper
    assert flops("paper", [64] * 4, pairs=[(0, 1), (2, 2)]) == pytest.approx(paper / 5)
    with_errors = flops("paper", [64] * 4, rows=1000, errors=True)
    assert flops("paper", [64] * 4, rows=3000, errors=True) - paper == 3 * (with_errors - paper)
    assert flops("rsa", [64] * 4) == 0  # of sampled rows

"""Everything that runs on a device is translated for TPU and CUDA, here, without having either."""

import dataclasses
import functools
import re

import jax
import jax.export  # which `import jax` leaves out
import numpy as np
import pytest

from speechsim_jax.models import weight_names
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.encoder import forward
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.pipeline.attention_inputs import projected, rows_of_projections
from speechsim_jax.statistics import attention_sums, moments, moments_accumulator
from speechsim_jax.statistics.moments import ModelShape
from tests.support.parity import LAYOUTS, fixture

EVERYTHING = Outputs(attentions=True, projections=True, features=True)
PLATFORMS = ("tpu", "cuda")

# Algorithm, type of its parts, products.
PARTS = [
    ("F32_F32_F32", "f32", 1), ("TF32_TF32_F32", "tf32", 1), ("TF32_TF32_F32_X3", "tf32", 3),
    ("BF16_BF16_F32", "bf16", 1), ("BF16_BF16_F32_X3", "bf16", 3), ("BF16_BF16_F32_X6", "bf16", 6),
    ("BF16_BF16_F32_X9", "bf16", 9),
]  # fmt: skip


def lowered(function, *arguments, **static):
    exported = jax.export.export(function, platforms=PLATFORMS)(*arguments, **static)
    assert exported.platforms == PLATFORMS
    return exported.mlir_module()


def long_encoder(layout):
    """The encoder of a fixture; a Whisper with a window of 30 s."""
    encoder = fixture(layout).encoder
    if encoder.config.longest_samples is None:
        return encoder
    config = dataclasses.replace(encoder.config, max_source_positions=1500)
    graph, parameters, _ = weight_names.fill(config, random_tensors(config, 0), layout)
    return dataclasses.replace(encoder, config=config, graph=graph, parameters=parameters)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("outputs", [EVERYTHING, Outputs()], ids=["everything", "hidden"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_encoders(layout, outputs, dtype):
    encoder = long_encoder(layout).astype(dtype)
    hop, window = encoder.config.hop_samples, encoder.config.window_samples
    # more than one block of attention rows
    frames = (encoder.config.longest_samples or hop * 1100) // hop
    samples = jax.ShapeDtypeStruct((2, window + (frames - 1) * hop), np.float32)
    lengths = jax.ShapeDtypeStruct((2,), np.int32)
    text = lowered(
        forward, encoder.parameters, samples, lengths,
        graph=encoder.graph, outputs=outputs, precision="default",
    )  # fmt: skip
    whole_maps = f"x{frames}x{frames}x"
    assert (whole_maps in text) == outputs.attentions
    assert ("bf16" in text) == (dtype == "bfloat16")


def algorithms_of(text, operation):
    """What each product or convolution of a lowered program says about its precision."""
    lines = [line for line in text.splitlines() if f"stablehlo.{operation}" in line]
    found = [re.search(r"algorithm = <[^>]*>|HIGHEST", line) for line in lines]
    return [match[0] if match else "" for match in found]


def update_of(precision):
    """The lowered update of the moments."""
    shapes = (ModelShape(3, 16), ModelShape(2, 24))
    state = moments.zero(shapes)
    buffers = tuple(np.zeros((s.layers, 64, s.neurons), np.float32) for s in shapes)
    buffers = jax.device_put(buffers)
    numbers, structure = jax.tree.flatten((state, buffers, jax.numpy.int32(64)))

    def update(*numbers):
        state, buffers, valid = jax.tree.unflatten(structure, numbers)
        return jax.tree.leaves(moments.update(state, buffers, valid, precision=precision))

    return lowered(jax.jit(update), *numbers)


def test_products_of_statistics_are_of_float32():
    """Not of bfloat16 or TF32."""
    assert set(algorithms_of(update_of("highest"), "dot_general")) == {"HIGHEST"}


@pytest.mark.parametrize(("name", "type_", "products"), PARTS)
def test_every_product_of_statistics_is_by_the_algorithm(name, type_, products):
    (found,) = set(algorithms_of(update_of(name), "dot_general"))
    assert f"lhs_precision_type = {type_}," in found
    assert f"num_primitive_operations = {products}," in found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "type_", "products"), PARTS)
def test_every_product_of_an_encoder_is_by_the_algorithm(name, type_, products, dtype):
    """And convolutions, of which there is none, are of float32."""
    encoder = fixture("wav2vec2-large").encoder.astype(dtype)
    samples = jax.ShapeDtypeStruct((2, 8000), np.float32)
    text = lowered(
        forward, encoder.parameters, samples, jax.ShapeDtypeStruct((2,), np.int32),
        graph=encoder.graph, outputs=EVERYTHING, precision=name,
    )  # fmt: skip
    (found,) = set(algorithms_of(text, "dot_general"))
    assert f"lhs_precision_type = {type_}," in found
    assert f"num_primitive_operations = {products}," in found
    assert set(algorithms_of(text, "convolution")) == {"HIGHEST"}


def test_packing():
    shapes = (ModelShape(3, 16), ModelShape(2, 24))
    buffers = tuple(np.zeros((s.layers, 64, s.neurons), np.float32) for s in shapes)
    hidden = tuple(np.zeros((s.layers, 2, 50, s.neurons), np.float32) for s in shapes)
    lowered(
        jax.jit(moments_accumulator.pack),
        jax.device_put(buffers),
        jax.device_put(hidden),
        tuple(jax.numpy.zeros(64, np.int32) for _ in hidden),
    )


def test_attention():
    """Rows of the maps of all heads for a block of queries, never the maps of all heads."""
    frames, batch, heads, size = 1100, 2, 4, 16
    models = [(3, True), (2, False)]  # layers, with WavLM's gated bias or a conformer's positions
    parts = tuple(
        projected(
            Activations(
                hidden_states=jax.numpy.zeros((1, batch, frames, 1)),
                frame_mask=jax.numpy.ones((batch, frames), bool),
                queries=jax.numpy.zeros((layers, batch, frames, heads, size)),
                keys=jax.numpy.zeros((layers, batch, frames, heads, size)),
                gates=jax.numpy.zeros((layers, batch, heads, frames)) if gated else None,
                position_bias=jax.numpy.zeros((heads, 2 * frames - 1)) if gated else None,
                position_queries=None
                if gated
                else jax.numpy.zeros((layers, batch, frames, heads, size)),
                position_keys=None
                if gated
                else jax.numpy.zeros((layers, heads, 2 * frames - 1, size)),
            ),
            range(1, layers + 1),
            np.zeros(batch, np.int32),
        )
        for layers, gated in models
    )
    state = attention_sums.zero(heads * sum(layers for layers, _ in models))
    lengths = jax.numpy.zeros(batch, np.int32)
    numbers, structure = jax.tree.flatten((state, parts, lengths))

    def update(*numbers):
        state, parts, lengths = jax.tree.unflatten(structure, numbers)
        rows = functools.partial(rows_of_projections, parts)
        return jax.tree.leaves(attention_sums.update(state, rows, lengths, frames))

    text = lowered(jax.jit(update), *numbers)
    assert "HIGHEST" in text
    assert f"x{frames}xf32" in text and f"{frames}x{frames}x" not in text

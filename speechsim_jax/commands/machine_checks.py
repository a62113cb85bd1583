"""The checks of `speechsim selfcheck`: JAX on the default device against float64.

Each check computes something on the device and again in plain float64 numpy (the encoder: in
float64 on the CPU). The bars are a few times the errors of a correct machine.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import speechsim_jax as ss
from speechsim_jax._jax_compat import x64
from speechsim_jax.comparison.arrays import Key
from speechsim_jax.models import weight_names
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.pipeline.attention_inputs import rows_of_maps
from speechsim_jax.settings import ALGORITHMS
from speechsim_jax.statistics import attention_sums, moments, product_precision
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator

_SMALL_TERMS = 10_000

_ENCODER = Wav2Vec2Config(
    family="wav2vec2",
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
_SAMPLES = (8_000, 5_300)

_STREAMS = (ModelShape(2, 16), ModelShape(1, 24))
_ROWS, _BUFFER = 10_000, 1024

_HEADS, _FRAMES = ModelShape(1, 6), (24, 17)


def miscompiled_rows() -> float:
    """Wrong rows of sum((M x)^2), vmapped, in float64: 16385 of 32769 with jaxlib 0.10.2."""
    rng = np.random.default_rng(0)
    m, x = rng.standard_normal((3, 3)), rng.standard_normal((32_769, 3))
    with x64(True):
        got = np.asarray(jax.jit(jax.vmap(lambda row: jnp.sum((m @ row) ** 2)))(x))
    want = np.square(x @ m.T).sum(1)
    return float(np.sum(~(np.abs(got - want) <= 1e-9 * np.abs(want) + 1e-12)))


def product_error() -> float:
    """Largest error of inner products of 1024 numbers, relative to the norms of the two vectors.

    Operands rounded to bfloat16 give 5.8e-4 and to TF32 6.7e-5, so it shows what is multiplied.
    """
    maps = np.random.default_rng(0).standard_normal((128, 1, 1024)).astype(np.float32)
    got = jax.jit(attention_sums.products)(maps)
    x = maps[:, 0].astype(np.float64)
    norms = np.linalg.norm(x, axis=1)
    return float(np.max(np.abs(np.asarray(got) - x @ x.T) / np.outer(norms, norms)))


def lost_small_terms() -> float:
    """Share that is lost of 10,000 terms of 1e-8 added to 1; plain float32 loses them all."""

    @jax.jit
    def summed(small: jax.Array) -> jax.Array:
        start = jnp.array([1, 0], jnp.float32)
        return lax.fori_loop(0, _SMALL_TERMS, lambda _, total: moments.add(total, small), start)

    small = np.float32(1e-8)
    want = _SMALL_TERMS * float(small)
    got = np.asarray(summed(jnp.asarray(small)), np.float64)
    return abs(got[0] - 1 + got[1] - want) / want


def _encoder() -> SpeechEncoder:
    graph, parameters, _ = weight_names.fill(
        _ENCODER, random_tensors(_ENCODER, 0), "random weights"
    )
    return SpeechEncoder("random", _ENCODER, graph, parameters)


def _waves() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [0.1 * rng.standard_normal(size).astype(np.float32) for size in _SAMPLES]


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error over the root mean square, of the worst layer; [layer, frame, neuron]."""
    error = np.abs(got.astype(np.float64) - want).max(axis=(1, 2))
    return float(np.max(error / np.sqrt(np.mean(np.square(want, dtype=np.float64), axis=(1, 2)))))


def encoder_error() -> float:
    """A small random encoder against itself in float64 on the CPU; worst layer, relative."""
    encoder, waves = _encoder(), _waves()
    got = np.asarray(encoder(waves).hidden_states)
    with x64(True), jax.default_device(jax.devices("cpu")[0]):
        double = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), encoder.parameters)
        exact = SpeechEncoder("float64", _ENCODER, encoder.graph, double)
        want = np.asarray(exact(waves).hidden_states)
    return _relative(got[:, 0], want[:, 0])


def batch_error() -> float:
    """An utterance in a padded batch against the same alone; worst layer, relative."""
    encoder, waves = _encoder(), _waves()
    together = np.asarray(encoder(waves).hidden_states)
    alone = np.asarray(encoder(waves[1:]).hidden_states)
    return _relative(together[:, 1, : alone.shape[2]], alone[:, 0])


def covariance_error() -> float:
    """Largest error of a covariance over its neurons' standard deviations, mean / std = 1000."""
    data = product_precision.hard_rows(_STREAMS, _ROWS)
    statistic = MomentsAccumulator(_STREAMS, _BUFFER)
    statistic.append(tuple(jnp.asarray(x[:, None]) for x in data), np.arange(_ROWS))
    return product_precision.covariance_error(statistic.result().finish(), data)


def attention_error() -> float:
    """Largest error of distances, divergences (nats) and correlations of random attention maps."""
    rng = np.random.default_rng(0)
    maps = np.zeros((len(_FRAMES), _HEADS.neurons, _FRAMES[0], _FRAMES[0]), np.float32)
    for heads, size in zip(maps, _FRAMES):
        powers = np.exp(2 * rng.standard_normal((_HEADS.neurons, size, size)))
        heads[:, :size, :size] = powers / powers.sum(-1, keepdims=True)
    statistic = AttentionAccumulator(
        (_HEADS,), rows_of_maps, ("distance", "divergence", "correlation")
    )
    statistic.append(jnp.asarray(maps), np.array(_FRAMES, np.int32), _FRAMES[0])
    means = statistic.result().finish().means
    errors = []
    for a, b in itertools.combinations(range(_HEADS.neurons), 2):
        pairs = [(m[a, :n, :n], m[b, :n, :n]) for m, n in zip(maps.astype(float), _FRAMES)]
        want = _compare_maps(pairs)
        got = means.distance[a, b], means.divergence[a, b], means.correlation[a, b]
        errors.append(np.max(np.abs(np.subtract(got, want))))
    return float(np.max(errors))


def _compare_maps(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float, float]:
    """Mean distance of two heads' maps, and over rows mean divergence and correlation."""
    distances = [np.linalg.norm(p - q) for p, q in pairs]
    rows = [(s, t) for p, q in pairs for s, t in zip(p, q)]
    half = [(s + t) / 2 for s, t in rows]
    divergences = [(s @ np.log(s / m) + t @ np.log(t / m)) / 2 for (s, t), m in zip(rows, half)]
    correlations = [np.corrcoef(s, t)[0, 1] for s, t in rows]
    return float(np.mean(distances)), float(np.mean(divergences)), float(np.mean(correlations))


def scores_missing() -> float:
    """Scores of the measures of the paper, on the hard rows, that are NaN or inf."""
    x, y = product_precision.hard_rows(_STREAMS, _ROWS)
    named: dict[Key, np.ndarray] = {"a/0": x[0], "a/1": x[1], "b/0": y[0]}
    result = ss.compare_activations(named, "paper", stats_dtype="float32", rows_per_update=_BUFFER)
    scores = [result.matrix(name).values for name in result.measures]
    ranking = result.dataset["mincorr_neuron"].values[0, : x.shape[2]]  # ended by NaN
    return float(sum(np.sum(~np.isfinite(values)) for values in (*scores, ranking)))


class Check(NamedTuple):
    """One check.

    Attributes:
      name: what is checked.
      figure: computes the error.
      bar: largest error that passes.
    """

    name: str
    figure: Callable[[], float]
    bar: float


def checks() -> tuple[Check, ...]:
    """All of them; on one x86 CPU, jax 0.10.1, the figures are at most a quarter of the bars."""
    return (
        Check("vmapped products compile to right numbers (wrong rows)", miscompiled_rows, 0),
        Check("float32 products are not rounded (relative error)", product_error, 5e-6),
        Check("compensated sums keep what rounding loses (share lost)", lost_small_terms, 1e-3),
        Check("encoder equals its float64 self (relative error)", encoder_error, 1e-5),
        Check("batch equals single (relative error)", batch_error, 1e-5),
        Check("moments of hard rows (covariance error)", covariance_error, 5e-7),
        Check("attention sums (error)", attention_error, 1e-5),
        Check("scores are numbers (NaN or inf)", scores_missing, 0),
    )


def passes(check: Check) -> bool:
    """Run a check and print its line; one that raises has failed."""
    try:
        figure = check.figure()
    except Exception as error:
        message = " ".join(str(error).split())
        print(f"FAILED {check.name}: {type(error).__name__}: {message[:300]}", flush=True)
        return False
    good = bool(figure <= check.bar)  # not for NaN
    word = "ok    " if good else "FAILED"
    print(f"{word} {check.name}: {figure:.3g} (at most {check.bar:g})", flush=True)
    return good


def print_algorithms() -> None:
    """Print a line for each algorithm of products: its errors and its time, or that it lacks."""
    for name in (product_precision.HIGHEST, *ALGORITHMS):
        found = product_precision.measure_all((name,))
        line = "not on this device"
        for one in found:
            line = (
                f"covariance error {one.error:.3g}, of short products {one.product_error:.3g}, "
                f"{1e3 * one.seconds:.3g} ms an update"
            )
        print(f"       products by {name}: {line}", flush=True)

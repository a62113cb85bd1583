"""A tiny model, a batch and the sums of each objective, for the tests of trainings."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.training import forward, model, random_keys
from speechsim_jax.training.model import CTC, Contrastive, Predictive
from speechsim_jax.training.objectives import contrastive, ctc, predictive, quantizer
from speechsim_jax.training.objectives.masking import Spans
from speechsim_jax.training.random_keys import Dropout, DropoutRates

CONFIG = Wav2Vec2Config(
    family="wav2vec2",
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8,) * 3,  # few, which compile soon; frames are 400 samples every 320 as ever
    conv_kernel=(10, 15, 9),
    conv_stride=(5, 8, 8),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)
LARGE = dataclasses.replace(CONFIG, do_stable_layer_norm=True, feat_extract_norm="layer")
CONTRASTIVE = Contrastive(
    num_codevectors_per_group=5,
    codevector_dim=12,
    proj_codevector_dim=6,
    num_negatives=4,
    feature_penalty=10.0,
)
PREDICTIVE = Predictive(units=7, final_dim=6, pred_nomask_weight=0.5)
TOKENS = CTC(vocab_size=6, pad_token_id=2)
OBJECTIVES = {"contrastive": CONTRASTIVE, "predictive": PREDICTIVE, "ctc": TOKENS}
# One is a filler, one has one frame and so nothing to mask.
LENGTHS = np.array([320 * 25 + 80, 320 * 14 + 200, 0, 400, 320 * 20 + 80], np.int32)
FRAMES = 25


def quick_compiles() -> Iterator[None]:
    """For a fixture: programs that take less time to compile and more to run, as tiny ones may."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def keys_of(count: int, step: int = 0) -> random_keys.Keys:
    return random_keys.utterance_keys(0, step, np.arange(count))


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Samples, clusters and labels; what is past the end must not be read."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((len(LENGTHS), LENGTHS.max())).astype(np.float32)
    clusters = rng.integers(0, PREDICTIVE.units, (len(LENGTHS), FRAMES)).astype(np.int32)
    clusters[0, :3] = -1
    labels = rng.choice([0, 1, 3, 4, 5], (len(LENGTHS), 6)).astype(np.int32)
    counts = np.array([6, 4, 0, 3, 5], np.int32)  # the one of a frame is too short for three
    numbers = np.arange(len(LENGTHS), dtype=np.int32)
    return dict(
        samples=samples,
        lengths=LENGTHS,
        clusters=clusters,
        labels=labels,
        counts=counts,
        numbers=numbers,
    )


@functools.cache
def start(name: str):
    return model.initial(CONFIG, OBJECTIVES[name], 0)


# Of two kinds: each place that drops takes seconds to compile.
RATES = DropoutRates(hidden_dropout=0.1, layerdrop=0.3)


def sums_of(name: str, trained, samples, lengths, clusters, labels, counts, numbers, rates=RATES):
    """One training step's sums of an objective, with everything that a step draws."""
    objective, (graph, _) = OBJECTIVES[name], start(name)
    width = CONFIG.frames(samples.shape[1])
    keys = random_keys.utterance_keys(0, 5, numbers)
    frames = CONFIG.frames(jnp.asarray(lengths))
    masks = ctc.spec_augment(keys, frames, width, 16, Spans(0.5, 3), Spans(0.2, 4))
    encoded = forward.encode(graph, trained, samples, lengths, masks, Dropout(rates, keys))
    if name == "ctc":
        return ctc.sums(trained.head, objective, encoded, labels, counts)
    if name == "predictive":
        return predictive.sums(trained.head, objective, encoded, masks.frames, clusters[:, :width])
    negatives = contrastive.sample_negatives(keys, masks.frames, objective.num_negatives)
    gumbel = quantizer.gumbel_noise(keys, width, 2, objective.num_codevectors_per_group)
    return contrastive.sums(
        trained.head, objective, encoded, masks.frames, negatives, gumbel, jnp.float32(2.0)
    )


def loss_of(name: str, sums) -> jax.Array:
    if name == "ctc":
        return ctc.loss(sums)
    module = contrastive if name == "contrastive" else predictive
    return module.loss(sums, OBJECTIVES[name])


@functools.cache
def step_of(name: str):
    """Loss, sums and gradient of a batch, compiled."""

    def loss(trained, rows):
        sums = sums_of(name, trained, **rows)
        return loss_of(name, sums), sums

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def sums_alone(name: str):
    return jax.jit(lambda trained, rows: sums_of(name, trained, **rows))


encode = jax.jit(forward.encode, static_argnums=0, static_argnames="feature_grad_mult")


def assert_close(a, b, relative: float = 1e-5) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = max(np.abs(y).max(initial=0), 1e-3)
        assert np.abs(x - y).max(initial=0) <= relative * scale


def random_encoded(seed: int, dtype=np.float32) -> forward.Encoded:
    rng = np.random.default_rng(seed)
    last = rng.standard_normal((2, 9, 16)).astype(dtype)
    features = rng.standard_normal((2, 9, 8)).astype(dtype)
    mask = np.arange(9) < np.array([9, 6])[:, None]
    return forward.Encoded(*map(jnp.asarray, (last, features, features, mask)))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

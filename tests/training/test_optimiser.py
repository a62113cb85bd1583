"""AdamW against optax's; parameters that do not decay, and frozen ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.training import model
from speechsim_jax.training.model import CTC
from speechsim_jax.training.optimiser import AdamW
from tests.support.objectives import quick_compiles

quick = pytest.fixture(scope="module", autouse=True)(quick_compiles)

CONFIG = Wav2Vec2Config(
    family="hubert",
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=6,
    conv_dim=(4,) * 2,
    conv_kernel=(10, 4),
    conv_stride=(5, 4),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)
STEPS = 6


@functools.cache
def trained(**changed):
    config = dataclasses.replace(CONFIG, **changed)
    return config, model.initial(config, CTC(), 0)[1]


def gradients(like, number: int, scale: float = 1.0):
    rng = np.random.default_rng(number)
    return jax.tree.map(
        lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32), like
    )


def run(settings: AdamW, start, frozen: bool = False, steps: int = STEPS):
    step = jax.jit(functools.partial(settings.update, steps=STEPS, frozen=frozen))
    state, updated, rates, norms = settings.init(start), start, [], []
    for number in range(steps):
        updated, state, norm, rate = step(gradients(start, number, 0.1 * number), state, updated)
        rates.append(float(rate))
        norms.append(float(norm))
    return updated, state, rates, norms


@pytest.mark.slow
def test_it_is_optax_adamw():
    config, start = trained()
    settings = AdamW(peak_learning_rate=0.01, weight_decay=0.1, warmup_share=0.5, clip_norm=5.0)

    def decays(tensors):
        named = {n: t.ndim > 1 and not n.endswith("weight_g") for n, t in tensors.items()}
        assert {n for n, d in named.items() if not d and not n.endswith("bias")} == {
            "hubert.masked_spec_embed", "hubert.encoder.pos_conv_embed.conv.weight_g",
            *(n for n in tensors if "layer_norm.weight" in n),
        }  # fmt: skip
        return named

    # As torch's tensors in a dictionary: nothing but the numbers is shared with what is tested.
    theirs = {n: jnp.asarray(t) for n, t in model.to_tensors(config, start).items()}
    schedule = settings.learning_rate(STEPS)
    chain = optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.adamw(lambda k: schedule(k + 1), 0.9, 0.98, 1e-6, weight_decay=0.1,
                    mask=decays(theirs)),
    )  # fmt: skip
    state, update, norms = chain.init(theirs), jax.jit(chain.update), []
    for number in range(STEPS):
        g = model.to_tensors(config, gradients(start, number, 0.1 * number))
        norms.append(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in g.values())))
        updates, state = update({n: jnp.asarray(x) for n, x in g.items()}, state, theirs)
        theirs = {name: tensor + updates[name] for name, tensor in theirs.items()}
    updated, adam, rates, ours = run(settings, start)
    assert np.allclose(ours, norms, rtol=1e-6) and norms[1] < 5 < norms[-1]
    for name, tensor in model.to_tensors(config, updated).items():
        assert np.abs(tensor - np.asarray(theirs[name])).max() <= 1e-6, name
    assert int(adam.count) == STEPS
    assert np.allclose(rates, [float(schedule(k + 1)) for k in range(STEPS)])


def test_schedules():
    cosine = AdamW(peak_learning_rate=2.0, warmup_share=0.2, final_share=0.1).learning_rate(100)
    rates = np.array([float(cosine(k)) for k in range(1, 101)])
    assert np.allclose(rates[:20], 2 * np.arange(1, 21) / 20)
    expected = 2 * (0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(81) / 80)) / 2)
    assert np.allclose(rates[19:], expected, atol=1e-6)
    stages = AdamW(
        peak_learning_rate=2.0, schedule="tri-stage", warmup_share=0.1, hold_share=0.4,
        final_share=0.05,
    ).learning_rate(100)  # fmt: skip
    rates = np.array([float(stages(k)) for k in range(1, 101)])
    assert np.allclose(rates[:10], 2 * np.arange(1, 11) / 10)
    assert np.allclose(rates[9:50], 2)
    assert np.allclose(rates[49:], 2 * 0.05 ** (np.arange(51) / 50), rtol=1e-5)
    for steps in (1, 2, 3):
        assert 0 < float(AdamW().learning_rate(steps)(1)) < 5.001e-4


@pytest.mark.slow
def test_what_is_frozen_does_not_move():
    config, start = trained(conv_pos_batch_norm=True)
    heavy = AdamW(peak_learning_rate=0.1, weight_decay=0.5)
    before, norms = model.to_tensors(config, start), []
    for frozen in (False, True):
        updated, _, _, (_, norm) = run(heavy, start, frozen, steps=2)
        norms.append(norm)
        after = model.to_tensors(config, updated)
        still = {name for name in before if np.array_equal(before[name], after[name])}
        statistics = {name for name in before if "running_" in name}
        front_end = {name for name in before if ".feature_extractor." in name}
        assert len(statistics) == 2 and front_end
        assert still == statistics | (front_end if frozen else set())
    assert norms[1] < norms[0]

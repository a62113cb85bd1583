"""All objectives: independence of padding and batch, gradients, names of tensors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.training import model
from speechsim_jax.training.forward import Masks
from speechsim_jax.training.model import Contrastive
from tests.support.objectives import (
    CONFIG,
    CONTRASTIVE,
    FRAMES,
    LARGE,
    LENGTHS,
    OBJECTIVES,
    PREDICTIVE,
    TOKENS,
    assert_close,
    batch,
    encode,
    loss_of,
    quick_compiles,
    start,
    step_of,
    sums_alone,
)

quick = pytest.fixture(scope="module", autouse=True)(quick_compiles)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_batch_is_the_sum_of_its_utterances(name):
    """Alone or together, in a longer batch, next to a filler: the same draws, sums and gradient."""
    rows = batch()
    (_, together), gradient = step_of(name)(start(name)[1], rows)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((together, gradient)))
    longer = rows | {
        "samples": np.pad(rows["samples"], ((0, 0), (0, 777))),
        "clusters": np.pad(rows["clusters"], ((0, 0), (0, 2)), constant_values=-1),
    }
    alone = [
        sums_alone(name)(start(name)[1], {key: x[row : row + 1] for key, x in longer.items()})
        for row in np.flatnonzero(LENGTHS)
    ]
    assert_close(together, jax.tree.map(lambda *parts: sum(parts), *alone))
    junk = rows["samples"] + 1e6 * (np.arange(LENGTHS.max()) >= LENGTHS[:, None])
    again = step_of(name)(start(name)[1], rows | {"samples": junk.astype(np.float32)})
    assert_close(again, ((loss_of(name, together), together), gradient), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_of_fillers(name):
    rows = batch() | {"lengths": 0 * LENGTHS, "counts": 0 * LENGTHS}
    (loss, sums), gradient = step_of(name)(start(name)[1], rows)
    assert float(loss) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((sums, gradient)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictive", "ctc"])  # a straight-through gradient is none
def test_the_gradient_is_the_slope(name):
    """With dropout, masks and skipped layers, a short step against it lowers the loss by that."""
    trained = start(name)[1]
    (first, _), gradient = step_of(name)(trained, batch())
    square = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
    small = 0.01 / math.sqrt(square)
    moved = jax.tree.map(lambda p, g: p - small * g, trained, gradient)
    (then, _), _ = step_of(name)(moved, batch())
    assert float(first - then) == pytest.approx(small * square, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("stable", [False, True])
def test_without_masks_and_dropout_it_is_the_encoder(stable):
    config = LARGE if stable else CONFIG
    graph, trained = model.initial(config, PREDICTIVE, 1)
    samples = batch()["samples"]
    encoded = encode(graph, trained, samples, LENGTHS)
    encoder = SpeechEncoder("test", config, graph, trained.encoder)
    expected = encoder.apply(samples, LENGTHS, Outputs(layers=(1,), features=True), "default")
    assert np.array_equal(encoded.frame_mask, expected.frame_mask)
    mask = np.asarray(encoded.frame_mask)
    for a, b in ((encoded.last, expected.hidden_states[0]), (encoded.features, expected.features)):
        assert np.abs(np.asarray(a)[mask] - np.asarray(b)[mask]).max() <= 1e-5


def test_masked_frames_have_no_influence():
    """Reversing the samples under the mask (same mean and variance) changes nothing."""
    graph, trained = model.initial(LARGE, PREDICTIVE, 1)
    masked = np.zeros((5, FRAMES), bool)
    masked[0, 5:15] = True
    samples, other = batch()["samples"], batch()["samples"].copy()
    in_masked_frames_only = slice(320 * 5 + 80, 320 * 15)
    other[0, in_masked_frames_only] = other[0, in_masked_frames_only][::-1]
    shown, hidden = (
        np.abs(
            np.subtract(
                *(encode(graph, trained, x, LENGTHS, masks).last[0] for x in (samples, other))
            )
        )
        for masks in (Masks(), Masks(jnp.asarray(masked)))
    )
    assert shown.max() > 0.1 and hidden.max() <= 1e-5


@pytest.mark.slow
def test_frozen_convolutions_and_scaled_gradients():
    graph, trained = start("predictive")

    def gradient(scale):
        def total(trained):
            encoded = encode(graph, trained, batch()["samples"], LENGTHS, feature_grad_mult=scale)
            return jnp.sum(encoded.last[..., 0])

        return jax.grad(total)(trained).encoder

    full, tenth, none = (gradient(scale) for scale in (1, 0.1, 0))
    assert_close(
        tenth["feature_extractor"], jax.tree.map(lambda g: 0.1 * g, full["feature_extractor"])
    )
    assert not any(np.any(g) for g in jax.tree.leaves(none["feature_extractor"]))
    for part in ("feature_projection", "encoder"):
        assert_close(tenth[part], full[part])
        assert_close(none[part], full[part])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_to_tensors_and_back(name):
    objective, (_, trained) = OBJECTIVES[name], start(name)
    tensors = model.to_tensors(CONFIG, trained)
    _, again = model.from_tensors(CONFIG, objective, tensors, "ours")
    for a, b in zip(*map(jax.tree.leaves, (trained, again)), strict=True):
        assert np.array_equal(a, b)
    heads = {name for name in tensors if not name.startswith("wav2vec2.")}
    assert heads == {
        "contrastive": {
            "quantizer.codevectors", "quantizer.weight_proj.weight", "quantizer.weight_proj.bias",
            "project_hid.weight", "project_hid.bias", "project_q.weight", "project_q.bias",
        },
        "predictive": {"final_proj.weight", "final_proj.bias", "label_embs_concat"},
        "ctc": {"lm_head.weight", "lm_head.bias"},
    }[name]  # fmt: skip
    assert "wav2vec2.masked_spec_embed" in tensors


def test_all_tensors_that_do_not_fit_are_named():
    tensors = model.to_tensors(CONFIG, start("ctc")[1])
    tensors["lm_head.bias"] = np.zeros(5, np.float32)
    tensors["final_proj.bias"] = np.zeros(2, np.float32)
    del tensors["wav2vec2.masked_spec_embed"]
    with pytest.raises(UserError) as error:
        model.from_tensors(CONFIG, TOKENS, tensors, "folder")
    assert str(error.value) == (
        "folder: the head does not fit the objective; final_proj.bias [2] instead of nothing, "
        "lm_head.bias [5] instead of [6], masked_spec_embed missing instead of [16]"
    )
    with pytest.raises(UserError, match="not a multiple of num_codevector_groups 3"):
        Contrastive(num_codevector_groups=3)


def test_initial_model_of_a_fine_tuning():
    pretrained = model.to_tensors(CONFIG, model.initial(CONFIG, CONTRASTIVE, 3)[1])
    _, trained = model.initial(CONFIG, TOKENS, 4, pretrained)
    tensors = model.to_tensors(CONFIG, trained)
    for name in pretrained.keys() & tensors.keys():
        assert np.array_equal(tensors[name], pretrained[name])
    assert sum(name.startswith("wav2vec2.") for name in tensors) == len(tensors) - 2
    other = model.to_tensors(CONFIG, model.initial(CONFIG, TOKENS, 5)[1])
    assert not np.array_equal(tensors["lm_head.weight"], other["lm_head.weight"])
    bound = 1 / 4
    hid = pretrained["project_hid.weight"], pretrained["project_hid.bias"]
    assert all(0.5 * bound < np.abs(x).max() <= bound for x in hid)

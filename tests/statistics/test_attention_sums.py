"""Attention sums against maps written out: every head measure, any batching, hard cases."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsim_jax._jax_compat import x64
from speechsim_jax.measures import MeasureSelection, attention
from speechsim_jax.measures.attention import MEASURES
from speechsim_jax.measures.scoring import score_all
from speechsim_jax.pipeline.attention_inputs import projected, rows_of_maps, rows_of_projections
from speechsim_jax.statistics import attention_finished, attention_sums
from speechsim_jax.statistics.attention_accumulator import AttentionAccumulator
from speechsim_jax.statistics.attention_finished import AttentionState, FinishedAttention
from speechsim_jax.statistics.attention_sums import AttentionSums
from speechsim_jax.statistics.moments import ModelShape
from tests.support import reference, tolerances
from tests.support.golden import GOLDEN
from tests.support.parity import fixture

EVERYTHING = ("distance", "divergence", "correlation")
HEAD_MEASURES = {
    f"attn_{name}": getattr(attention, name)
    for name in ("frobenius", "js", "pearson", "frobenius_norm", "js_bits", "pearson_exact")
}
LAYER_MEASURES = {m.name: m for m in MEASURES if m.name not in HEAD_MEASURES}

BASELINES = [getattr(reference, name) for name in attention_sums.BASELINES]

# An odd number of heads in all, and a representation of a single one.
SHAPES = (ModelShape(2, 3), ModelShape(1, 1))
FRAMES = 20
LENGTHS = (20, 13, 1, 8)
UNIFORM, ONE_HOT = 1, 2  # heads of the first representation

Maps = list[np.ndarray]
"""[head, query, key] for each utterance, float64."""


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def draw(heads: int, lengths=LENGTHS, seed: int = 0) -> Maps:
    """Heads that look somewhere near (each at its own distance) and elsewhere."""
    rng = np.random.default_rng(seed)
    sharpness, reach = rng.uniform(0.3, 3, (2, heads, 1, 1))
    maps = []
    for frames in lengths:
        apart = np.arange(frames) - np.arange(frames)[:, None]
        scores = sharpness * rng.standard_normal((heads, frames, frames))
        maps.append(softmax(scores - np.abs(apart - 2 * reach) / (2 * reach)))
    return maps


def special() -> Maps:
    """With a head that is uniform and one whose rows are one-hot."""
    maps = draw(7)
    for one in maps:
        one[UNIFORM] = 1 / one.shape[1]
        one[ONE_HOT] = np.eye(one.shape[1])[one[ONE_HOT].argmax(1)]
    return maps


def padded(maps: Maps, frames: int, fillers: int = 0, dtype: str = "float32") -> jax.Array:
    """One array, NaN where there is no cell and in filler rows."""
    whole = np.full((len(maps) + fillers, len(maps[0]), frames, frames), np.nan, dtype)
    for place, one in zip(whole, maps):
        place[:, : one.shape[1], : one.shape[2]] = one
    with x64(dtype == "float64"):
        return jnp.asarray(whole)


def lengths_of(maps: Maps, fillers: int = 0) -> np.ndarray:
    return np.array([one.shape[1] for one in maps] + [0] * fillers, np.int32)


def stream(
    maps: Maps, shapes=SHAPES, dtype: str = "float32", frames: int = FRAMES, needed=EVERYTHING
) -> FinishedAttention:
    """All utterances and a filler in one batch."""
    statistic = AttentionAccumulator(shapes, rows_of_maps, needed, dtype)
    statistic.append(padded(maps, frames, 1, dtype), lengths_of(maps, 1), frames)
    statistic.wait()
    finished = statistic.result().finish()
    assert finished.utterances == len(maps)
    return finished


@functools.partial(jax.jit, static_argnames=("frames", "cells_at_once", "logarithms_at_once"))
def add(
    state: AttentionSums, maps: jax.Array, lengths: np.ndarray, frames: int, **at_once: int
) -> AttentionSums:
    """`update`, compiled once for all tests that add as many heads in float32."""
    rows = functools.partial(rows_of_maps, maps)
    return attention_sums.update(state, rows, lengths, frames, **at_once)


def batched(
    maps: Maps, size: int, frames: int = FRAMES, dtype: str = "float32", **at_once: int
) -> AttentionSums:
    """The state after batches of `size`, ended by fillers."""
    with x64(dtype == "float64"):
        state = attention_sums.zero(len(maps[0]), dtype)
        for start in range(0, len(maps), size):
            batch = maps[start : start + size]
            fillers = size - len(batch)
            arrays = padded(batch, frames, fillers, dtype), lengths_of(batch, fillers)
            state = add(state, *arrays, frames, **at_once)
    return state


# Eight or ten rows at once: each is some operations in the program, which compiles sooner.
FEW_ROWS = {"cells_at_once": 600}


def state_of(
    sums: AttentionSums, maps: Maps, shapes=SHAPES, dtype: str = "float32"
) -> AttentionState:
    host = jax.tree.map(lambda x: np.asarray(x, np.float64).sum(axis=0), sums)
    lengths = tuple(one.shape[1] for one in maps)
    return AttentionState(shapes, (), dtype, host, lengths, (0,) * len(lengths))


def finish(
    sums: AttentionSums, maps: Maps, shapes=SHAPES, dtype: str = "float32"
) -> FinishedAttention:
    return state_of(sums, maps, shapes, dtype).finish()


def score_attention(finished: FinishedAttention, measures=MEASURES):
    """Matrices and details of these measures."""
    scores = score_all({"attention": finished}, MeasureSelection(tuple(measures)))
    return scores.matrices, scores.extras


def batched_and_finished(maps: Maps, size: int) -> FinishedAttention:
    return finish(batched(maps, size), maps)


def similarities(finished: FinishedAttention) -> dict[str, np.ndarray]:
    """Heads against heads, and behind them against the two baselines: [head, head + 2] each."""
    return {
        name: np.concatenate([of_heads(finished.means), of_heads(finished.baselines).T], axis=1)
        for name, of_heads in HEAD_MEASURES.items()
    }


def written_out(maps: Maps) -> dict[str, np.ndarray]:
    """The same, by plain loops."""
    of_head = [[one[head] for one in maps] for head in range(len(maps[0]))]
    out = {name: np.empty((len(of_head), len(of_head) + 2)) for name in HEAD_MEASURES}
    for i, a in enumerate(of_head):
        baselines = [[baseline(one) for one in a] for baseline in BASELINES]
        for j, b in enumerate([*of_head, *baselines]):
            for name, value in reference.compare_maps(a, b).items():
                out[name][i, j] = value
    return out


def worst(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest differences; of the unbounded score in units of the distance that it holds."""
    assert a.keys() == b.keys()
    units = {"attn_frobenius": np.maximum(1 - b["attn_frobenius"], 1)}
    return {name: float(np.max(np.abs(a[name] - b[name]) / units.get(name, 1))) for name in a}


@functools.cache
def expected() -> dict[str, np.ndarray]:
    return written_out(special())


@functools.cache
def double() -> FinishedAttention:
    """In float64, blocks of seven rows: they do not divide 20 and 13 (float32 has one block)."""
    maps = special()
    sums = batched(maps, 5, dtype="float64", cells_at_once=150, logarithms_at_once=60)
    return finish(sums, maps, dtype="float64")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-9), ("float32", 1e-5)])
def test_golden(dtype, bar):
    names = [str(name) for name in GOLDEN["attention_networks"]]
    maps = [np.concatenate([GOLDEN[f"a_{name}_{u}"] for name in names]) for u in range(3)]
    shapes = (ModelShape(2, 3), ModelShape(1, 4))
    finished = finish(batched(maps, 4, 56, dtype, **FEW_ROWS), maps, shapes, dtype)
    matrices, _ = score_attention(finished)
    golden = {"attn_frobenius": "attn_fro", "attn_js": "attn_js", "attn_pearson": "attn_pearson"}
    for name, key in golden.items():
        apart = np.abs(matrices[name] - GOLDEN[key])
        assert np.isnan(apart).sum() == 3  # the source leaves the diagonal out
        assert np.nanmax(apart) <= bar, name


def test_equals_the_maps_written_out():
    finished = double()
    assert (finished.utterances, finished.frames, finished.moments.rows) == (
        4,
        42,
        20**2 + 13**2 + 1 + 64,
    )
    errors = worst(similarities(finished), expected())
    assert max(errors.values()) <= 1e-12, errors


@pytest.mark.parametrize(("dtype", "bar"), [("float64", 1e-9), ("float32", 2e-4)])
def test_layers_with_cells_as_rows(dtype, bar):
    maps = special()
    finished = double() if dtype == "float64" else batched_and_finished(maps, 5)
    matrices, _ = score_attention(finished, LAYER_MEASURES.values())
    cells = np.concatenate([one.reshape(7, -1) for one in maps], axis=1).T
    representations = [cells[:, where] for where in finished.heads]
    for name, measure in LAYER_MEASURES.items():
        oracle = reference.MEASURES[name.removeprefix("attn_")]
        by_hand = np.array([[oracle(x, y) for y in representations] for x in representations])
        assert np.max(np.abs(matrices[name] - by_hand)) <= (1e-5 if "lincka" in name else bar), name
        assert measure.symmetric == (name != "attn_pwcca")


def test_a_constant_head_is_a_dead_neuron():
    """Uniform maps of one length are one number: nothing is made of how it is rounded."""
    maps, rng = draw(7, (13, 13)), np.random.default_rng(0)
    for one in maps:
        one[UNIFORM] = (1 + 6e-8 * rng.integers(-1, 2, (13, 13))) / 13
    finished = batched_and_finished(maps, 5)
    assert np.flatnonzero(~finished.moments.representations[0].live).tolist() == [UNIFORM]
    matrices, _ = score_attention(finished, LAYER_MEASURES.values())
    cells = np.concatenate([one.reshape(7, -1) for one in maps], axis=1).T
    x, y = cells[:, [0, 2]], cells[:, 3:6]
    for name in LAYER_MEASURES:
        oracle = reference.MEASURES[name.removeprefix("attn_")]
        assert matrices[name][0, 1] == pytest.approx(oracle(x, y), abs=1e-5)


@pytest.mark.parametrize("many", [1, 2, 5])
def test_every_pair_is_met_around_the_circle(many):
    (maps,) = draw(many, (6,))
    around = attention_sums.divergences(jnp.asarray(maps.reshape(many, -1), jnp.float32))
    assert around.shape == (many, attention_sums.steps(many))
    square = [[sum(map(reference.jensen_shannon, a, b)) for b in maps] for a in maps]
    np.testing.assert_allclose(
        attention_finished._unrolled(np.asarray(around, np.float64)), square, atol=1e-5
    )


def test_logarithms():
    tiny = np.finfo(np.float32).tiny
    x = np.geomspace(tiny, 4, 100_001, dtype=np.float32)
    x = np.concatenate([x, np.linspace(0.5, 2, 100_001, dtype=np.float32)])
    exact = np.log(x.astype(np.float64))
    logarithms = np.asarray(attention_sums._log(jnp.asarray(x)), np.float64)
    assert (logarithms[x == 1] == 0).all()
    some = x != 1
    assert np.abs(logarithms / np.where(some, exact, 1) - 1)[some].max() <= 2.5e-7


def test_hard_rows():
    similar = similarities(batched_and_finished(special(), 5))
    assert np.all(similar["attn_pearson_exact"][UNIFORM] == 0)  # with itself, too
    assert similar["attn_pearson_exact"][0, 0] == pytest.approx(1, abs=1e-6)
    # One-hot rows against themselves elsewhere: divergence log 2 for each row that moved.
    moved = [one[ONE_HOT].argmax(1) != reference.shift(one[ONE_HOT]).argmax(1) for one in special()]
    apart = np.concatenate(moved).mean()
    assert 0 < apart < 1
    assert similar["attn_js_bits"][ONE_HOT, 7 + 1] == pytest.approx(1 - apart, abs=1e-6)


def test_batches_equal_single_utterances_in_any_order():
    maps = special()
    whole = similarities(batched_and_finished(maps, 5))
    assert max(worst(whole, expected()).values()) <= 1e-5
    for order, size in (((0, 1, 2, 3), 1), ((3, 1, 0, 2), 5), ((2, 3, 1, 0), 1)):
        other = similarities(batched_and_finished([maps[i] for i in order], size))
        assert max(worst(whole, other).values()) <= 1e-7, (order, size)
    # An utterance by itself, in an array of its own length.
    alone = similarities(stream(maps[1:2], frames=13))
    assert max(worst(alone, similarities(batched_and_finished(maps[1:2], 5))).values()) <= 1e-6


def test_merged_states_equal_one_stream():
    maps = special()
    whole = similarities(finish(batched(maps, 5), maps))
    nothing = state_of(attention_sums.zero(7), [])
    everything = state_of(batched(maps, 5), maps)
    head, tail = (state_of(batched(part, 5), part) for part in (maps[:1], maps[1:]))
    for a, b in ((head, tail), (nothing, everything)):
        for merged in (a.merge([b]), b.merge([a])):
            errors = worst(similarities(merged.finish()), whole)
            assert max(errors.values()) <= 1e-7, errors


def test_utterances_of_one_frame():
    """They differ in nothing and have no correlation."""
    similar = similarities(batched_and_finished([np.ones((7, 1, 1))] * 2, 5))
    for name, values in similar.items():
        assert np.all(np.isnan(values) if "pearson" in name else values == 1), name
    maps = special()
    without = similarities(batched_and_finished([*maps[:2], maps[3]], 5))
    for name in ("attn_pearson", "attn_pearson_exact"):
        assert np.max(np.abs(without[name] - expected()[name])) <= 1e-5


@pytest.mark.parametrize("needed", [("correlation",), ()])
def test_sums_that_are_not_needed_are_left_out(needed):
    maps = special()
    whole, part = batched_and_finished(maps, 5), stream(maps, needed=needed)
    for name in EVERYTHING:
        for sums, those in ((whole.means, part.means), (whole.baselines, part.baselines)):
            if name in needed:
                a, b = getattr(sums, name), getattr(those, name)
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert not part.means.distance.any() and not part.means.divergence.any()
    assert part.means.correlation.any() == ("correlation" in needed)
    x, y = whole.moments.representations[:2], part.moments.representations[:2]
    a, b = whole.moments.scatter(*x), part.moments.scatter(*y)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def nearly_alike() -> Maps:
    """Four heads, and the same with cells changed by 1e-4 of themselves."""
    rng = np.random.default_rng(5)
    maps = draw(4, (64, 40), seed=4)
    changed = [one * (1 + 1e-4 * rng.standard_normal(one.shape)) for one in maps]
    changed = [one / one.sum(-1, keepdims=True) for one in changed]
    return [np.concatenate(pair) for pair in zip(maps, changed)]


@pytest.mark.slow
def test_nearly_equal_maps(monkeypatch):
    maps, shapes = nearly_alike(), (ModelShape(1, 4), ModelShape(1, 4))
    by_hand = written_out(maps)
    finished = finish(batched(maps, 2, frames=64, **FEW_ROWS), maps, shapes)
    errors = worst(similarities(finished), by_hand)
    assert max(errors.values()) <= 1e-5, errors
    # Without the sums of differences, |A|^2 + |B|^2 - 2 <A, B> has no digits left.
    monkeypatch.setattr(attention_sums, "_CANCELLED", 0.0)
    errors = worst(similarities(stream(maps, shapes, frames=64)), by_hand)
    assert errors["attn_frobenius"] > 1e-4
    assert errors["attn_js"] <= 1e-5


def test_a_model_and_its_copy():
    half = draw(4, (64, 40), seed=4)
    maps = [np.concatenate([one, one]) for one in half]
    finished = finish(
        batched(maps, 2, frames=64, **FEW_ROWS), maps, (ModelShape(1, 4), ModelShape(1, 4))
    )
    errors = worst(similarities(finished), written_out(maps))
    assert max(errors.values()) <= 1e-5, errors
    matrices, extras = score_attention(finished)
    assert np.all(matrices["attn_frobenius"] == 1)
    for name in ("attn_js", "attn_pearson_exact", "attn_lincka", "attn_svcca"):
        np.testing.assert_allclose(matrices[name], 1, atol=1e-5)
    for name in HEAD_MEASURES:
        match = extras[f"{name}_match"][1]
        np.testing.assert_array_equal(match[0, 1], range(4), err_msg=name)


def test_scores_and_what_stands_beside_them():
    """Representations of three heads and of one: what is missing is NaN or -1."""
    finished = batched_and_finished(special(), 5)
    matrices, extras = score_attention(finished)
    by_hand = similarities(finished)
    assert extras["baseline"][1].tolist() == list(attention_sums.BASELINES)
    limits = {measure.name: measure.limits for measure in MEASURES}
    assert matrices.keys() == limits.keys()
    for name in HEAD_MEASURES:
        dims, blocks = extras[f"{name}_heads"]
        assert dims == ("x_attention", "y_attention", "head_x", "head_y")
        assert blocks.shape == (3, 3, 3, 3)
        best, match, baseline = (extras[f"{name}_{k}"][1] for k in ("best", "match", "baseline"))
        for i, j in np.ndindex(3, 3):
            block = by_hand[name][finished.heads[i], finished.heads[j]]
            rows, columns = block.shape
            np.testing.assert_allclose(blocks[i, j, :rows, :columns], block, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(best[i, j, :rows], block.max(1), rtol=1e-6, atol=1e-6)
            np.testing.assert_array_equal(match[i, j, :rows], block.argmax(1))
            mean = np.clip(block.max(1).mean(), *limits[name])  # rounding may leave them
            assert matrices[name][i, j] == pytest.approx(mean, abs=1e-12)
            assert np.isnan(blocks[i, j, rows:]).all() and np.isnan(blocks[i, j, :, columns:]).all()
            assert np.isnan(best[i, j, rows:]).all() and np.all(match[i, j, rows:] == -1)
        assert extras[f"{name}_baseline"][0] == ("x_attention", "baseline", "head_x")
        flat = np.concatenate([baseline[0], baseline[1], baseline[2, :, :1]], axis=1)
        np.testing.assert_allclose(flat, by_hand[name][:, 7:].T, rtol=1e-6, atol=1e-6)


@given(
    st.integers(0, 2**32),
    st.floats(0, 30),
    st.lists(st.integers(1, FRAMES), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=30)
def test_ranges_and_symmetry(seed, sharpness, lengths):
    rng = np.random.default_rng(seed)
    maps = [softmax(sharpness * rng.standard_normal((7, n, n))) for n in lengths]
    finished = batched_and_finished(maps, 5)
    values = similarities(finished)
    rounding = 2e-6
    for measure in MEASURES:
        if measure.name in HEAD_MEASURES and not ("pearson" in measure.name and max(lengths) == 1):
            low, high = measure.limits
            assert np.all(values[measure.name] >= low - rounding), measure.name
            assert np.all(values[measure.name] <= high + rounding), measure.name
            square = values[measure.name][:, :7]
            np.testing.assert_allclose(square, square.T, rtol=0, atol=rounding)
    assert np.all(np.diagonal(values["attn_js"]) == 1)
    assert np.all(np.diagonal(values["attn_frobenius"]) == 1)


def test_limits_are_those_of_the_definitions():
    limits = {m.name: m.limits for m in MEASURES}
    assert limits["attn_js"] == (1 - math.log(2), 1) and limits["attn_frobenius_norm"] == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["wav2vec2-base", "wavlm-base"])
def test_rows_of_an_encoder_in_any_order(layout):
    """What the encoder hands out makes the maps that it uses itself, row by row."""
    acts = fixture(layout).together
    parts = projected(acts, range(1, len(acts.attentions) + 1), acts.frame_mask.sum(axis=1))
    frames = acts.frame_mask.shape[1]
    order = jnp.asarray(np.random.default_rng(0).permutation(frames))
    for utterance in (0, 1):
        rows = rows_of_projections((parts,), jnp.int32(utterance), order)
        maps = acts.attentions[:, utterance].reshape(-1, frames, frames)
        assert np.max(np.abs(rows - maps[:, order])) <= tolerances.PARITY_ATTENTION
        mask = np.asarray(acts.frame_mask[utterance])
        assert not np.asarray(rows)[:, :, ~mask].any()


@pytest.mark.slow
def test_encoders_into_the_sums():
    """From queries and keys of two models as from their maps, blocks of rows in between."""
    models = [fixture(layout).together for layout in ("wav2vec2-base", "wavlm-base")]
    lengths = np.asarray(models[0].frame_mask.sum(axis=1), np.int32)
    frames = models[0].frame_mask.shape[1]
    shapes = tuple(ModelShape(len(a.attentions), a.attentions.shape[2]) for a in models)
    blocks = [tuple(range(1, len(acts.attentions) + 1)) for acts in models]
    parts = tuple(projected(a, b, lengths) for a, b in zip(models, blocks))
    statistic = AttentionAccumulator(shapes, rows_of_projections, EVERYTHING)
    statistic.append(parts, lengths, frames)
    similar = similarities(statistic.result().finish())
    maps = [
        np.concatenate([np.asarray(a.attentions[:, u]).reshape(-1, frames, frames) for a in models])
        for u in range(len(lengths))
    ]
    whole = [m[:, :n, :n].astype(np.float64) for m, n in zip(maps, lengths) if n]
    errors = worst(similar, written_out(whole))
    assert max(errors.values()) <= 1e-5, errors

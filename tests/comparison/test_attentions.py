"""The attention level from audio, and from arrays: the same numbers; and what is refused."""

import logging

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.comparison import attentions
from speechsim_jax.errors import UserError
from speechsim_jax.measures import attention
from speechsim_jax.pipeline import costs
from tests.support import tolerances
from tests.support.parity import fixture

pytestmark = pytest.mark.slow

LAYOUTS = ("wav2vec2-base", "wavlm-base", "conformer-relative")
# The number of each in the parity fixtures; 15, 5, 15 and 1 frames.
UTTERANCES = {"a": 2, "b": 1, "c": 7, "d": 0}
# One padded shape, shared by the tests: every other one costs them a compilation per encoder.
QUICK = dict(batch_seconds=1, buckets=1, progress=False)


@pytest.fixture(scope="module", autouse=True)
def small_maps():
    """A row of a map is a few operations in the program: maps of few frames compile sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attentions, "_LENGTH_STEP", 16)
        yield


@pytest.fixture(scope="module")
def audio():
    return {name: fixture(LAYOUTS[0]).waves[index] for name, index in UTTERANCES.items()}


@pytest.fixture(scope="module")
def encoders():
    return [fixture(layout).encoder for layout in LAYOUTS]


@pytest.fixture(scope="module")
def streamed(encoders, audio):
    return ss.compare(encoders, audio, measures="all", levels=["attention"], **QUICK)


@pytest.fixture(scope="module")
def from_maps():
    """From each utterance by itself, not padded."""
    maps = {}
    for layout in LAYOUTS:
        case = fixture(layout)
        result = [np.asarray(case.alone(index).attentions) for index in UTTERANCES.values()]
        for layer in range(case.encoder.config.num_hidden_layers):
            maps[layout, layer + 1] = [one[layer, 0] for one in result]
    return ss.compare_attentions(maps, "all")


@pytest.mark.parametrize("measure", [m.name for m in attention.MEASURES])
def test_queries_and_keys_in_padded_batches_give_what_whole_maps_give(measure, streamed, from_maps):
    a, b = streamed.matrix(measure), from_maps.matrix(measure)
    assert a.dims == ("x_attention", "y_attention")
    assert list(a.x_attention.values) == list(b.x_attention.values)
    assert np.isfinite(b).all()
    assert np.abs(a.values - b.values).max() <= tolerances.ATTENTION_MEASURES


def test_representations_of_attention_start_at_layer_one(streamed, encoders, audio):
    assert [n.layer for n in streamed.attention_representations] == [1, 2, 3] * 3
    assert [n.layer for n in streamed.representations] == [0, 1, 2, 3] * 3
    assert streamed.attributes["attention"] == {
        "utterances": 4,
        "frames": sum(encoders[0].config.frames(len(wave)) for wave in audio.values()),
    }


def test_a_seeded_choice_of_utterances(encoders, audio, caplog):
    with caplog.at_level(logging.INFO):
        result = ss.compare(
            encoders[:1], audio, measures="attn_js,lincka", attention_max_seconds=0.45,
            layers=(1, 2), **QUICK,
        )  # fmt: skip
    utterances = result.attributes["attention"]["utterances"]
    assert 0 < utterances < len(audio)
    assert result.attributes["utterances"] == len(audio)  # the other levels read all
    assert f"attention of {utterances} utterances" in caplog.text and "head pairs" in caplog.text
    assert result.measures == ("attn_js", "lincka")  # as asked for


def test_the_estimate_counts_pairs_and_cells():
    small, large = (costs.estimate(8, n, ("divergence",)) for n in (1_000, 100_000_000))
    assert small.head_pairs == 36 and large.cells == 100_000_000
    assert large.operations == pytest.approx(1e5 * small.operations)
    assert large.seconds is not None and large.seconds > 0


def test_many_cells_of_few_heads_are_measured(monkeypatch):
    """However few their operations are: 1e8 cells of two heads."""
    monkeypatch.setattr(costs, "attention_seconds_per_cell", lambda heads, needed: 1e-6)
    many = costs.estimate(2, 100_000_000, ("distance",))
    assert many.operations < 1e10 and many.seconds == pytest.approx(100)
    assert str(many).endswith("about 1.7 min")


def test_of_few_cells_nothing_is_measured(monkeypatch):
    monkeypatch.delattr(costs, "attention_seconds_per_cell")
    small = costs.estimate(8, 1_000, ("divergence",))
    assert small.seconds is None
    assert str(small).endswith("operations, under a minute")


def test_an_encoder_that_was_rounded_stays_so_and_the_result_says_it(encoders, audio):
    rounded = encoders[0].astype("bfloat16")
    settings = dict(measures="lincka", layers=(1, 2), **QUICK)
    by_hand = ss.compare([rounded], audio, **settings)
    by_setting = ss.compare([encoders[0]], audio, model_dtype="bfloat16", **settings)
    full = ss.compare([encoders[0]], audio, **settings)
    a, b, c = (result.matrix("lincka").values for result in (by_hand, by_setting, full))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    (model,) = by_hand.attributes["models"].values()
    assert model["kernels"] == "bfloat16"


def test_no_usable_utterance_for_attention(encoders, audio):
    # the shortest alone fits, and it is broken
    broken = {"nan": np.full(450, np.nan, np.float32), **audio}
    del broken["d"]
    with pytest.raises(UserError, match="none of the utterances chosen"):
        ss.compare(
            encoders[:1], broken, measures="attn_js,lincka", attention_max_seconds=0.03,
            layers=(1, 2), **QUICK,
        )  # fmt: skip


def test_refusals(encoders, audio):
    with pytest.raises(UserError, match="attention_max_seconds is 0"):
        ss.compare(encoders, audio, measures="attn_js", attention_max_seconds=0)
    with pytest.raises(UserError, match="no measure of the attention level"):
        ss.compare(encoders, audio, attention_max_seconds=5)
    with pytest.raises(UserError, match="layer 0 has no attention"):
        ss.compare(encoders, audio, measures="attn_js", layers=(0,), progress=False)
    with pytest.raises(UserError, match="use compare_attentions"):
        ss.compare_activations({"a": np.zeros((9, 2))}, ["attn_js"])
    even = np.full((2, 3, 3), 1 / 3)
    for maps, message in (
        ({}, "no attentions"),
        ({"a": []}, "no utterances"),
        ({"a/1": [even], ("a", 1): [even]}, "same model and layer"),
        ({"a": [even[0]]}, "expected an array"),
        ({"a": [even[:, :2]]}, "expected an array"),
        ({"a": [even], "b": [np.full((2, 4, 4), 1 / 4)]}, "3 frames|4 frames"),
        ({"a": [even, even], "b": [even]}, "has 1 utterances"),
        ({"a": [even / 2]}, "sum to 1"),
        ({"a": [even * [2, 2, -1]]}, "without negatives"),
        ({"a": [even * np.nan]}, "NaN or inf in head 0, query 0"),
        ({"a": [even, even[:1]]}, "another number of heads"),
    ):
        with pytest.raises(UserError, match=message):
            ss.compare_attentions(maps)
    with pytest.raises(UserError, match="no measure of level attention"):
        ss.compare_attentions({"a": [even]}, ["lincka"])

"""The null of whole comparisons of encoders, against that of the same rows as arrays."""

import dataclasses

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from tests.support.budgets import several_passes_gb
from tests.support.same_result import assert_same_result
from tests.support.small_models import QUICK, of_speakers

MEASURES = "maxcorr,linreg,lincka,svcca"
SETTINGS = QUICK | {"measures": MEASURES, "null_draws": 2, "max_seconds": 1, "errors": "none"}
NULLS = ("shift", "swap")
# Of scores of float32 sums by another way.
BAR = 5e-5


@pytest.fixture(scope="module")
def corpus():
    """12 utterances of 5 speakers, about half of them cut into two pieces."""
    return of_speakers(12, 5)


@pytest.fixture(scope="module")
def results(encoders, corpus) -> dict[str, ss.SimilarityResult]:
    return {null: ss.compare(encoders, corpus, null=null, **SETTINGS) for null in NULLS}


def assert_same_null(found: ss.SimilarityResult, expected: ss.SimilarityResult) -> None:
    for name in MEASURES.split(","):
        for end in ("", "_null", "_null_std", "_calibrated"):
            np.testing.assert_allclose(
                found.matrix(name + end), expected.matrix(name + end), atol=BAR, err_msg=name + end
            )


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
def test_it_is_that_of_the_rows(null, encoders, corpus):
    """Each utterance encoded alone, none of them cut."""
    rows: dict[str, list[np.ndarray]] = {}
    utterances, speakers = [], []
    for source in corpus.sources:
        for encoder in encoders:
            states = np.asarray(encoder([source.samples]).hidden_states, np.float64)[:, 0]
            for layer, of_layer in enumerate(states):
                rows.setdefault(f"{encoder.name}/{layer}", []).append(of_layer)
        utterances += [source.id] * len(states[0])
        speakers += [source.speaker] * len(states[0])
    arrays = {name: np.concatenate(parts) for name, parts in rows.items()}
    expected = ss.compare_activations(
        arrays, MEASURES, null=null, null_draws=2, utterances=utterances, groups=speakers,
        rank_tolerance=1e-6,
    )  # fmt: skip
    whole = SETTINGS | {"max_seconds": 60}
    assert_same_null(ss.compare(encoders, corpus, null=null, **whole), expected)


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_seconds": 1, "rows_per_update": 30},
        {"batch_seconds": 20, "buckets": 3},
        {"passes": "several"},
        {"stats_dtype": "float64", "rank_tolerance": 1e-6},
    ],
    ids=["batches", "buckets", "passes", "float64"],
)
def test_neither_batches_nor_passes_change_it(null, settings, encoders, corpus, results):
    if "passes" in settings:
        budget = several_passes_gb(ss.compare, encoders, corpus, null=null, **SETTINGS)
        settings = {"device_memory_gb": budget}
    other = ss.compare(encoders, corpus, null=null, **SETTINGS | settings)
    assert_same_null(other, results[null])
    assert (other.attributes["passes"] > 1) == ("device_memory_gb" in settings)


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
def test_shards_merge_to_it(null, encoders, corpus, results, tmp_path):
    for shard in ("2/3", "1/3", "3/3"):
        ss.accumulate(encoders, corpus, null=null, shard=shard, statistics_dir=tmp_path, **SETTINGS)
    merged = ss.merge([tmp_path], progress=False)
    assert_same_result(merged, results[null])
    assert_same_null(merged, results[null])
    assert merged.attributes["null"] == {"kind": null, "draws": 2}


@pytest.mark.slow
@pytest.mark.parametrize("null", NULLS)
def test_it_survives_an_interruption(null, encoders, corpus, results, tmp_path, monkeypatch):
    from speechsim_jax.pipeline.accumulators import Accumulators

    settings = SETTINGS | {"statistics_dir": tmp_path, "checkpoint_every": 0, "null": null}
    append, calls = Accumulators.append, []

    def stop_at_fourth(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(Accumulators, "append", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        ss.compare(encoders, corpus, **settings)
    monkeypatch.setattr(Accumulators, "append", append)
    assert_same_null(ss.compare(encoders, corpus, **settings), results[null])


@pytest.mark.slow
def test_a_partner_that_cannot_be_read_is_left_out(encoders, corpus):
    """Its pairs are missing in both sums, and the rest is as without it."""
    broken = dataclasses.replace(corpus.sources[3], samples=np.zeros(0, np.float32))
    with_broken = dataclasses.replace(
        corpus, sources=(*corpus.sources[:3], broken, *corpus.sources[4:])
    )
    result = ss.compare(encoders, with_broken, null="swap", **SETTINGS)
    assert len(result.attributes["skipped"]) == 1
    assert np.isfinite(result.matrix("lincka_null")).all()


@pytest.mark.slow
def test_one_speaker_has_no_other(encoders, corpus):
    alone = tuple(dataclasses.replace(source, speaker="s") for source in corpus.sources)
    with pytest.raises(UserError, match="speakers"):
        ss.compare(encoders, dataclasses.replace(corpus, sources=alone), null="swap", **SETTINGS)

"""Audio in steps until standard errors are below a target."""

import dataclasses
import logging

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio import batching
from speechsim_jax.audio.selection import in_turn
from speechsim_jax.comparison import target
from speechsim_jax.errors import UserError
from speechsim_jax.inference.clusters import cluster
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.settings import Settings
from tests.support.budgets import several_passes_gb
from tests.support.same_result import assert_same_result
from tests.support.small_models import QUICK, of_speakers

SETTINGS = QUICK | {
    "measures": "maxcorr,lincka,pwcca", "sample_frames": 100, "errors_source": "sample",
}  # fmt: skip
TARGET = 0.012


@pytest.fixture(scope="module")
def corpus():
    """120 utterances of 40 speakers, a minute and a half."""
    return of_speakers(120, 40)


@pytest.fixture(autouse=True)
def short_first_step(monkeypatch):
    monkeypatch.setattr(target, "FIRST_MINUTES", 0.1)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Ids of the utterances that are encoded, in all passes."""
    ids: list[str] = []
    original = batching.batches

    def recorded(corpus, *arguments, **others):
        for batch in original(corpus, *arguments, **others):
            ids.extend(batch.ids)
            yield batch

    monkeypatch.setattr(batching, "batches", recorded)
    return ids


@pytest.fixture(scope="module")
def in_steps(encoders, corpus, tmp_path_factory) -> tuple[SimilarityResult, str]:
    """With its statistics."""
    folder = tmp_path_factory.mktemp("steps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "FIRST_MINUTES", 0.1)
        result = ss.compare(encoders, corpus, target_se=TARGET, statistics_dir=folder, **SETTINGS)
    return result, str(folder)


# --- how far a step goes ---


def test_a_step_has_ten_clusters_and_so_many_minutes(corpus):
    order = in_turn(corpus, 0)
    by_speaker = cluster(corpus.sources, "auto")
    assert by_speaker.over == "speaker"
    assert target.end_of_step(order, 0, 0.0, by_speaker) == 10
    end = target.end_of_step(order, 0, 0.5, by_speaker)
    seconds = [source.seconds or 0.0 for source in order]
    assert sum(seconds[: end - 1]) < 30 <= sum(seconds[:end])
    assert target.end_of_step(order, end, 0.5, by_speaker) == end + 1
    assert target.end_of_step(order, end, 99.0, by_speaker) == len(order)


def test_first_steps_have_all_clusters_where_there_are_few(corpus):
    few = dataclasses.replace(corpus, sources=corpus.sources[:12])
    sources = tuple(dataclasses.replace(s, speaker=s.speaker[:2]) for s in few.sources)
    by_speaker = cluster(sources, "speaker")
    clusters = len(set(by_speaker.of.values()))
    assert clusters < 12
    order = in_turn(dataclasses.replace(few, sources=sources), 0)
    assert target.end_of_step(order, 0, 0.0, by_speaker) == clusters


# --- what is reached ---


def result_of(errors: float, rows: int, shift: float = 0.0) -> SimilarityResult:
    """A minute of audio: linreg 0.8 + shift of layers 32 wide."""
    scores = np.array([[1.0, 0.8 + shift], [0.8 + shift, 1.0]])
    known = {"errors": {"over": "speaker", "reason": "", "clusters": 20, "sampled": 20, "rows": 9}}
    return SimilarityResult.build(
        [ss.RepresentationName("a", 1), ss.RepresentationName("b", 1)],
        {"linreg": scores},
        {
            "linreg_se": (("x", "y"), errors * (1 - np.eye(2))),
            "linreg_se_error": (("x", "y"), np.zeros((2, 2))),
            "width": (("x",), np.array([32, 32])),
        },
        measures={"linreg": {"inflated_by_few_rows": True}},
        attributes={"seconds": 60.0, "utterances": 5, "rows": rows} | known,
    )


def part(rows: int, score: float) -> target.PartScores:
    return target.PartScores(rows, 32, {"linreg": np.array([[1.0, score], [score, 1.0]])})


@pytest.mark.parametrize(
    ("errors", "score_of_parts", "rows", "reached", "predicted"),
    [
        (0.009, 0.805, 500, True, 0.81),
        (0.020, 0.805, 500, False, 4.0),
        (0.009, 0.830, 500, False, 3.0),  # inflated by 0.03
        (0.009, 0.805, 60, False, 0.81),  # fewer rows than show it
        (float("nan"), 0.805, 500, False, float("nan")),
    ],
)
def test_both_errors_and_inflation_have_to_be_small(
    errors, score_of_parts, rows, reached, predicted
):
    settings = Settings(target_se=0.01)
    parts = [part(rows, score_of_parts)] * 2
    step = target.StepReached.of(result_of(errors, 2 * rows), parts, settings)
    assert step.reached(0.01) == reached
    assert step.predicted_minutes == pytest.approx(predicted, nan_ok=True)
    assert (step.minutes, step.clusters) == (1.0, 20)


def test_one_step_alone_does_not_show_the_inflation():
    settings = Settings(target_se=0.01)
    step = target.StepReached.of(result_of(0.001, 500), [part(500, 0.8)], settings)
    assert not step.reached(0.01) and step.as_json()["inflation"] is None
    assert step.growth == pytest.approx(2)


# --- whole comparisons ---


@pytest.mark.slow
def test_it_stops_at_the_target_with_what_a_plain_run_gives(in_steps, encoders, corpus):
    result, _ = in_steps
    reached = result.attributes["target"]
    assert reached["reached"] and reached["left_out"] == ["pwcca"]
    assert 2 <= len(reached["steps"]) < 10
    last = reached["steps"][-1]
    largest = max(np.nanmax(result.standard_error(name).values) for name in reached["measures"])
    assert last["standard_error"] == pytest.approx(largest)
    assert max(largest, last["inflation"]) <= TARGET
    before = reached["steps"][-2]
    assert (
        before["inflation"] is None or max(before["standard_error"], before["inflation"]) > TARGET
    )
    minutes = [step["minutes"] for step in reached["steps"]]
    assert minutes == sorted(minutes) and minutes[-1] < 1.2
    chosen = in_turn(corpus, 0)[: last["utterances"]]
    plain = ss.compare(encoders, dataclasses.replace(corpus, sources=tuple(chosen)), **SETTINGS)
    assert_same_result(result, plain)
    for name in ("utterances", "frames", "rows", "seconds", "errors"):
        one, other = (r.attributes[name] for r in (result, plain))
        if name == "errors":
            one, other = (e | {"reason": ""} for e in (one, other))
        assert one == pytest.approx(other)
    assert result.attributes["corpus"]["fingerprint"] == plain.attributes["corpus"]["fingerprint"]


@pytest.mark.slow
def test_nothing_is_read_twice_and_a_lower_target_goes_on(in_steps, encoders, corpus, read):
    result, folder = in_steps
    given = {"statistics_dir": folder, **SETTINGS}
    again = ss.compare(encoders, corpus, target_se=TARGET, **given)
    assert not read
    np.testing.assert_array_equal(again.matrix("lincka_se"), result.matrix("lincka_se"))
    fewer = ss.compare(encoders, corpus, target_se=2 * TARGET, **given)
    assert not read and len(fewer.attributes["target"]["steps"]) <= len(
        result.attributes["target"]["steps"]
    )
    merged = ss.merge([folder], progress=False)
    assert_same_result(merged, result)
    whole = ss.compare(encoders, corpus, target_se=1e-4, **given)
    done = in_turn(corpus, 0)[: result.attributes["utterances"]]
    assert sorted(read) == sorted({s.id for s in corpus.sources} - {s.id for s in done})
    reached = whole.attributes["target"]
    assert not reached["reached"] and whole.attributes["utterances"] == len(corpus.sources)
    assert reached["predicted_minutes"] > reached["minutes"]
    assert_same_result(whole, ss.compare(encoders, corpus, **SETTINGS))
    with pytest.raises(UserError, match="steps"):
        ss.compare(encoders, corpus, **given)
    shorter = dataclasses.replace(corpus, sources=corpus.sources[1:])
    with pytest.raises(UserError, match="another job"):
        ss.compare(encoders, shorter, target_se=TARGET, **given)


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_step_where_it_was(
    in_steps, encoders, corpus, read, tmp_path, monkeypatch
):
    result, _ = in_steps
    given = {"target_se": TARGET, "statistics_dir": tmp_path, "checkpoint_every": 0, **SETTINGS}
    original = batching.batches

    def killed(*arguments, **others):
        for batch in original(*arguments, **others):
            yield batch
            if len(read) > 15:
                raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(batching, "batches", killed)
        with pytest.raises(RuntimeError, match="killed"):
            ss.compare(encoders, corpus, **given)
    assert (tmp_path / "step-2").exists()
    before = len(read)
    # What is predicted now makes no difference to a step that has begun.
    monkeypatch.setattr(target, "FIRST_MINUTES", 0.3)
    resumed = ss.compare(encoders, corpus, **given)
    assert len(read) > before and {name: read.count(name) for name in read} == dict.fromkeys(
        (source.id for source in in_turn(corpus, 0)[: result.attributes["utterances"]]), 1
    )
    assert resumed.attributes["target"]["steps"][0]["minutes"] < 0.3
    assert_same_result(resumed, result)


@pytest.mark.slow
def test_several_passes_and_folds(in_steps, encoders, corpus):
    result, _ = in_steps
    given = SETTINGS | {"target_se": TARGET}
    budget = several_passes_gb(ss.compare, encoders, corpus, **given)
    passes = ss.compare(encoders, corpus, device_memory_gb=budget, **given)
    assert passes.attributes["passes"] > 1
    assert_same_result(passes, result)
    folds = ss.compare(encoders, corpus, heldout=True, **given)
    assert_same_result(folds, result)
    held_out = folds.matrix("maxcorr_heldout").values
    assert np.isfinite(held_out).all() and (held_out <= 1).all()


@pytest.mark.slow
def test_the_log_predicts(encoders, corpus, caplog):
    few = dataclasses.replace(corpus, sources=corpus.sources[:60])
    with caplog.at_level(logging.INFO):
        ss.compare(encoders, few, target_se=1e-4, **SETTINGS)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert any("has ended" in message and "are needed" in message for message in warned)
    steps = [r for r in caplog.records if r.getMessage().startswith("step ")]
    assert len(steps) >= 2


# --- mistakes ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"errors": "none"}, "errors"),
        ({"shard": "1/2"}, "shard"),
        ({"measures": "pwcca"}, "pwcca"),
        ({"target_se": 0}, "target_se"),
        ({"target_of": "mean"}, "target_of"),
    ],
)
def test_what_cannot_have_a_target(settings, message, encoders, corpus):
    with pytest.raises(UserError, match=message):
        ss.compare(encoders, corpus, **SETTINGS | {"target_se": 0.01} | settings)


def test_too_few_clusters(encoders, corpus):
    few = dataclasses.replace(corpus, sources=corpus.sources[:5])
    with pytest.raises(UserError, match="fewer than 10"):
        ss.compare(encoders, few, target_se=0.01, **SETTINGS)


def test_shares_have_no_target(encoders, corpus, tmp_path):
    with pytest.raises(UserError, match="target_se"):
        ss.accumulate(encoders, corpus, target_se=0.01, statistics_dir=tmp_path, **SETTINGS)

"""Standard errors and held-out scores of whole comparisons of encoders."""

import dataclasses

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.inference.clusters import cluster, cluster_for_folds
from speechsim_jax.pipeline import one_pass
from speechsim_jax.pipeline.accumulators import Accumulators
from tests.support.budgets import several_passes_gb
from tests.support.same_result import assert_same_result
from tests.support.small_models import QUICK, of_speakers, waves
from tests.support.tolerances import ERRORS_RELATIVE, ERRORS_RELATIVE_BATCHES

MEASURES = "maxcorr,linreg,lincka,svcca"
SETTINGS = QUICK | {"measures": MEASURES, "heldout": True}
SPEAKERS = 11


@pytest.fixture(scope="module")
def corpus():
    """24 utterances of 11 speakers, one of them unknown."""
    corpus = of_speakers(24, SPEAKERS)
    unknown = dataclasses.replace(corpus.sources[0], speaker="")
    return dataclasses.replace(corpus, sources=(unknown, *corpus.sources[1:]))


@pytest.fixture(scope="module")
def result(encoders, corpus) -> ss.SimilarityResult:
    return ss.compare(encoders, corpus, **SETTINGS)


@pytest.mark.slow
def test_they_are_those_of_the_rows(encoders, corpus, result):
    """Each utterance encoded alone; all rows are sampled, as there are few."""
    rows: dict[str, list[np.ndarray]] = {}
    speakers, folds = [], []
    lengths = {source.id: len(source.samples) // 320 for source in corpus.sources}
    fold_of = cluster_for_folds(corpus.sources).folds(lengths, 0)
    for source in corpus.sources:
        for encoder in encoders:
            states = np.asarray(encoder([source.samples]).hidden_states, np.float64)[:, 0]
            for layer, of_layer in enumerate(states):
                rows.setdefault(f"{encoder.name}/{layer}", []).append(of_layer)
        speakers += [source.speaker or "unknown"] * len(states[0])
        folds += [fold_of[source.id]] * len(states[0])
    arrays = {name: np.concatenate(parts) for name, parts in rows.items()}
    expected = ss.compare_activations(
        arrays, MEASURES, errors=True, groups=speakers, folds=folds, rank_tolerance=1e-6
    )
    assert result.attributes["errors"] | {"reason": ""} == {
        "over": "speaker", "reason": "", "clusters": 12, "sampled": 12, "rows": len(speakers),
        "source": "sample",
    }  # fmt: skip
    for name in MEASURES.split(","):
        np.testing.assert_allclose(
            result.standard_error(name), expected.standard_error(name), rtol=2e-3, atol=1e-6
        )
        assert np.nanmax(result.dataset[f"{name}_se_error"]) == 0
        if name != "lincka":
            heldout = (r.matrix(f"{name}_heldout").values for r in (result, expected))
            np.testing.assert_allclose(*heldout, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"batch_seconds": 1, "buckets": 2, "rows_per_update": 64},
        {"passes": "several"},
        {"errors_rows": 20_000},
    ],
    ids=["batches", "passes", "rows"],
)
def test_neither_batches_nor_passes_change_them(settings, encoders, corpus, result):
    if "passes" in settings:
        settings = {"device_memory_gb": several_passes_gb(ss.compare, encoders, corpus, **SETTINGS)}
    other = ss.compare(encoders, corpus, **SETTINGS | settings)
    assert_same_result(other, result, ERRORS_RELATIVE_BATCHES)
    assert (other.attributes["passes"] > 1) == ("device_memory_gb" in settings)


@pytest.mark.slow
def test_shards_and_jobs_merge_to_them(encoders, corpus, result, tmp_path):
    for shard in ("2/2", "1/2"):
        ss.accumulate(encoders, corpus, shard=shard, statistics_dir=tmp_path, **SETTINGS)
    merged = ss.merge([tmp_path], progress=False)
    assert_same_result(merged, result)
    assert merged.attributes["errors"] == result.attributes["errors"]
    names = list(map(str, result.representations))
    cells = [(names[k], names[-1]) for k in (1, 2)]
    one, other = (r.contrast("lincka", *cells) for r in (merged, result))
    assert one.standard_error == pytest.approx(other.standard_error, rel=ERRORS_RELATIVE)
    without = ss.merge([tmp_path], measures="lincka", keep_influence="none", progress=False)
    assert without.influence is None
    np.testing.assert_array_equal(without.matrix("lincka_se"), merged.matrix("lincka_se"))


@pytest.mark.slow
def test_fewer_rows_give_about_the_same(encoders, corpus, result):
    few = ss.compare(encoders, corpus, **SETTINGS | {"errors_rows": 700, "errors_source": "sample"})
    assert 600 < few.attributes["errors"]["rows"] < 800
    assert few.attributes["rows"] == result.attributes["rows"]
    for name in MEASURES.split(","):
        off = few.standard_error(name).values - result.standard_error(name).values
        stated = few.dataset[f"{name}_se_error"].values * few.standard_error(name).values
        known = np.isfinite(off) & (stated > 0)
        assert known.sum() > 20
        assert (np.abs(off[known]) <= 4 * stated[known]).mean() > 0.95


# Of another measure of moments, the sample and attention.
FURTHER = QUICK | {
    "measures": "lincka,rbfcka,rsa,mutual_knn,attn_js,attn_svcca",
    "sample_frames": 300,
}


@pytest.fixture(scope="module")
def further(encoders, corpus) -> ss.SimilarityResult:
    return ss.compare(encoders, corpus, **FURTHER)


@pytest.mark.slow
def test_the_sample_and_attention_have_errors_over_the_same_clusters(further, tmp_path):
    assert further.attributes["errors"]["degrees"] == {
        "rbfcka": 11, "rsa": 11, "mutual_knn": 11, "attn_js": 11, "attn_svcca": 11,
    }  # fmt: skip
    for name in further.measures:
        errors = further.standard_error(name).values
        between = errors[: len(errors) // 3, -3:]
        assert np.isfinite(errors).all() and (between > 0).all(), name
        labels = list(map(str, further.matrix(name)[further.matrix(name).dims[0]].values))
        cells = (labels[0], labels[-1]), (labels[1], labels[-1])
        assert further.contrast(name, *cells).standard_error > 0
        assert float(further.closest(name, labels[0], further.models[1]).sum()) == pytest.approx(1)
    read = ss.SimilarityResult.load(further.save(tmp_path / "result.nc"))
    one, other = (r.contrast("attn_js", *cells).standard_error for r in (read, further))
    assert one == other


@pytest.mark.slow
def test_errors_of_the_sample_and_attention_merge_and_resume(
    encoders, corpus, further, tmp_path, monkeypatch
):
    """Two shards, one of them interrupted after its second batch."""
    saved = tmp_path / "statistics"
    settings = FURTHER | {"statistics_dir": saved, "checkpoint_every": 0}
    update, batches = Accumulators.append, []

    def interrupted(self, *arguments):
        batches.append(arguments)
        if len(batches) == 3:
            raise KeyboardInterrupt
        update(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Accumulators, "append", interrupted)
        ss.accumulate(encoders, corpus, shard="1/2", **settings)
    for shard in ("1/2", "2/2"):
        ss.accumulate(encoders, corpus, shard=shard, **settings)
    merged = ss.merge([saved], progress=False)
    assert_same_result(merged, further)
    assert merged.attributes["errors"] == further.attributes["errors"]


@pytest.mark.slow
def test_sums_of_groups_that_are_too_large_are_not_kept(encoders, corpus, monkeypatch, caplog):
    monkeypatch.setattr(one_pass, "_GROUPS_BYTES", 1000)
    caplog.set_level("INFO")
    result = ss.compare(encoders, corpus, **FURTHER | {"measures": "lincka,attn_js"})
    assert np.isfinite(result.standard_error("lincka")).all()
    with pytest.raises(UserError, match="attn_js"):
        result.standard_error("attn_js")
    assert "no standard errors of attention" in caplog.text


@pytest.mark.slow
def test_batches_do_not_change_errors_of_the_sample_and_attention(encoders, corpus, further):
    other = ss.compare(encoders, corpus, **FURTHER | {"batch_seconds": 1, "buckets": 2})
    assert_same_result(other, further, ERRORS_RELATIVE_BATCHES)


def sources(count: int, speakers: int) -> list:
    corpus = ss.open_corpus(waves(count))
    return [
        dataclasses.replace(s, speaker=f"s{k % speakers}" if speakers else "")
        for k, s in enumerate(corpus.sources)
    ]


@pytest.mark.parametrize(
    ("count", "speakers", "errors", "over", "clusters"),
    [
        (30, 10, "auto", "speaker", 10),
        (30, 9, "auto", "utterance", 30),
        (10, 0, "auto", "utterance", 10),
        (9, 9, "auto", "none", 0),
        (30, 9, "speaker", "speaker", 9),
        (5, 5, "utterance", "utterance", 5),
        (30, 30, "none", "none", 0),
    ],
)
def test_what_clusters_are(count, speakers, errors, over, clusters):
    clustering = cluster(sources(count, speakers), errors)
    assert clustering.over == over and len(set(clustering.of.values())) == clusters
    assert clustering.reason


def test_speakers_that_nobody_knows():
    with pytest.raises(UserError, match="speaker"):
        cluster(sources(12, 0), "speaker")
    half = [
        dataclasses.replace(s, speaker="" if k < 5 else s.speaker)
        for k, s in enumerate(sources(30, 12))
    ]
    clustering = cluster(half, "auto")
    assert len(set(clustering.of.values())) == 12 + 5


def test_folds_of_speakers_and_of_single_utterances():
    corpus = sources(40, 10)
    rows = {s.id: 10 + k for k, s in enumerate(corpus)}
    folds = cluster_for_folds(corpus).folds(rows, 0)
    of_speaker: dict[str, set[int]] = {}
    for source in corpus:
        of_speaker.setdefault(source.speaker, set()).add(folds[source.id])
    assert all(len(of_one) == 1 for of_one in of_speaker.values())
    total = [sum(rows[u] for u in rows if folds[u] == k) for k in (0, 1)]
    assert abs(total[0] - total[1]) < 0.1 * sum(total)
    two = cluster_for_folds(sources(2, 0)).folds({"utterance000": 5, "utterance001": 9}, 0)
    assert sorted(two.values()) == [0, 1]
    with pytest.raises(UserError, match="two utterances"):
        cluster_for_folds(sources(1, 0))


@pytest.mark.slow
def test_too_few_utterances_give_none_and_say_why(encoders):
    few = ss.compare(encoders, waves(4), **SETTINGS | {"heldout": False})
    assert not any(name.endswith("_se") for name in few.dataset)
    assert "fewer than 10" in few.summary()
    with pytest.raises(UserError, match="fewer than 10"):
        few.standard_error("lincka")


def test_parts_and_channels_of_a_file_are_one_cluster(tmp_path):
    """Overlapping parts are not independent, nor are channels."""
    corpus = sources(12, 0)
    parts = [dataclasses.replace(s, path=tmp_path / "a.wav", part=True) for s in corpus[:8]]
    clustering = cluster(parts + corpus[8:], "utterance")
    assert len(set(clustering.of.values())) == 1 + 4
    assert cluster(parts + corpus[8:], "auto").over == "none"
    channels = [
        dataclasses.replace(s, path=tmp_path / f"{k // 2}.wav", channel=k % 2)
        for k, s in enumerate(corpus)
    ]
    folds = cluster_for_folds(channels).folds({s.id: 5 for s in channels}, 0)
    assert all(folds[a.id] == folds[b.id] for a, b in zip(channels[::2], channels[1::2]))
    with pytest.raises(UserError, match="at least two utterances"):
        cluster_for_folds(parts)


def test_folds_keep_to_few_speakers_if_errors_do():
    corpus = sources(18, 3)
    folds = cluster_for_folds(corpus, "speaker").folds({s.id: 5 for s in corpus}, 0)
    assert len({(s.speaker, folds[s.id]) for s in corpus}) == 3
    assert cluster_for_folds(corpus).over == "utterance"


def test_utterances_of_unknown_speaker_are_said():
    half = [
        dataclasses.replace(s, speaker="" if k < 5 else s.speaker)
        for k, s in enumerate(sources(30, 12))
    ]
    assert "5 utterances of unknown speaker" in cluster(half, "auto").reason


@pytest.mark.slow
def test_jobs_that_divide_a_speaker_hold_nothing_out(encoders, tmp_path, caplog):
    """The lengths of each job decide its folds; other scores and errors merge."""
    rng = np.random.default_rng(0)
    for job in ("a", "b"):
        corpus = ss.open_corpus(
            {f"{job}{k}": 0.1 * rng.standard_normal(6000 + 800 * n).astype(np.float32)
             for k, n in enumerate(rng.permutation(12))}
        )  # fmt: skip
        named = [dataclasses.replace(s, speaker=f"s{k}") for k, s in enumerate(corpus.sources)]
        corpus = dataclasses.replace(corpus, sources=tuple(named))
        ss.compare(encoders, corpus, **SETTINGS, statistics_dir=tmp_path / job)
    merged = ss.merge([tmp_path / "a", tmp_path / "b"], progress=False)
    assert "different folds" in caplog.text
    assert np.isnan(merged.matrix("linreg_heldout")).all()
    assert np.isfinite(merged.matrix("linreg")).all()
    assert merged.attributes["errors"]["clusters"] == 12
    assert np.isfinite(merged.standard_error("linreg")).all()

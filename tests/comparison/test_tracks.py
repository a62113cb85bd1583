"""Features and labels in whole comparisons of encoders, against the same rows as arrays."""

import dataclasses
import unittest.mock

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio.features import feature_tracks
from speechsim_jax.audio.tracks import Piece
from speechsim_jax.comparison import prepared
from speechsim_jax.errors import UserError
from speechsim_jax.inference.clusters import folds
from tests.support.budgets import several_passes_gb
from tests.support.same_result import assert_same_result
from tests.support.small_models import MODELS, QUICK, of_speakers

pytestmark = pytest.mark.slow

MEASURES = "maxcorr,linreg,lincka"
PHONES = ("a", "b", "sil", "")
SEGMENT = 0.13  # seconds
SETTINGS = QUICK | {"measures": MEASURES, "errors_source": "sample", "tracks": ["logmel"]}
# Of concepts and errors from float32 sums by another way.
BAR = 2e-4
CONCEPTS = ("eta2", "eta2_global", "readability", "localisation", "neuron_eta2", "class_corr")


@pytest.fixture(scope="module")
def corpus():
    """24 utterances of 12 speakers."""
    return of_speakers(24, 12)


def phones_of(number: int, seconds: float) -> list[str]:
    """The phone of each segment of an utterance, some of them gaps."""
    rng = np.random.default_rng(number)
    return rng.choice(PHONES, int(np.ceil(seconds / SEGMENT)), p=[0.4, 0.3, 0.2, 0.1]).tolist()


@pytest.fixture(scope="module")
def alignments(corpus, tmp_path_factory):
    """All but the last utterance are aligned."""
    lines = ["path\tstart\tend\tlabel"]
    for number, source in enumerate(corpus.sources[:-1]):
        for k, phone in enumerate(phones_of(number, source.seconds)):
            lines.append(f"{source.id}\t{k * SEGMENT:.6f}\t{(k + 1) * SEGMENT:.6f}\t{phone}")
    path = tmp_path_factory.mktemp("alignments") / "phones.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def settings(alignments):
    return SETTINGS | {"labels": [f"phone:{alignments}", "speaker"]}


@pytest.fixture(scope="module")
def result(encoders, corpus, settings) -> ss.SimilarityResult:
    return ss.compare(encoders, corpus, **settings, heldout=True)


@pytest.fixture(scope="module")
def rows(encoders, corpus):
    """Activations and log-mel by name, and phone, speaker and utterance of each row."""
    found: dict[str, list[np.ndarray]] = {}
    phone, speaker, utterance = [], [], []
    (logmel,) = feature_tracks(["logmel"])
    config = encoders[0].config
    for number, source in enumerate(corpus.sources):
        for encoder in encoders:
            states = np.asarray(encoder([source.samples]).hidden_states, np.float64)[:, 0]
            for layer, of_layer in enumerate(states):
                found.setdefault(f"{encoder.name}/{layer}", []).append(of_layer)
        count = len(found[f"{encoders[0].name}/0"][-1])
        centres = config.frame_centres_seconds(count)
        piece = Piece(source.id, 0.0, np.asarray(source.samples, np.float32))
        found.setdefault("logmel", []).append(logmel.rows(piece, centres))
        phones = phones_of(number, source.seconds)
        aligned = number < len(corpus.sources) - 1
        phone += [phones[int(t / SEGMENT)] if aligned else "" for t in centres]
        speaker += [source.speaker] * count
        utterance += [source.id] * count
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    return arrays, phone, speaker, utterance


@pytest.fixture(scope="module")
def expected(rows) -> ss.SimilarityResult:
    arrays, phone, speaker, _ = rows
    return ss.compare_activations(
        arrays, MEASURES, labels={"phone": phone, "speaker": speaker}, errors=True, groups=speaker,
        rank_tolerance=1e-6,
    )  # fmt: skip


def assert_same_concepts(
    found: ss.SimilarityResult, expected: ss.SimilarityResult, names=CONCEPTS
) -> None:
    assert list(found.dataset["class"].values) == list(expected.dataset["class"].values)
    for name in names:
        np.testing.assert_allclose(
            found.matrix(name), expected.matrix(name), atol=BAR, err_msg=name
        )
        if f"{name}_se" in expected.dataset:
            np.testing.assert_allclose(
                found.matrix(f"{name}_se"), expected.matrix(f"{name}_se"), rtol=1e-2, atol=1e-6
            )


def test_tracks_are_representations(encoders, result):
    assert result.models == (*(e.name for e in encoders), "logmel", "phone", "speaker")
    assert list(result.dataset["track"].values) == ["phone", "speaker"]
    assert set(result.attributes["tracks"]) == {"logmel", "phone", "speaker"}


def test_scores_and_concepts_are_those_of_the_rows(result, expected):
    for name in MEASURES.split(","):
        np.testing.assert_allclose(
            result.matrix(name), expected.matrix(name), atol=BAR, err_msg=name
        )
        np.testing.assert_allclose(
            result.standard_error(name), expected.standard_error(name), rtol=1e-2, atol=1e-6
        )
    assert_same_concepts(result, expected)


@pytest.mark.parametrize(
    "other",
    [
        {"batch_seconds": 1, "rows_per_update": 33},
        {"batch_seconds": 20, "buckets": 3},
        {"passes": "several"},
        {"errors_source": "reading"},
    ],
    ids=["batches", "buckets", "passes", "reading"],
)
def test_neither_batches_nor_passes_change_them(other, encoders, corpus, settings, result):
    if "passes" in other:
        other = {"device_memory_gb": several_passes_gb(ss.compare, encoders, corpus, **settings)}
    found = ss.compare(encoders, corpus, **settings | other, heldout=True)
    assert_same_result(found, result, 1e-3)
    assert_same_concepts(found, result)
    assert (found.attributes["passes"] > 1) == ("device_memory_gb" in other)


def test_shards_merge_to_them(encoders, corpus, settings, result, tmp_path):
    given = settings | {"heldout": True, "statistics_dir": tmp_path}
    for shard in ("2/3", "1/3", "3/3"):
        ss.accumulate(encoders, corpus, shard=shard, **given)
    merged = ss.merge([tmp_path], progress=False)
    assert_same_result(merged, result, 1e-3)
    assert_same_concepts(merged, result)
    assert merged.attributes["tracks"] == result.attributes["tracks"]


def test_pieces_of_long_utterances_have_their_own_labels(encoders, corpus, settings):
    """In pieces of 0.625 s the encoders hear other audio, but the labels are those of the times."""
    found = ss.compare(encoders, corpus, **settings | {"max_seconds": 0.7, "tracks": []})
    classes = [str(name) for name in found.dataset["class"].values]
    assert classes[:3] == ["phone/a", "phone/b", "phone/sil"]
    # How phones are shared out over speakers is known from the labels alone.
    shares = found.matrix("linreg").loc["phone/0", "speaker/0"]
    whole = ss.compare(encoders, corpus, **settings | {"tracks": []})
    assert float(shares) == pytest.approx(
        float(whole.matrix("linreg").loc["phone/0", "speaker/0"]), abs=0.02
    )


# --- given ---


@pytest.mark.parametrize("source", ["sample", "reading"])
def test_given_tracks_leave_partial_scores(source, encoders, corpus, rows):
    arrays, _, speaker, _ = rows
    given = ["logmel", "speaker"]
    found = ss.compare(
        encoders, corpus, **SETTINGS | {"given": given, "tracks": [], "errors_source": source}
    )
    assert found.models == tuple(e.name for e in encoders)
    expected = ss.compare_activations(
        arrays, MEASURES, labels={"speaker": speaker}, given=given, errors=True, groups=speaker,
        rank_tolerance=1e-6,
    )  # fmt: skip
    for name in MEASURES.split(","):
        np.testing.assert_allclose(
            found.matrix(name), expected.matrix(name), atol=BAR, err_msg=name
        )
        np.testing.assert_allclose(
            found.standard_error(name), expected.standard_error(name), rtol=2e-2, atol=1e-6
        )


def test_what_is_given_is_asked_of_stored_sums(encoders, corpus, tmp_path):
    """The statistics are those of a run where nothing is given."""
    settings = SETTINGS | {"statistics_dir": tmp_path}
    ss.compare(encoders, corpus, **settings)
    again = ss.compare(encoders, corpus, **settings | {"given": ["logmel"]})
    fresh = ss.compare(encoders, corpus, **SETTINGS | {"given": ["logmel"]})
    assert_same_result(again, fresh)


# --- tracks of the caller's ---


def test_functions_and_arrays_are_tracks(encoders, corpus):
    def loudness(samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
        at = np.clip((centres * 16000).astype(int), 0, len(samples) - 1)
        return np.stack([np.abs(samples)[at], samples[at]], axis=1)

    config = encoders[0].config
    constant = {
        s.id: np.full((int(config.frames(len(s.samples))), 1), k, np.float32)
        for k, s in enumerate(corpus.sources)
    }
    tracks = {"loudness": loudness, "number": constant, "logmel": None}
    found = ss.compare(encoders, corpus, **SETTINGS | {"tracks": tracks, "errors": "none"})
    assert found.models[2:] == ("loudness", "number", "logmel")
    assert found.dataset["width"].values[-3:].tolist() == [2, 1, 80]


def test_another_function_is_another_job(encoders, corpus, tmp_path):
    settings = SETTINGS | {"errors": "none", "statistics_dir": tmp_path}
    ss.compare(encoders, corpus, **settings | {"tracks": {"level": lambda x, t: 0 * t + x.std()}})
    with pytest.raises(UserError, match="another job: tracks"):
        ss.compare(
            encoders, corpus, **settings | {"tracks": {"level": lambda x, t: 0 * t + x.mean()}}
        )


# --- what cannot be ---


def test_of_mistakes_there_is_one_line(encoders, corpus, alignments):
    def refused(message: str, **settings) -> None:
        with pytest.raises(UserError, match=message) as error:
            ss.compare(encoders, corpus, **QUICK | {"measures": "lincka"} | settings)
        assert "\n" not in str(error.value)

    refused("logmel", tracks=["logmell"])
    refused("two tracks", tracks=["logmel"], labels=[f"logmel:{alignments}"])
    with unittest.mock.patch(
        "speechsim_jax.comparison.reading.run_passes", side_effect=AssertionError
    ):
        refused("no representation", given=["f1"])
    refused("partial", given=["logmel"], measures="lincka_debiased")
    refused("null", given=["logmel"], null="shift")
    refused("label_min_share", label_min_share=1)
    refused("hidden states", tracks=["logmel"], measures="attn_lincka", levels=["attention"])
    refused("mine of .* has nan", tracks={"mine": lambda samples, centres: centres * np.nan})
    model = dataclasses.replace(ss.load_encoder(MODELS[0]), name="logmel")
    with pytest.raises(UserError, match="a model and a track"):
        ss.compare([model], corpus, **SETTINGS)


# --- labels that are speakers ---


def test_what_is_known_of_speakers_is_held_out_on_their_other_utterances(encoders, corpus, rows):
    """Speakers are in one fold of the other held-out scores."""
    settings = SETTINGS | {"labels": ["speaker"], "tracks": [], "heldout": True}
    found = ss.compare(encoders, corpus, **settings)
    arrays, _, speaker, utterance = rows
    arrays = {name: of for name, of in arrays.items() if name != "logmel"}
    run = [source.id for source in corpus.sources]
    lengths = {id_: utterance.count(id_) for id_ in run}
    fold_of = {}
    for name in sorted(set(speaker)):
        theirs = {s.id: lengths[s.id] for s in corpus.sources if s.speaker == name}
        fold_of |= folds(theirs, 0)
    expected = ss.compare_activations(
        arrays, MEASURES, labels={"speaker": speaker}, groups=speaker, heldout=True,
        folds=[fold_of[id_] for id_ in utterance], rank_tolerance=1e-6,
    )  # fmt: skip
    for name in ("readability_heldout", "eta2_heldout"):
        np.testing.assert_allclose(found.matrix(name), expected.matrix(name), atol=1e-3)
    assert np.isfinite(found.matrix("readability_heldout").values[:-1]).all()
    assert not np.allclose(
        found.matrix("linreg_heldout").values[:-1, :-1],
        expected.matrix("linreg_heldout").values[:-1, :-1],
        atol=1e-3,
    )


def test_other_labels_that_only_single_speakers_have_are_held_out_nowhere(
    encoders, corpus, tmp_path
):
    """Of alignments: only labels of whole utterances are known to be speakers' beforehand."""
    lines = [
        "path\tstart\tend\tlabel",
        *(f"{s.id}\t0\t0.4\tof {s.speaker}" for s in corpus.sources),
    ]
    path = tmp_path / "session.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    labels = ["speaker", f"session:{path}"]
    found = ss.compare(encoders, corpus, **SETTINGS | {"labels": labels, "heldout": True})
    held = found.matrix("readability_heldout").values[:-3]
    of_session = found.dataset["class_track"].values == 1
    assert np.isnan(held[:, of_session]).all() and np.isfinite(held[:, ~of_session]).all()


def test_the_part_that_is_explained_is_not_taken_for_the_rest(encoders, corpus, tmp_path):
    settings = SETTINGS | {"statistics_dir": tmp_path, "given": ["speaker"], "tracks": []}
    rest = ss.compare(encoders, corpus, **settings)
    between = ss.compare(encoders, corpus, **settings | {"given_part": "explained"})
    assert not np.allclose(rest.matrix("lincka"), between.matrix("lincka"), atol=1e-3)
    assert "lincka_se" not in between.dataset and "lincka_se" in rest.dataset


def test_a_label_may_be_called_as_what_is_given(encoders, corpus, alignments):
    """`given` needs no list of its own where a label has the name already."""
    labels = [f"speaker:{alignments}"]
    found = ss.compare(encoders, corpus, **SETTINGS | {"labels": labels, "given": ["speaker"]})
    assert found.models[-1] == "logmel" and "eta2" not in found.dataset


def test_speakers_of_one_utterance_each_are_held_out_nowhere(encoders, caplog):
    corpus = of_speakers(12, 12)
    settings = SETTINGS | {"labels": ["speaker"], "tracks": [], "heldout": True}
    with caplog.at_level("WARNING"):
        found = ss.compare(encoders, corpus, **settings)
    assert "no held-out scores" not in caplog.text
    assert "linreg_heldout" in found.dataset and "readability_heldout" not in found.dataset


def test_a_track_that_a_mesh_cannot_divide_is_named():
    prepared.check_divided(feature_tracks(["logmel", "f0"]), 2)
    with pytest.raises(UserError, match=r"39 numbers of the track mfcc .* feature:2"):
        prepared.check_divided(feature_tracks(["logmel", "mfcc"]), 2)


def test_jobs_on_disjoint_audio_may_each_have_their_arrays(encoders, corpus, tmp_path):
    frames = encoders[0].config.frames
    settings = SETTINGS | {"errors": "none", "measures": "lincka"}
    rng = np.random.default_rng(0)
    arrays = {s.id: rng.standard_normal((int(frames(len(s.samples))), 2)) for s in corpus.sources}
    whole = ss.compare(encoders, corpus, **settings | {"tracks": {"mine": arrays}})
    for name, sources in (("a", corpus.sources[:10]), ("b", corpus.sources[10:])):
        part = dataclasses.replace(corpus, sources=sources)
        own = {s.id: arrays[s.id] for s in sources}
        given = settings | {"tracks": {"mine": own}, "statistics_dir": tmp_path / name}
        ss.compare(encoders, part, **given)
    assert_same_result(ss.merge([tmp_path / "a", tmp_path / "b"], progress=False), whole)

"""Hidden states of the utterances of a corpus: uncut, without padding, of the layers asked for."""

import dataclasses

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio.corpus import Corpus, Skipped, Source
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.pipeline.encode_corpus import encode_corpus
from tests.support.paths import DATA
from tests.support.tiny_encoders import CONFIG

LENGTHS = {"a": 40_000, "b": 3000, "c": 24_000, "d": 40_010}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> ss.SpeechEncoder:
    folder = tmp_path_factory.mktemp("encoder")
    return ss.load_encoder(save_folder(folder, CONFIG, random_tensors(CONFIG, 0)))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    waves = {name: 0.1 * rng.standard_normal(n).astype(np.float32) for name, n in LENGTHS.items()}
    sources = [Source(name, seconds=len(w) / 16_000, samples=w) for name, w in waves.items()]
    # A header may state less than the file holds.
    sources[-1] = dataclasses.replace(sources[-1], seconds=2.45)
    return Corpus("noise", tuple(sources))


def refuse(skipped: Skipped) -> None:
    raise AssertionError(skipped)


@pytest.mark.slow
def test_states_are_those_of_the_utterance_alone(encoder, corpus):
    seconds = []
    states = dict(
        encode_corpus(
            encoder,
            corpus,
            layers=(2, 0),
            buckets=2,
            batch_seconds=6,
            on_skip=refuse,
            on_batch=seconds.append,
        )
    )
    assert set(states) == set(LENGTHS)
    assert sum(seconds) == pytest.approx(sum(LENGTHS.values()) / 16_000)
    for source in corpus.sources:
        alone = np.asarray(encoder([source.samples], layers=(2, 0)).hidden_states)[:, 0]
        assert states[source.id].dtype == np.float32
        assert states[source.id].shape == alone.shape
        np.testing.assert_allclose(states[source.id], alone, atol=1e-5)


def test_all_layers_by_default(encoder, corpus):
    short = dataclasses.replace(corpus, sources=corpus.sources[1:2])
    ((name, states),) = encode_corpus(encoder, short, on_skip=refuse)
    assert (name, states.shape) == ("b", (3, CONFIG.frames(3000), CONFIG.hidden_size))


def test_unusable_sources_and_layers(encoder, corpus):
    skipped: list[Skipped] = []
    silent = Source("silent", seconds=1.0, samples=np.zeros(16_000, np.float32))
    both = dataclasses.replace(corpus, sources=(silent, corpus.sources[1]))
    assert [name for name, _ in encode_corpus(encoder, both, on_skip=skipped.append)] == ["b"]
    assert [each.id for each in skipped] == ["silent"]
    with pytest.raises(ss.UserError, match=r"no layer \[3\]"):
        next(encode_corpus(encoder, both, layers=(3,), on_skip=skipped.append))
    assert list(encode_corpus(encoder, Corpus("nothing", ()), on_skip=refuse)) == []


def test_what_is_longer_than_the_window_of_a_model_is_skipped(corpus):
    """Not cut: the rest of its states would be missing."""
    whisper = ss.load_encoder(DATA / "parity" / "whisper")  # reads a second at most
    skipped: list[Skipped] = []
    found = dict(encode_corpus(whisper, corpus, on_skip=skipped.append))
    assert list(found) == ["b"]
    assert found["b"].shape[1] == whisper.config.frames(3000)
    assert {each.id for each in skipped} == {"a", "c", "d"}
    assert all("longer than 1 s, the most that whisper reads" in each.reason for each in skipped)

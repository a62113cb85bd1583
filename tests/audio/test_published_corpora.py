"""Public corpora as they are published: who speaks, what is said, and what is left out."""

from collections import Counter

import pytest

from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from tests.support import published_corpora


@pytest.mark.parametrize("published", published_corpora.ALL, ids=lambda p: p.layout)
def test_speakers_and_transcripts_as_published(tmp_path, published):
    corpus = open_corpus(published.write(tmp_path))
    found = {source.id: (source.speaker, source.transcript) for source in corpus.sources}
    assert found == published.audio
    assert all(
        len(read(source).samples) == 8000 for source in corpus.sources if ".mp3" not in source.id
    )
    speakers = [speaker for speaker, _ in published.audio.values()]
    assert corpus.facts["speakers"] == len(set(speakers) - {""})
    assert corpus.facts.get("speaker_unknown", 0) == speakers.count("")
    layouts = corpus.facts.get("layouts", {"unknown": len(speakers)})
    assert set(layouts) <= {published.layout, "unknown"} and layouts[published.layout] > 0
    assert "passed_over" not in corpus.facts


@pytest.mark.parametrize("published", published_corpora.ALL, ids=lambda p: p.layout)
def test_whichever_folder_of_it_is_opened(tmp_path, published):
    """Layouts go by the whole path: a part of a corpus is of the same speakers."""
    published.write(tmp_path)
    for id_, spoken in published.audio.items():
        for folder in (tmp_path / id_).parents:
            if folder == tmp_path:
                break
            sources = {source.path: source for source in open_corpus(folder).sources}
            source = sources[tmp_path / id_]
            assert (source.speaker, source.transcript) == spoken


def test_all_of_them_in_one_folder(tmp_path):
    expected: Counter[str] = Counter()
    for published in published_corpora.ALL:
        published.write(tmp_path)
        expected[published.layout] += len(published.audio)
    corpus = open_corpus(tmp_path)
    expected.subtract({"TED-LIUM": 1})
    expected.update({"unknown": 1})  # a talk without a name
    assert corpus.facts["layouts"] == dict(expected)
    assert len(corpus.sources) == sum(len(p.audio) for p in published_corpora.ALL)
    assert corpus.facts["repeated"]["utterances"] == 1  # of VCTK's two microphones


def test_an_unlisted_layout_says_that_speakers_are_unknown(tmp_path, caplog):
    with caplog.at_level("INFO"):
        corpus = open_corpus(published_corpora.UNLISTED.write(tmp_path))
    assert corpus.facts == {"speakers": 0, "speaker_unknown": 3}
    assert "the speaker of 3 utterances is not known" in caplog.text
    by_hand = open_corpus(tmp_path, speaker_from=r"/(speaker\d+)/")
    assert [s.speaker for s in by_hand.sources] == ["speaker02", "speaker01", "speaker01"]

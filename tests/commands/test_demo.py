"""The demo: what it has read, and what it asks of the replication."""

import pytest

from speechsim_jax.audio.alignments import alignments_of
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.commands import demo, replicate


class Asked(Exception):
    """The configuration of the replication."""


def test_letters_are_the_labels_of_the_demo(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_SENTENCES", ("The tide came in.",))

    def stop(config: replicate.Config) -> replicate.Outcome:
        raise Asked(config)

    monkeypatch.setattr(replicate, "run", stop)
    with pytest.raises(Asked) as asked:
        demo.run(demo.Config(str(tmp_path)))
    (config,) = asked.value.args
    corpus = open_corpus(config.audio)
    (label,) = config.settings.labels
    name, where, tier = label.split(":")
    assert (name, tier) == ("letter", "letter")
    alignments = alignments_of(corpus, where, tier, None, ())
    assert len(corpus.sources) == len(alignments.utterances) == 12
    assert {source.speaker for source in corpus.sources} == {
        f"{voice}-{pitch}" for voice in demo._VOICES for pitch in ("low", "high")
    }


@pytest.mark.slow
def test_the_claim_about_concepts_is_tested(tmp_path):
    """On the whole demo: the verdict may be any."""
    outcome = demo.run(demo.Config(str(tmp_path), progress=False))
    finding = outcome.findings[-1]
    assert finding.claim.name == "concepts" and "letter" in finding.claim.text
    assert [test.measure for test in finding.tests] == ["readability", "concept_kappa"]
    assert (tmp_path / "findings.md").read_text().count("## concepts: ") == 1
    assert "letter" in outcome.result.models

"""The objectives that families were pretrained with."""

import pytest

from speechsim_jax.analyses.replication.members import paradigm

PUBLISHED = {
    "wav2vec2": "contrastive",
    "sew": "contrastive",
    "unispeech": "contrastive",
    "hubert": "predictive",
    "wavlm": "predictive",
    "unispeech-sat": "predictive",
    "data2vec-audio": "predictive",
}


@pytest.mark.parametrize("family", PUBLISHED)
def test_paradigms_are_those_of_the_papers(family):
    assert paradigm(family) == PUBLISHED[family]

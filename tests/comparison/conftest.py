"""Encoders that tests of this room share; some have others of the same name."""

import pytest

import speechsim_jax as ss
from tests.support.small_models import MODELS


@pytest.fixture(scope="package")
def encoders() -> list[ss.SpeechEncoder]:
    """Two tiny ones."""
    return [ss.load_encoder(folder) for folder in MODELS]

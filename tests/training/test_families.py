"""Encoders of other families in training: the same forward pass, and their names in files."""

import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import open_checkpoint
from speechsim_jax.models.families import family_of
from speechsim_jax.training import finetuning, model
from speechsim_jax.training.forward import encode
from speechsim_jax.training.recipe import CTCRecipe
from tests.support.parity import FOLDER, fixture

pytestmark = pytest.mark.slow

OBJECTIVE = model.CTC(vocab_size=5, pad_token_id=0)


@pytest.mark.parametrize("layout", ["unispeech-sat", "data2vec-audio", "mms"])
def test_the_forward_pass_is_that_of_the_encoder(layout):
    case = fixture(layout)
    tensors = open_checkpoint(FOLDER / layout).tensors()
    graph, start = model.initial(case.encoder.config, OBJECTIVE, 0, tensors)
    found = encode(graph, start, *case.batch)
    mask = np.asarray(case.together.frame_mask)
    assert np.array_equal(found.frame_mask, mask)
    expected = np.asarray(case.together.hidden_states[-1])[mask]
    assert np.array_equal(np.asarray(found.last)[mask], expected)


@pytest.mark.parametrize("layout", ["unispeech-sat", "data2vec-audio", "mms"])
def test_what_is_saved_is_read_again(layout):
    config = fixture(layout).encoder.config
    _, start = model.initial(config, OBJECTIVE, 0)
    tensors = model.to_tensors(config, start)
    outside = [name for name in tensors if not name.startswith(family_of(config).prefix)]
    assert sorted(outside) == ["lm_head.bias", "lm_head.weight"]
    _, again = model.from_tensors(config, OBJECTIVE, tensors, "here")
    same = model.to_tensors(config, again)
    assert tensors.keys() == same.keys()
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors)


def test_a_network_of_another_kind_is_refused():
    """SEW upsamples for its head."""
    with pytest.raises(UserError, match="a sew cannot be fine-tuned here"):
        finetuning.prepare(CTCRecipe(), open_checkpoint(FOLDER / "sew"), [])

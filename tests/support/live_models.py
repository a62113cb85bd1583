"""Models of transformers in torch, and ours with their weights."""

import numpy as np
import torch
from transformers import AutoFeatureExtractor, SeamlessM4TFeatureExtractor

from speechsim_jax.models import weight_names
from speechsim_jax.models.architecture import Activations
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.families import config_from_hf
from speechsim_jax.models.recognizer import Recognizer
from tests.support import tolerances
from tests.support.make_parity_fixtures import model_inputs
from tests.support.parity import pulses

EVERYTHING = dict(attentions=True, projections=True, features=True)


def whisper_sizes(width: int, layers: int, bands: int = 80) -> dict:
    return dict(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        num_mel_bins=bands,
    )


def port(model, extractor) -> SpeechEncoder:
    """Our encoder with a torch model's weights."""
    config = config_from_hf(model.config.to_dict(), extractor.to_dict())
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    graph, parameters, notes = weight_names.fill(config, tensors, "torch")
    assert notes == []
    return SpeechEncoder("port", config, graph, parameters)


def ours(found: Activations, row: int, like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One utterance of a batch, shaped as transformers gives it alone."""
    frames = len(like["last_hidden_state"])
    hidden = np.asarray(found.hidden_states[:, row, :frames])
    keys = np.asarray(found.keys[:, row, :frames])
    queries, window = like["attentions"].shape[-2:]
    attentions = np.asarray(found.attentions[:, row, :, :queries, :window])
    if found.gates is not None:  # transformers repeats WavLM's mean over heads
        attentions = np.broadcast_to(attentions.mean(1, keepdims=True), attentions.shape)
    result = {
        "hidden_states": np.concatenate([hidden[:-1], like["hidden_states"][-1:]]),
        "last_hidden_state": hidden[-1],
        "keys": keys.reshape(*keys.shape[:2], -1),
        "attentions": attentions,
    }
    if found.features is not None:
        result["features"] = np.asarray(found.features[row, :frames])
    return result


def noise(rng: np.random.Generator, samples: int, extractor=None) -> np.ndarray:
    """Of random loudness; pulses for mel features, see there."""
    loud = rng.uniform(0.02, 0.3)
    if isinstance(extractor, SeamlessM4TFeatureExtractor):
        return pulses(loud * rng.standard_normal(samples))
    return (loud * rng.standard_normal(samples) + rng.uniform(-0.05, 0.05)).astype(np.float32)


def worst(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, float]:
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    return {name: float(np.abs(a[name] - b[name]).max()) for name in a}


def assert_close(errors: dict[str, float]) -> None:
    assert errors["attentions"] <= tolerances.PARITY_ATTENTION, errors
    assert np.max([*errors.values()]) <= tolerances.PARITY, errors


def loaded(model_class, folder):
    """A saved folder as transformers reads it: nothing missing, unexpected or of another shape."""
    model, report = model_class.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval(), AutoFeatureExtractor.from_pretrained(folder)


def assert_same_weights(a, b) -> None:
    """Two torch models hold the same bits, but for what only training reads."""
    states = [
        {n: t for n, t in model.state_dict().items() if not n.endswith("masked_spec_embed")}
        for model in (a, b)
    ]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        # our counter of batches starts at 0
        assert torch.equal(tensor, states[1][name]) or name.endswith("num_batches_tracked"), name


def their_logits(model, extractor, wave: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model(model_inputs(extractor, wave)).logits


def logits_of(recognizer: Recognizer, wave: np.ndarray) -> np.ndarray:
    """Ours, of the frames of the utterance."""
    logits = recognizer.logits(wave[None], np.array([len(wave)], np.int32))
    return np.asarray(logits)[:, : recognizer.encoder.config.logit_frames(len(wave))]

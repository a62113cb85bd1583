"""Losses and gradients against torch transformers: `python -m pytest -m parity -s`.

Tiny models with every tensor drawn at random. What is random in a loss (masks, negatives, Gumbel
noise) is drawn here and passed to both.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
)

from speechsim_jax.models.families import config_from_hf  # noqa: E402
from speechsim_jax.models.load import load_encoder  # noqa: E402
from speechsim_jax.training import export, forward, model, random_keys  # noqa: E402
from speechsim_jax.training.data.alphabet import Alphabet  # noqa: E402
from speechsim_jax.training.data.cluster_labels import ClusterLabels  # noqa: E402
from speechsim_jax.training.forward import Masks  # noqa: E402
from speechsim_jax.training.model import CTC, Contrastive  # noqa: E402
from speechsim_jax.training.objectives import contrastive, ctc, quantizer  # noqa: E402
from speechsim_jax.training.objectives.masking import Spans, span_mask  # noqa: E402
from tests.support import tolerances  # noqa: E402
from tests.support.make_parity_fixtures import LAYOUTS, SMALL, redraw  # noqa: E402
from tests.support.objectives import CONFIG, LARGE, OBJECTIVES  # noqa: E402

pytestmark = pytest.mark.parity

UNDROPPED = {
    name: 0.0
    for name in (
        "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout",
        "feat_quantizer_dropout", "final_dropout", "layerdrop",
    )
}  # fmt: skip
OBJECTIVE = Contrastive(
    num_codevector_groups=2,
    num_codevectors_per_group=6,
    codevector_dim=16,
    proj_codevector_dim=12,
    num_negatives=7,
)
TAU = 0.7
# transformers' group norm runs over the padding, so its base models take equal lengths only.
LENGTHS = {"wav2vec2-base": [9000, 9000, 9000], "wav2vec2-large": [9000, 5003, 7441]}


def torch_model(model_class, layout: str, seed: int, **more):
    values = SMALL | LAYOUTS[layout][2] | UNDROPPED | more
    # mask_feature_prob is 0, so that only the masks of the caller are used
    config = Wav2Vec2Config(**values, apply_spec_augment=True, mask_time_prob=0.5)
    theirs = model_class._from_config(config, attn_implementation="eager").train()
    redraw(theirs, seed)
    return theirs


def ported(theirs, objective):
    config = config_from_hf(theirs.config.to_dict(), {"do_normalize": False})
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return config, *model.from_tensors(config, objective, tensors, "torch")


def audio(layout: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    lengths = np.array(LENGTHS[layout], np.int32)
    samples = rng.standard_normal((len(lengths), max(lengths))).astype(np.float32)
    return np.where(np.arange(samples.shape[1]) < lengths[:, None], samples, 0), lengths


def canonical(name: str) -> str:
    name = re.sub(r"parametrizations\.weight\.original0$", "weight_g", name)
    return re.sub(r"parametrizations\.weight\.original1$", "weight_v", name)


def assert_equal_gradients(config, ours, theirs) -> set[str]:
    """|a - b| / |b| of every tensor; the names of those without a gradient, such as key biases."""
    tensors = model.to_tensors(config, ours)
    expected = {
        canonical(name): np.zeros(p.shape) if p.grad is None else p.grad.numpy().astype(np.float64)
        for name, p in theirs.named_parameters()
    }
    assert tensors.keys() == expected.keys()
    total = np.sqrt(sum(np.square(b).sum() for b in expected.values()))
    errors = {}
    for name, b in expected.items():
        a = tensors[name].astype(np.float64)
        assert a.shape == b.shape, name
        if name.endswith("k_proj.bias") or not b.any():
            assert max(np.linalg.norm(a), np.linalg.norm(b)) <= 1e-6 * total, name
        else:
            assert np.linalg.norm(b) > 1e-5 * total, name
            errors[name] = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    worst = max(errors, key=errors.__getitem__)
    print(f"gradients: {errors[worst]:.1e} ({worst}), {len(errors)} of {len(expected)} tensors")
    assert errors[worst] <= tolerances.TRAINING_GRADIENT, (worst, errors[worst])
    return set(expected) - set(errors)


def assert_equal_losses(ours, theirs) -> None:
    error = abs(float(ours) - theirs.item()) / abs(theirs.item())
    print(f"loss {float(ours):.6f}: {error:.1e}")
    assert error <= tolerances.TRAINING_LOSS


FOLDERS = {
    "contrastive": (CONFIG, OBJECTIVES["contrastive"], Wav2Vec2ForPreTraining),
    "contrastive-large": (LARGE, OBJECTIVES["contrastive"], Wav2Vec2ForPreTraining),
    "predictive": (replace(CONFIG, family="hubert"), OBJECTIVES["predictive"], HubertModel),
    "ctc": (CONFIG, CTC(vocab_size=8), Wav2Vec2ForCTC),
    "ctc-hubert": (replace(LARGE, family="hubert"), CTC(vocab_size=8), HubertForCTC),
    "batch-norm": (
        replace(CONFIG, family="hubert", conv_pos_batch_norm=True), CTC(vocab_size=8), HubertForCTC,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_that_trainings_leave(kind, tmp_path):
    """transformers finds every tensor it expects and no other, and computes what we compute."""
    config, objective, model_class = FOLDERS[kind]
    _, trained = model.initial(config, objective, 3)
    if isinstance(objective, Contrastive):
        export.write_contrastive(tmp_path, config, objective, trained, "float16")
    elif isinstance(objective, CTC):
        alphabet = Alphabet(("A", "B", "C"))
        export.write_recognizer(tmp_path, config, objective, trained, alphabet, "float16")
    else:
        clusters = ClusterLabels(np.zeros((7, 39), np.float32), {})
        export.write_predictive(tmp_path, config, trained, clusters, "float16")
    theirs, loading = model_class.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not loading[problem], (problem, loading[problem])
    prefix = "" if model_class is HubertModel else f"{config.family}."
    embedding = theirs.state_dict()[f"{prefix}masked_spec_embed"].numpy()
    assert np.array_equal(embedding, np.asarray(trained.masked_spec_embed, np.float16))
    wave = np.random.default_rng(5).standard_normal(9000).astype(np.float32)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
    values = extractor(wave, sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        expected = theirs.eval()(values, output_hidden_states=True).hidden_states[0][0].numpy()
    ours = load_encoder(tmp_path)([wave]).hidden_states[0, 0]
    error = np.abs(np.asarray(ours) - expected).max()
    print(f"{kind}: {error:.1e}")
    assert error <= tolerances.PARITY


def test_names_both_ways():
    theirs = torch_model(Wav2Vec2ForPreTraining, "wav2vec2-large", 1, **OBJECTIVE.hf_fields())
    config, _, ours = ported(theirs, OBJECTIVE)
    tensors = model.to_tensors(config, ours)
    state = {canonical(name): tensor for name, tensor in theirs.state_dict().items()}
    assert tensors.keys() == state.keys()
    assert all(np.array_equal(tensors[name], state[name]) for name in state)


@pytest.mark.parametrize("layout", LENGTHS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_contrastive_loss(layout, training, monkeypatch):
    theirs = torch_model(Wav2Vec2ForPreTraining, layout, 2, **OBJECTIVE.hf_fields())
    theirs.train(training)
    theirs.quantizer.temperature = TAU
    config, graph, ours = ported(theirs, OBJECTIVE)
    samples, lengths = audio(layout)
    frames, width = config.frames(lengths), config.frames(samples.shape[1])
    keys = random_keys.utterance_keys(0, 3, np.arange(len(lengths)))
    masked = span_mask(random_keys.key_for(keys, "mask"), jnp.asarray(frames), width, Spans(0.6, 3))
    negatives = contrastive.sample_negatives(keys, masked, OBJECTIVE.num_negatives)
    gumbel = quantizer.gumbel_noise(keys, width, 2, 6)

    def loss_of(ours):
        encoded = forward.encode(graph, ours, samples, lengths, Masks(masked))
        noise = gumbel if training else None
        sums = contrastive.sums(
            ours.head, OBJECTIVE, encoded, masked, negatives, noise, jnp.float32(TAU)
        )
        return contrastive.loss(sums, OBJECTIVE) * sums.frames, sums

    with jax.default_matmul_precision("highest"):
        (loss, sums), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(ours)

    def gumbel_softmax(logits, tau, hard):
        assert hard and tau == TAU
        soft = torch.softmax(
            (logits + torch.tensor(np.asarray(gumbel)).view(logits.shape)) / tau, -1
        )
        chosen = torch.zeros_like(logits).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return chosen - soft.detach() + soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", gumbel_softmax)
    rows = np.arange(len(lengths))[:, None, None] * width
    mask = torch.tensor(np.arange(samples.shape[1]) < lengths[:, None])
    expected = theirs(
        torch.tensor(samples),
        attention_mask=mask.long() if layout == "wav2vec2-large" else None,
        mask_time_indices=torch.tensor(np.asarray(masked)),
        sampled_negative_indices=torch.tensor(np.asarray(negatives) + rows),
    )
    expected.loss.backward()
    assert int(sums.frames) == int(masked.sum()) > 20
    assert_equal_losses(sums.contrastive, expected.contrastive_loss)
    assert_equal_losses(loss, expected.loss)
    perplexity = contrastive.metrics(sums)["perplexity"]
    assert_equal_losses(perplexity, expected.codevector_perplexity)
    without = assert_equal_gradients(config, gradient, theirs)
    # the choice of the likeliest codewords has no gradient
    chosen = {name for name in without if name.startswith("quantizer.weight_proj")}
    assert bool(chosen) == (not training) and len(without - chosen) == config.num_hidden_layers


@pytest.mark.parametrize("layout", LENGTHS)
@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen"])
def test_ctc_loss(layout, frozen):
    objective = CTC(vocab_size=9, pad_token_id=3)
    options = dict(ctc_loss_reduction="sum", ctc_zero_infinity=True)
    theirs = torch_model(Wav2Vec2ForCTC, layout, 5, **objective.hf_fields(), **options)
    if frozen:
        theirs.freeze_feature_encoder()
    config, graph, ours = ported(theirs, objective)
    samples, lengths = audio(layout)
    frames, width = config.frames(lengths), config.frames(samples.shape[1])
    # neighbours that are equal; the second needs more frames than it has
    counts = np.array([7, min(frames), 5], np.int32)
    assert frames[1] == counts[1]
    labels = (
        np.random.default_rng(6).choice([0, 1, 2, 4, 5, 6, 7, 8], (3, max(counts))).astype(np.int32)
    )
    labels[:, 3] = labels[:, 2]
    keys = random_keys.utterance_keys(0, 3, np.arange(len(lengths)))
    spans, over_neurons = Spans(0.3, 3, 0), Spans(0.2, 4, 1)
    masks = ctc.spec_augment(
        keys, jnp.asarray(frames), width, config.hidden_size, spans, over_neurons
    )
    assert masks.frames.any() and masks.neurons.any()

    def loss_of(ours):
        scale = 0 if frozen else 1
        encoded = forward.encode(graph, ours, samples, lengths, masks, feature_grad_mult=scale)
        sums = ctc.sums(ours.head, objective, encoded, jnp.asarray(labels), jnp.asarray(counts))
        return ctc.loss(sums) * sums.utterances, sums

    with jax.default_matmul_precision("highest"):
        (loss, sums), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(ours)
    padded = np.where(np.arange(labels.shape[1]) < counts[:, None], labels, -100)
    mask = torch.tensor(np.arange(samples.shape[1]) < lengths[:, None])
    in_time, over_neurons = (torch.tensor(np.asarray(part)) for part in masks)

    def masked(hidden, **_):
        hidden = torch.where(in_time[:, :, None], theirs.wav2vec2.masked_spec_embed, hidden)
        return hidden.masked_fill(over_neurons[:, None, :], 0)

    theirs.wav2vec2._mask_hidden_states = masked
    expected = theirs(
        torch.tensor(samples),
        attention_mask=mask.long() if layout == "wav2vec2-large" else None,
        labels=torch.tensor(padded),
    )
    expected.loss.backward()
    assert (int(sums.utterances), int(sums.left_out), int(sums.labels)) == (2, 1, 12)
    assert_equal_losses(loss, expected.loss)
    without = assert_equal_gradients(config, gradient, theirs)
    fixed = {name for name in without if ".feature_extractor." in name}
    assert bool(fixed) == frozen and len(without - fixed) == config.num_hidden_layers

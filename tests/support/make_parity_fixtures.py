"""Write the parity fixtures: tiny torch models, their inputs and everything they compute.

    python -m tests.support.make_parity_fixtures          (needs the [parity] extra)

Each layout becomes tests/data/parity/<layout>/: a checkpoint folder as transformers saves it, and
expected.npz with three waveforms and, for each alone (float32, eager attention), hidden states
(last one raw, as transformers 5 gives it), attentions, the normed last hidden state, and by hooks
the keys (softmax hides their bias) and the features (what is projected; `extract_features` where
transformers returns it). **Every** tensor is drawn at random first, also biases, norms' gains and
shifts and weight-norm gains, which transformers starts at 0 and 1.

A Whisper, whose window is 1 s here, reads transformers' spectra in numpy; of the window's frames
those of the utterance are kept, and of the maps their rows.

Each layout of CTC becomes tests/data/ctc/<layout>/: a fine-tuned checkpoint with its tokenizer, and
the logits and the text of the same waveforms.
"""

import json
import math
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    SeamlessM4TFeatureExtractor,
    SEWConfig,
    SEWForCTC,
    SEWModel,
    UniSpeechConfig,
    UniSpeechForCTC,
    UniSpeechModel,
    UniSpeechSatConfig,
    UniSpeechSatForCTC,
    UniSpeechSatModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ConformerModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.support.parity import pulses
from tests.support.paths import DATA

FOLDER = DATA / "parity"
CTC_FOLDER = DATA / "ctc"
LENGTHS = (400, 1700, 5000)
# Of SEW, whose shortest input is longer: 2, 5 and 15 frames of the convolutions.
SQUEEZED_LENGTHS = (720, *LENGTHS[1:])

SMALL = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=40,
    conv_dim=(24,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    vocab_size=8,
)
SMALL_WHISPER = dict(
    d_model=24,
    encoder_layers=3,
    encoder_attention_heads=4,
    encoder_ffn_dim=40,
    max_source_positions=50,
)
STABLE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
# Few enough that 15 frames reach the exact, the logarithmic and the clipped buckets.
FEW_BUCKETS = dict(num_buckets=16, max_bucket_distance=12)
# Convolutions of SEW, which has thirteen.
SEVEN = dict(conv_kernel=(10, 3, 3, 3, 3, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2))

# A conformer layer has two and a half times the weights of a transformer layer.
CONFORMER = dict(hidden_size=24, intermediate_size=28, conv_dim=(16,) * 7)
BANDS = 20
# Fewer taps than the longest input has frames.
CONVOLUTION = dict(conv_depthwise_kernel_size=7)

LAYOUTS = {
    "wav2vec2-base": (Wav2Vec2Model, Wav2Vec2Config, {}),
    "wav2vec2-large": (Wav2Vec2Model, Wav2Vec2Config, STABLE),
    "hubert-base": (HubertModel, HubertConfig, {}),
    "hubert-large": (HubertModel, HubertConfig, STABLE),
    "hubert-no-projection-norm": (HubertModel, HubertConfig, dict(feat_proj_layer_norm=False)),
    "hubert-batch-norm": (HubertModel, HubertConfig, dict(conv_pos_batch_norm=True)),
    "wavlm-base": (WavLMModel, WavLMConfig, {}),
    "wavlm-large": (WavLMModel, WavLMConfig, STABLE | FEW_BUCKETS | dict(conv_bias=False)),
    "unispeech": (UniSpeechModel, UniSpeechConfig, STABLE),
    "unispeech-sat": (UniSpeechSatModel, UniSpeechSatConfig, {}),
    "data2vec-audio": (
        Data2VecAudioModel,
        Data2VecAudioConfig,
        dict(num_conv_pos_embeddings=3, conv_pos_kernel_size=7),
    ),
    "sew": (SEWModel, SEWConfig, SEVEN),
    "mms": (Wav2Vec2Model, Wav2Vec2Config, STABLE | dict(adapter_attn_dim=6)),
    "conformer-relative": (Wav2Vec2ConformerModel, Wav2Vec2ConformerConfig, CONVOLUTION),
    "conformer-rotary": (
        Wav2Vec2ConformerModel,
        Wav2Vec2ConformerConfig,
        CONVOLUTION
        | dict(position_embeddings_type="rotary", hidden_act="swish")
        | dict(feat_extract_norm="layer", conv_bias=True),
    ),
    "conformer-no-positions": (
        Wav2Vec2ConformerModel,
        Wav2Vec2ConformerConfig,
        CONVOLUTION | dict(position_embeddings_type=None),
    ),
    # Distances beyond both ends of the embedding are among 14 frames.
    "w2v-bert": (
        Wav2Vec2BertModel,
        Wav2Vec2BertConfig,
        CONVOLUTION | dict(left_max_position_embeddings=5, right_max_position_embeddings=3),
    ),
    "w2v-bert-relative": (
        Wav2Vec2BertModel,
        Wav2Vec2BertConfig,
        CONVOLUTION | dict(position_embeddings_type="relative", layer_norm_eps=1e-3),
    ),
    "w2v-bert-rotary": (
        Wav2Vec2BertModel,
        Wav2Vec2BertConfig,
        CONVOLUTION | dict(position_embeddings_type="rotary", hidden_act="gelu"),
    ),
    "whisper": (WhisperEncoder, WhisperConfig, {}),
}
NOT_NORMALIZED = ("wavlm-base", "hubert-no-projection-norm")

CTC_CLASSES = {
    "wav2vec2": Wav2Vec2ForCTC,
    "hubert": HubertForCTC,
    "wavlm": WavLMForCTC,
    "unispeech": UniSpeechForCTC,
    "unispeech-sat": UniSpeechSatForCTC,
    "data2vec-audio": Data2VecAudioForCTC,
    "sew": SEWForCTC,
    "wav2vec2-conformer": Wav2Vec2ConformerForCTC,
    "wav2vec2-bert": Wav2Vec2BertForCTC,
}
TOKENS = ["<s>", "</s>", "<unk>", "|", *"'ETAON"]
# Fine-tuned fixtures: tokens by number, and what differs from the tokenizer's defaults.
CTC = {
    "wav2vec2-base": (["<pad>", *TOKENS], {}),
    "hubert-large": (["<pad>", *TOKENS], dict(do_lower_case=True)),
    "wavlm-base": ([*TOKENS, "<pad>"], {}),
    "sew": (["<pad>", *TOKENS], {}),
}
SMALLER = SMALL | dict(hidden_size=24, num_hidden_layers=2, conv_dim=(16,) * 7)


def model_inputs(extractor, wave: np.ndarray) -> torch.Tensor:
    """What a model reads of one waveform."""
    if isinstance(extractor, WhisperFeatureExtractor):
        window = np.pad(wave, (0, extractor.n_samples - len(wave)))
        # In numpy; with torch installed, the extractor would use torch's float32 spectra.
        return torch.from_numpy(extractor._np_extract_fbank_features(window[None], "cpu"))
    values = extractor(wave, sampling_rate=16000, return_tensors="np")
    if isinstance(extractor, SeamlessM4TFeatureExtractor):
        # Half a frame at the end is not in the mask.
        frames = values["attention_mask"].sum()
        return torch.from_numpy(values["input_features"][:, :frames])
    return torch.from_numpy(values["input_values"])


def encode(model: torch.nn.Module, extractor, wave: np.ndarray) -> dict[str, np.ndarray]:
    """Everything a model computes for the frames of one waveform."""
    found = run(model, model_inputs(extractor, wave))
    if isinstance(model, WhisperEncoder):  # the frames of the window that begin in the waveform
        frames = math.ceil(len(wave) / 320)
        found["last_hidden_state"] = found["last_hidden_state"][:frames]
        for name in ("hidden_states", "keys"):
            found[name] = found[name][:, :frames]
        found["attentions"] = found["attentions"][:, :, :frames]
    return found


# Buffers that follow from the configuration.
CONSTANTS = ("inv_freq", "embed_positions.pe")


def redraw(model: torch.nn.Module, seed: int) -> None:
    """Draw every parameter and buffer of the model at random, at sizes that keep signals alive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point() or name.endswith(CONSTANTS):
                continue
            draw = torch.randn(tensor.shape, generator=generator)
            if name.endswith(("running_var", "original0", "weight_g")):
                tensor.copy_(0.5 + draw.abs())
            elif (tensor.ndim == 1 and name.endswith("weight")) or name.endswith("rel_pos_const"):
                tensor.copy_(1 + 0.3 * draw)
            elif tensor.ndim == 1:
                tensor.copy_(0.3 * draw)
            else:
                tensor.copy_(0.8 * draw * tensor[0].numel() ** -0.5)


def attentions_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The attention of each layer."""
    layers = model.layers if isinstance(model, WhisperEncoder) else model.encoder.layers
    return [layer.self_attn if hasattr(layer, "self_attn") else layer.attention for layer in layers]


def run(model: torch.nn.Module, inputs: torch.Tensor) -> dict[str, np.ndarray]:
    """Everything a model computes for one utterance.

    Of inputs [1, sample], [1, frame, feature], or [1, band, mel frame] of Whisper.
    """
    keys, features, raw = [], [], []
    whisper, squeezed = isinstance(model, WhisperEncoder), model.config.model_type == "sew"

    def note_keys(attention, args, kwargs):  # WavLM's fused function never calls k_proj
        states = args[0] if args else kwargs["hidden_states"]
        keys.append(attention.k_proj(states))

    hooks = [
        attention.linear_k.register_forward_hook(lambda _, args, found: keys.append(found))
        if hasattr(attention, "linear_k")
        else attention.register_forward_pre_hook(note_keys, with_kwargs=True)
        for attention in attentions_of(model)
    ]
    if not squeezed:
        noted, part = (
            (raw, model.layer_norm) if whisper else (features, model.feature_projection.projection)
        )
        hooks.append(part.register_forward_pre_hook(lambda _, args: noted.append(args[0])))
    with torch.no_grad():
        out = model(inputs, output_hidden_states=True, output_attentions=True)
    for hook in hooks:
        hook.remove()
    if hasattr(out, "extract_features"):
        assert torch.equal(out.extract_features, features[0])
    # SEW's last_hidden_state is upsampled; its layers have their norms after the sums.
    last = out.hidden_states[-1] if squeezed else out.last_hidden_state
    # the last state of a Whisper is normed in `hidden_states`, too
    states = (*out.hidden_states[:-1], raw[0]) if whisper else out.hidden_states
    found = {
        "hidden_states": torch.stack(states)[:, 0].numpy(),
        "attentions": torch.stack(out.attentions)[:, 0].numpy(),
        "last_hidden_state": last[0].numpy(),
        "keys": torch.stack(keys).detach()[:, 0].numpy(),
    }
    return found if whisper or squeezed else found | {"features": features[0][0].numpy()}


def sizes_of(config_class) -> dict:
    """How tiny models of a family differ from SMALL."""
    if config_class is Wav2Vec2BertConfig:
        return CONFORMER | dict(feature_projection_input_dim=2 * BANDS)
    return CONFORMER if config_class is Wav2Vec2ConformerConfig else {}


def small_of(config_class) -> dict:
    """Sizes of tiny models of a family."""
    return SMALL_WHISPER if config_class is WhisperConfig else SMALL | sizes_of(config_class)


def make(layout: str, seed: int = 0, sizes: dict | None = None, ctc: bool = False):
    """A redrawn torch model of a layout (with a CTC head if `ctc`) and its feature extractor."""
    model_class, config_class, changes = LAYOUTS[layout]
    sizes = small_of(config_class) | changes if sizes is None else changes | sizes
    config = config_class(**sizes)
    if ctc:
        model_class = CTC_CLASSES[config.model_type]
        tokens, _ = CTC.get(layout, CTC["wav2vec2-base"])
        config.vocab_size, config.pad_token_id = len(tokens), tokens.index("<pad>")
    model = model_class._from_config(config, attn_implementation="eager").eval()
    redraw(model, zlib.crc32(layout.encode()) + seed)
    if config_class is WhisperConfig:
        return model, WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, chunk_length=config.max_source_positions // 50
        )
    if config.model_type == "wav2vec2-bert":
        return model, SeamlessM4TFeatureExtractor(
            feature_size=config.feature_projection_input_dim // 2,
            num_mel_bins=config.feature_projection_input_dim // 2,
        )
    extractor = Wav2Vec2FeatureExtractor(
        do_normalize=layout not in NOT_NORMALIZED,
        return_attention_mask=getattr(config, "feat_extract_norm", "layer") == "layer",
    )
    return model, extractor


def make_tokenizer(layout: str, folder: Path) -> Wav2Vec2CTCTokenizer:
    """The tokenizer of a fine-tuned layout, read from its vocabulary in the folder."""
    tokens, options = CTC.get(layout, CTC["wav2vec2-base"])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=1) + "\n")
    return Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **options)


def save_checkpoint(model, extractor, folder: Path) -> None:
    """A checkpoint folder without what changes from one version of transformers to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        save_file(
            load_file(f"{saved}/model.safetensors"), folder / "model.safetensors", {"format": "pt"}
        )
        config = json.loads(Path(saved, "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    preprocessor = json.dumps(extractor.to_dict(), indent=1, sort_keys=True)
    (folder / "preprocessor_config.json").write_text(preprocessor + "\n")


def waves(model, extractor) -> list[np.ndarray]:
    """The waveforms of a fixture, none of them shorter than a frame."""
    rng = np.random.default_rng(7)
    if isinstance(extractor, SeamlessM4TFeatureExtractor):
        lengths = (560, *LENGTHS[1:])
        return [pulses(0.1 * rng.standard_normal(n)) for n in lengths]
    lengths = SQUEEZED_LENGTHS if model.config.model_type == "sew" else LENGTHS
    return [(0.1 * rng.standard_normal(n) + 0.03).astype(np.float32) for n in lengths]


def write(layout: str) -> None:
    """Write one layout's fixture."""
    model, extractor = make(layout)
    save_checkpoint(model, extractor, FOLDER / layout)
    expected = {}
    for index, wave in enumerate(waves(model, extractor)):
        expected[f"wave_{index}"] = wave
        for name, array in encode(model, extractor, wave).items():
            expected[f"{name}_{index}"] = array
    np.savez_compressed(FOLDER / layout / "expected.npz", **expected)


def write_ctc(layout: str) -> None:
    """Write one fine-tuned layout's fixture."""
    model, extractor = make(layout, sizes=SMALLER, ctc=True)
    folder = CTC_FOLDER / layout
    save_checkpoint(model, extractor, folder)
    tokenizer = make_tokenizer(layout, folder)
    tokenizer.save_pretrained(folder)
    expected = {}
    for index, wave in enumerate(waves(model, extractor)):
        with torch.no_grad():
            logits = model(model_inputs(extractor, wave)).logits
        text = tokenizer.batch_decode(logits.argmax(-1))[0]
        expected |= {f"wave_{index}": wave, f"logits_{index}": logits[0].numpy()}
        expected |= {f"text_{index}": np.array(text)}
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    for name in sys.argv[1:] or LAYOUTS:
        write(name)
        if name in CTC:
            write_ctc(name)

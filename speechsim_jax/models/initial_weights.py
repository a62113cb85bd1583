"""Initial weights, as the training of each family draws them; for training and for baselines."""

import math

import numpy as np

from speechsim_jax.models import weight_names
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.filterbank import cepstrum, gabor
from speechsim_jax.models.weight_names import Weight


def random_tensors(config: EncoderConfig, seed: int) -> dict[str, np.ndarray]:
    """Torch tensors by HF name, drawn as transformers' `_init_weights` of the family draws them.

    Linear and embedding N(0, `initializer_range`), convolutions He normal, norms 1 and 0; wav2vec2
    and WavLM draw the projection and the convolutions' biases uniformly and the positional kernel
    from a normal distribution of another width. (transformers 5 then loses its draw of the
    positional kernel, as weight norm makes a copy, and keeps torch's uniform default; here the draw
    counts, as in fairseq.) Convolutions may start as a filterbank or a cepstrum instead
    (`EncoderConfig.convolutions`).

    Args:
        config: the architecture.
        seed: of the draws; each also depends on the family and the tensor's name, not on the
            other tensors.

    Source: transformers, `_init_weights` of Wav2Vec2, HuBERT and WavLM; fairseq.
    """
    return {row.name: _draw(config, row, seed) for row in weight_names.weight_table(config)}


def _draw(config: EncoderConfig, row: Weight, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *config.family.encode(), *row.name.encode()])
    shape = row.shape[::-1] if row.transposed else row.shape
    kind = row.path[-1]
    if kind in ("scale", "var", "gru_rel_pos_const"):
        values = np.ones(shape)
    elif kind == "mean" or (kind == "bias" and row.path[-2] in ("layer_norm", "batch_norm")):
        values = np.zeros(shape)
    elif row.name.startswith("encoder.pos_conv_embed.conv"):
        values = _positional(config, kind, shape, seed)
    elif row.name.startswith("feature_projection.projection") and config.family != "hubert":
        bound = math.sqrt(1 / config.conv_dim[-1])
        values = rng.uniform(-bound, bound, shape)
    elif row.name.startswith("feature_extractor"):
        values = _convolution(config, row, rng, shape)
    elif kind == "bias":
        values = np.zeros(shape)
    else:
        values = rng.normal(0, config.initializer_range, shape)
    return values.astype(np.float32)


def _convolution(config: EncoderConfig, row: Weight, rng, shape: tuple[int, ...]) -> np.ndarray:
    index = int(row.path[2])
    fan_in = (1 if index == 0 else config.conv_dim[index - 1]) * config.conv_kernel[index]
    if config.convolutions == "cepstrum":
        layer = cepstrum(config.conv_dim, config.conv_kernel)[index]
        return layer.kernel if row.path[-1] == "kernel" else layer.bias
    if row.path[-1] == "kernel":
        if index == 0 and config.convolutions == "gabor":
            return gabor(config.conv_dim[0], config.conv_kernel[0])
        return rng.normal(0, math.sqrt(2 / fan_in), shape)
    if config.family == "hubert":
        return np.zeros(shape)
    return rng.uniform(-math.sqrt(1 / fan_in), math.sqrt(1 / fan_in), shape)


def _positional(config: EncoderConfig, kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The positional kernel; `weight_g` is the norm of the drawn `weight_v`, tap by tap."""
    if kind == "bias":
        return np.zeros(shape)
    taps, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    size = config.hidden_size
    if config.family == "hubert":
        scale = math.sqrt(2 / (taps * size / groups))
    else:
        scale = 2 * math.sqrt(1 / (taps * size))
    rng = np.random.default_rng([seed, *config.family.encode(), *b"encoder.pos_conv_embed"])
    kernel = rng.normal(0, scale, (size, size // groups, taps))
    if kind == "weight_g":
        return np.sqrt(np.sum(np.square(kernel), axis=(0, 1), keepdims=True))
    return kernel

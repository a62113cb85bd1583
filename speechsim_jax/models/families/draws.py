"""Initial weights of networks of wav2vec 2.0's kind, as the training of each family draws them."""

import math

import numpy as np

from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families.family import Weight
from speechsim_jax.models.filterbank import cepstrum, gabor


def draw(config: Wav2Vec2Config, row: Weight, seed: int, plain: bool = False) -> np.ndarray:
    """An initial parameter of a network of wav2vec 2.0's kind, as a torch tensor.

    Args:
        config: the architecture.
        row: the parameter.
        seed: of the draw.
        plain: as HuBERT: biases of convolutions 0, the projection normal, positions He normal.
    """
    rng = np.random.default_rng([seed, *config.family.encode(), *row.name.encode()])
    shape = row.shape[::-1] if row.transposed else row.shape
    kind = row.path[-1]
    if kind in ("scale", "var", "gru_rel_pos_const"):
        values = np.ones(shape)
    elif kind == "mean" or (kind == "bias" and row.path[-2] in ("layer_norm", "batch_norm")):
        values = np.zeros(shape)
    elif row.name.startswith("encoder.pos_conv_embed.conv"):
        values = _positional(config, kind, shape, seed, plain)
    elif row.name.startswith("feature_projection.projection") and not plain:
        bound = math.sqrt(1 / config.conv_dim[-1])
        values = rng.uniform(-bound, bound, shape)
    elif row.name.startswith("feature_extractor"):
        values = _convolution(config, row, rng, shape, plain)
    elif kind == "bias":
        values = np.zeros(shape)
    else:
        values = rng.normal(0, config.initializer_range, shape)
    return values.astype(np.float32)


def _convolution(
    config: Wav2Vec2Config, row: Weight, rng, shape: tuple[int, ...], plain: bool
) -> np.ndarray:
    index = int(row.path[2])
    fan_in = (1 if index == 0 else config.conv_dim[index - 1]) * config.conv_kernel[index]
    if config.convolutions == "cepstrum":
        layer = cepstrum(config.conv_dim, config.conv_kernel)[index]
        return layer.kernel if row.path[-1] == "kernel" else layer.bias
    if row.path[-1] == "kernel":
        if index == 0 and config.convolutions == "gabor":
            return gabor(config.conv_dim[0], config.conv_kernel[0])
        return rng.normal(0, math.sqrt(2 / fan_in), shape)
    if plain:
        return np.zeros(shape)
    return rng.uniform(-math.sqrt(1 / fan_in), math.sqrt(1 / fan_in), shape)


def _positional(
    config: Wav2Vec2Config, kind: str, shape: tuple[int, ...], seed: int, plain: bool
) -> np.ndarray:
    """The positional kernel; `weight_g` is the norm of the drawn `weight_v`, tap by tap."""
    if kind == "bias":
        return np.zeros(shape)
    taps, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    size = config.hidden_size
    scale = math.sqrt(2 / (taps * size / groups)) if plain else 2 * math.sqrt(1 / (taps * size))
    rng = np.random.default_rng([seed, *config.family.encode(), *b"encoder.pos_conv_embed"])
    kernel = rng.normal(0, scale, (size, size // groups, taps))
    if kind == "weight_g":
        return np.sqrt(np.sum(np.square(kernel), axis=(0, 1), keepdims=True))
    return kernel

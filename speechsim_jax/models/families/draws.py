"""Initial weights, as the training of each family draws them."""

import math

import numpy as np

from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.conformer import ConformerConfig
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
    rng, shape = _start(config.family, row, seed)
    if row.name.startswith("encoder.pos_conv_embed.conv"):
        values = _positional(config, row.path[-1], shape, seed, plain)
    elif row.name.startswith("feature_projection.projection") and not plain:
        values = draw_projection(config.conv_dim[-1], config.family, row, seed)
    elif row.name.startswith("feature_extractor") and row.path[-2] != "layer_norm":
        values = _convolution(config, row, rng, shape, plain)
    else:
        values = _elsewhere(config.initializer_range, row, rng, shape)
    return values.astype(np.float32)


def draw_conformer(config: ConformerConfig, row: Weight, seed: int) -> np.ndarray:
    """An initial parameter of conformer layers, as a torch tensor.

    Args:
        config: the architecture.
        row: the parameter.
        seed: of the draw.
    """
    rng, shape = _start(config.family, row, seed)
    if "conv_module" in row.path and row.path[-1] == "kernel":
        values = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
    elif row.path[-1].startswith("pos_bias"):
        bound = math.sqrt(6 / sum(shape))
        values = rng.uniform(-bound, bound, shape)
    else:
        values = _elsewhere(config.initializer_range, row, rng, shape)
    return values.astype(np.float32)


def draw_projection(channels: int, family: str, row: Weight, seed: int) -> np.ndarray:
    """An initial parameter of the projection of features, as a torch tensor.

    Args:
        channels: of the features.
        family: its name.
        row: the parameter.
        seed: of the draw.
    """
    rng, shape = _start(family, row, seed)
    bound = math.sqrt(1 / channels)
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def _start(family: str, row: Weight, seed: int) -> tuple[np.random.Generator, tuple[int, ...]]:
    """The generator of a parameter, and the shape of its torch tensor."""
    rng = np.random.default_rng([seed, *family.encode(), *row.name.encode()])
    return rng, row.shape[::-1] if row.transposed else row.shape


def _elsewhere(
    spread: float, row: Weight, rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    """Of norms, linear maps and embeddings."""
    kind = row.path[-1]
    if kind in ("scale", "var", "gru_rel_pos_const"):
        return np.ones(shape)
    return np.zeros(shape) if kind in ("bias", "mean") else rng.normal(0, spread, shape)


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

"""The families of encoders, by `model_type` in config.json. A new one is a file and a line here."""

from collections.abc import Mapping
from typing import Any

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.families import (
    data2vec_audio,
    hubert,
    sew,
    unispeech,
    wav2vec2,
    wav2vec2_bert,
    wav2vec2_conformer,
    wavlm,
    whisper,
)
from speechsim_jax.models.families.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        wav2vec2.FAMILY,
        hubert.FAMILY,
        wavlm.FAMILY,
        unispeech.UNISPEECH,
        unispeech.UNISPEECH_SAT,
        data2vec_audio.FAMILY,
        sew.FAMILY,
        wav2vec2_conformer.FAMILY,
        wav2vec2_bert.FAMILY,
        whisper.FAMILY,
    )
}

_REFUSED = {
    "sew-d": "its attention is DeBERTa's",
}


def config_from_hf(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
) -> EncoderConfig:
    """Read `config.json` and `preprocessor_config.json`.

    Args:
        config: the parsed config.json.
        preprocessor: the parsed preprocessor_config.json. Without it samples are normalised, the
            default of `Wav2Vec2FeatureExtractor`; that of a Whisper follows from config.json.

    Raises:
        UserError: an architecture that this package does not implement.
    """
    name = config.get("model_type")
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        reason = _REFUSED.get(str(name), "it is not a speech encoder known here")
        raise UserError(
            f"model_type {name!r} in config.json is not supported: {reason} "
            f"(supported: {', '.join(FAMILIES)})"
        )
    return family.config.from_hf(config, preprocessor or {})


def family_of(config: EncoderConfig) -> Family:
    """The family of a configuration."""
    return FAMILIES[config.family]

"""UniSpeech and UniSpeech-SAT: the network of wav2vec 2.0, trained on other objectives.

Source: Wang et al. 2021; Chen et al. 2022 (UniSpeech-SAT).
"""

import dataclasses

from speechsim_jax.models.families import wav2vec2

UNISPEECH = dataclasses.replace(
    wav2vec2.FAMILY, model_type="unispeech", class_stem="UniSpeech", network_of="wav2vec2"
)
UNISPEECH_SAT = dataclasses.replace(
    wav2vec2.FAMILY,
    model_type="unispeech-sat",
    class_stem="UniSpeechSat",
    network_of="wav2vec2",
    mask_embedding=True,
)

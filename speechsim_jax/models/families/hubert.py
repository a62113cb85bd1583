"""HuBERT: the network of wav2vec 2.0.

The projection may lack its norm, or positions be batch-normed. Its training draws other initial
weights (Hsu et al. 2021).
"""

import dataclasses
import functools

from speechsim_jax.models.families import wav2vec2
from speechsim_jax.models.families.draws import draw

FAMILY = dataclasses.replace(
    wav2vec2.FAMILY,
    model_type="hubert",
    class_stem="Hubert",
    network_of="wav2vec2",
    draw=functools.partial(draw, plain=True),
)

"""Initial weights, as the training of each family draws them; for training and for baselines."""

import numpy as np

from speechsim_jax.models import weight_names
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.families import family_of


def random_tensors(config: EncoderConfig, seed: int) -> dict[str, np.ndarray]:
    """Torch tensors by HF name, drawn as transformers' `_init_weights` of the family draws them.

    Linear and embedding N(0, `initializer_range`), convolutions He normal, norms 1 and 0; all but
    HuBERT and SEW draw the projection and the convolutions' biases uniformly, and all but HuBERT
    and data2vec the positional kernel from a normal distribution of another width. (transformers 5
    then loses its draw of that kernel, as weight norm makes a copy, and keeps torch's uniform
    default; here the draw counts, as in fairseq.) Convolutions may start as a filterbank or a
    cepstrum instead (`Wav2Vec2Config.convolutions`).

    Args:
        config: the architecture.
        seed: of the draws; each also depends on the family and the tensor's name, not on the
            other tensors.

    Source: transformers, `_init_weights` of each family; fairseq.
    """
    draw = family_of(config).draw
    return {row.name: draw(config, row, seed) for row in weight_names.weight_table(config)}

"""The architecture of the tiny encoder that tests of several rooms compare."""

from speechsim_jax.models.config import Wav2Vec2Config

CONFIG = Wav2Vec2Config(
    family="wav2vec2",
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    conv_dim=(16,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)

"""The one table of tolerances; beside each, the worst error that was measured and where.

"Absolute" is the largest |a - b|. "Relative" is the largest over neurons of rms(a - b) / rms(b),
rms over frames. Measured on one x86 CPU, float32, jax 0.10.1, torch 2.13.
"""

# A tiny fixture, hidden states up to 5, against torch in float32 (absolute). Measured 4.5e-6
# (wavlm-large); there torch itself is 3.3e-6 from its own float64 run and we are 4.2e-6 from it,
# so what is left is the rounding of both.
PARITY = 1e-5

# Attention probabilities of a tiny fixture (absolute). Measured 2.4e-7; per head, against the
# float64 formula, 2.5e-7.
PARITY_ATTENTION = 1e-5

# The same utterance alone and in a padded batch, every layer (relative). Measured 0.9e-6.
BATCH_RELATIVE = 1e-5

# Full-size models on 2 s of noise against torch in float32, every layer (relative).
FULL_SIZE_RELATIVE = 1e-4

# Attention probabilities of the same (absolute).
FULL_SIZE_ATTENTION = 1e-5

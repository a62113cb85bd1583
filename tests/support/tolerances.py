"""The one table of tolerances; beside each, the worst error that was measured and where.

"Absolute" is the largest |a - b|. "Relative" is the largest over neurons of rms(a - b) / rms(b),
rms over frames. Measured on one x86 CPU, float32, jax 0.10.1, torch 2.13.
"""

# A tiny fixture against torch in float32: hidden states, keys and features, up to 5 (absolute).
# Measured 4.2e-6 for hidden states (wavlm-base, wavlm-large) and 5.9e-6 for features (wavlm-large).
# It is rounding, torch's as much as ours: of wavlm-large's hidden states torch is 3.3e-6 from its
# own float64 run, and we are 4.2e-6 from it.
PARITY = 1e-5

# Mel features of w2v-BERT, normalised, against transformers' extractor and against float64
# (absolute). Measured 5.1e-6 on 9 files of LibriSpeech and 8.0e-6 on the sounds of test_kaldi_mel
# against the extractor, 9.8e-7 against float64.
# Steady noise, whose level hardly varies, is left out: what the extractor gives for it is 1e-5 from
# its own formula in float64, as it rounds the logarithms to float32.
MEL = 1e-5

# Attention probabilities of a tiny fixture (absolute). Measured 3.7e-7 against torch, and 6.5e-7
# per head against the float64 formula; with fresh weights and inputs 4.8e-7.
PARITY_ATTENTION = 1e-5

# Whisper's log-mel spectra against transformers' in numpy, on speech, noise, tones and clicks
# (absolute, of -1.5 to 2). Measured 3.6e-7 (chirp); a plain float32 transform is 5e-5 off.
LOG_MEL = 2e-6

# The same utterance alone and in a padded batch, every layer (relative, over the frames of eight
# utterances). Measured 1.4e-6 (wav2vec2-large).
BATCH_RELATIVE = 1e-5

# Full-size models on 2 s of noise against torch in float32, every layer (relative). Measured 1.1e-5
# (wavlm-base, layer 12); 8.7e-6 wav2vec2-base, 7.4e-6 hubert-large, 7.5e-6 wav2vec2-large, 5.0e-6
# wavlm-large, 8.6e-6 hubert-xlarge (layer 42), 1.4e-5 wav2vec2-conformer of 24 layers with relative
# positions, 9.4e-6 with rotary ones, 3.7e-6 w2v-bert of 24 layers, 1.3e-5 unispeech-sat-base,
# 7.1e-6 unispeech-large, 1.9e-5 data2vec-audio-base, 1.3e-5 whisper-base, 1.9e-5 whisper-small,
# 8.9e-6 mms-1b-all (6 of its 48 layers), 7.4e-5 sew-mid (of 24 layers the last, whose frames differ
# by 0.7 % of their states; absolute 4.8e-6 of 6.1).
FULL_SIZE_RELATIVE = 1e-4

# Attention probabilities of the same (absolute). Measured 2.0e-6 (wav2vec2-base).
FULL_SIZE_ATTENTION = 1e-5

# Measures of the attention level, float32 sums over padded batches against float64 sums over whole
# maps (absolute). Measured 2.9e-7 on the golden maps.
ATTENTION_MEASURES = 1e-5

# Every measure of a whole comparison, on several devices against one (absolute). Measured 1.7e-7
# (pwcca).
MESH = 1e-5

# Standard errors of a whole comparison, on several devices, in shards or resumed against one job on
# one device (relative).
ERRORS_RELATIVE = 1e-5

# The same with batches of other shapes, which change hidden states by rounding: what turns svcca's
# subspaces is divided by differences of eigenvalues, and ranks of rsa are exchanged. Measured
# 1.3e-5 (svcca, 1,160 rows), 2.1e-5 (svcca on four devices), 1.8e-5 (rsa, 100 rows); with the same
# batches rsa is equal on two devices. And of NAME_se_error on four devices, which has squares of
# sums that nearly cancel: measured 1.3e-5.
ERRORS_RELATIVE_BATCHES = 1e-4

# Losses of trainings against torch's, float32 on both sides (relative). Measured 2.2e-7.
TRAINING_LOSS = 1e-5

# Their gradients (each tensor's, relative to its norm). Measured 1.2e-5.
TRAINING_GRADIENT = 1e-4

# Six steps of a training on two devices against one, all figures of each (relative). Measured
# 3.7e-7.
TRAINING_MESH = 1e-5

# The zoo's trained models against torch in float32, every layer (relative). Measured 3.3e-6
# (contrastive_b); states are up to 51, so that 4.2e-5 of them is float32's rounding.
ZOO_RELATIVE = 1e-5

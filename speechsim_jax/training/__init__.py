"""Objectives: contrastive, masked prediction and CTC, as sums over utterances; their targets."""

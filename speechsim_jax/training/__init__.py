"""Objectives (contrastive, masked prediction, CTC) as sums over utterances; the trainer."""

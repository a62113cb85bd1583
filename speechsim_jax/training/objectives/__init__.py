"""Training objectives: contrastive, masked prediction of clusters, CTC."""

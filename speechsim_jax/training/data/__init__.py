"""Training data: splits, batches, cluster labels, alphabets."""

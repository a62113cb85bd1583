"""What training reads: splits, batches, cluster labels, alphabets."""

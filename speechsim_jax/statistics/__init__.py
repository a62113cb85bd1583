"""What is summed over batches: accumulators, their states, and what measures read of these."""

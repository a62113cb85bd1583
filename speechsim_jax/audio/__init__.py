"""Audio in: corpora, which utterances are read, batches of them, and their alignments."""

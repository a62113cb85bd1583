"""Studies made of results: the paper replicated, phone probes, learning dynamics."""

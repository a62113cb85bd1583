"""Analyses built on results: replication of the paper, phone probes, learning dynamics."""

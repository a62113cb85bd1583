"""Linear phone probes of every layer."""

"""Linear phone probes of every layer of an encoder."""

"""What runs underneath: devices, several processes, checkpoints of a run, provenance."""

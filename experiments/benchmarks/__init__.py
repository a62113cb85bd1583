"""What `experiments.benchmark` can measure, one module each; nothing here asserts anything."""

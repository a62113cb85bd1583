"""The measurements of `experiments.benchmark`, one module each; nothing here asserts anything."""

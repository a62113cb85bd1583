"""Encoders: configuration, modules, checkpoints and the weight table between them."""

"""Training of speech encoders: recipes, data, objectives, the training loop and its files."""

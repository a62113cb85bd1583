"""What encoders are trained to do: contrast, predict clusters, transcribe."""

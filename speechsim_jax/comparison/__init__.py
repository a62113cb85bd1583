"""The comparisons: of encoders on audio, of arrays, of attention maps, and of merged jobs."""

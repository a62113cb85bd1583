"""python -m experiments.transcribe: `speechsim transcribe` from a clone."""

from speechsim_jax.commands import flags, transcribe

if __name__ == "__main__":
    flags.start(transcribe.main)

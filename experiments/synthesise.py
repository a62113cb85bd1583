"""python -m experiments.synthesise: `speechsim synthesise` from a clone."""

from speechsim_jax.commands import flags, synthesise

if __name__ == "__main__":
    flags.start(synthesise.main)

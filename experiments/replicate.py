"""python -m experiments.replicate: `speechsim replicate` from a clone."""

from speechsim_jax.commands import flags, replicate

if __name__ == "__main__":
    flags.start(replicate.main)

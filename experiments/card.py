"""python -m experiments.card: `speechsim card` from a clone."""

from speechsim_jax.commands import card, flags

if __name__ == "__main__":
    flags.start(card.main)

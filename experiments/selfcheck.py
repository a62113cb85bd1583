"""python -m experiments.selfcheck: `speechsim selfcheck` from a clone."""

from speechsim_jax.commands import flags, selfcheck

if __name__ == "__main__":
    flags.start(selfcheck.main)

"""python -m experiments.probe: `speechsim probe` from a clone."""

from speechsim_jax.commands import flags, probe

if __name__ == "__main__":
    flags.start(probe.main)

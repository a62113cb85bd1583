"""python -m experiments.demo: `speechsim demo` from a clone."""

from speechsim_jax.commands import demo, flags

if __name__ == "__main__":
    flags.start(demo.main)

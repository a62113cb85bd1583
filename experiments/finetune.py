"""python -m experiments.finetune: `speechsim finetune` from a clone."""

from speechsim_jax.commands import finetune, flags

if __name__ == "__main__":
    flags.start(finetune.main)

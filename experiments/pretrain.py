"""python -m experiments.pretrain: `speechsim pretrain` from a clone."""

from speechsim_jax.commands import flags, pretrain

if __name__ == "__main__":
    flags.start(pretrain.main)

"""Can this machine's JAX be trusted? A minute of checks on the default device.

    speechsim selfcheck

Each check computes something on the device and again in plain float64 numpy (the encoder: in
float64 on the CPU), and prints its error and the largest one allowed. Exit code 1 if one fails. It
is known to catch jaxlib 0.10.2, whose CPU compiler silently returns wrong numbers
(jax-ml/jax#39103).

Then there is a line for each algorithm of products (`--stats_precision`): its errors, its time.
"""

import importlib.metadata
import sys

from absl.flags import FlagValues

from speechsim_jax.commands import flags


def define_flags() -> FlagValues:
    """This command has no flags."""
    return flags.define()


def main(values: FlagValues | None = None) -> None:
    """Run all checks; exit code 1 if one fails."""
    import jax

    from speechsim_jax.commands import machine_checks

    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, jaxlib {importlib.metadata.version('jaxlib')}, "
        f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    )
    checks = machine_checks.checks()
    failed = [check.name for check in checks if not machine_checks.passes(check)]
    if failed:
        print(f"{len(failed)} of {len(checks)} checks failed: do not trust figures from here")
        sys.exit(1)
    machine_checks.print_algorithms()

"""The self-check passes here, and each of its checks fails when what it checks is broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from speechsim_jax.commands import machine_checks, run_command
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.settings import ALGORITHMS
from speechsim_jax.statistics import (
    attention_accumulator,
    attention_sums,
    moments,
    moments_accumulator,
    moments_finished,
    product_precision,
)

CHECKS = {check.figure.__name__: check for check in machine_checks.checks()}


@pytest.fixture
def run(capsys):
    """Exit code and lines of the script, run in this process."""

    def call() -> tuple[int, list[str]]:
        capsys.readouterr()
        code = 0
        try:
            run_command("selfcheck", [])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            code = ended.code
        return code, capsys.readouterr().out.splitlines()

    return call


@pytest.mark.slow
def test_passes_here(run):
    code, lines = run()
    assert code == 0, lines
    assert lines[0].startswith(f"jax {jax.__version__}, jaxlib ")
    algorithms = [line for line in lines if line.startswith("       products by ")]
    assert [line[:7] for line in lines[1:]] == ["ok     "] * len(CHECKS) + [" " * 7] * 8
    for line, name in zip(algorithms, ("highest", *ALGORITHMS), strict=True):
        here = ": covariance error " in line
        assert f" {name}: " in line and (here or line.endswith(": not on this device"))
        assert here == (name == "highest" or not product_precision.lacking(name))
    for line, check in zip(lines[1:], CHECKS.values()):
        assert check.name in line and f"(at most {check.bar:g})" in line


def _miscompile(monkeypatch):
    vmap = jax.vmap
    monkeypatch.setattr(jax, "vmap", lambda f: lambda x: vmap(f)(x).at[::2].set(0))


def _round_operands(monkeypatch):
    products = attention_sums.products
    rounded = lambda maps: products(maps.astype(jnp.bfloat16).astype(jnp.float32))  # noqa: E731
    monkeypatch.setattr(attention_sums, "products", rounded)


def _lose_digits(monkeypatch):
    monkeypatch.setattr(moments, "two_sum", lambda a, b: (a + b, jnp.zeros_like(b)))


def _round_encoder(monkeypatch):
    encoder = machine_checks._encoder
    monkeypatch.setattr(machine_checks, "_encoder", lambda: encoder().astype("bfloat16"))


def _hear_the_padding(monkeypatch):
    apply = SpeechEncoder.apply

    def all_of_it(self, samples, lengths, *args, **kwargs):
        return apply(self, samples, np.full_like(lengths, samples.shape[1]), *args, **kwargs)

    monkeypatch.setattr(SpeechEncoder, "apply", all_of_it)


def _without_reference(monkeypatch):
    reference_mean = moments_accumulator._reference_mean
    zero = lambda *args: jax.tree.map(jnp.zeros_like, reference_mean(*args))  # noqa: E731
    monkeypatch.setattr(moments_accumulator, "_reference_mean", zero)


def _poor_logarithm(monkeypatch):
    log = attention_sums._log
    monkeypatch.setattr(attention_sums, "_log", lambda x: log(x) * (1 + 1e-3))
    # Without what shapes of other tests have compiled, and leaving nothing to others.
    monkeypatch.setattr(
        attention_accumulator, "_program", attention_accumulator._program.__wrapped__
    )


def _no_correlations(monkeypatch):
    monkeypatch.setattr(
        moments_finished.FinishedMoments, "correlate", lambda self, scatter, x, y: scatter * np.nan
    )


BROKEN = {
    "miscompiled_rows": _miscompile,
    "product_error": _round_operands,
    "lost_small_terms": _lose_digits,
    "encoder_error": _round_encoder,
    "batch_error": _hear_the_padding,
    "covariance_error": _without_reference,
    "attention_error": _poor_logarithm,
    "scores_missing": _no_correlations,
}


def test_every_check_is_broken_below():
    assert list(BROKEN) == list(CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_fails_when_its_subject_is_broken(name, run, monkeypatch):
    check = CHECKS[name]
    BROKEN[name](monkeypatch)
    monkeypatch.setattr(machine_checks, "checks", lambda: (check,))
    code, lines = run()
    assert code == 1
    assert lines[1].startswith(f"FAILED {check.name}: ")
    assert lines[2].startswith("1 of 1 checks failed")


def test_what_raises_or_is_nan_has_failed(run, monkeypatch):
    def crash() -> float:
        raise RuntimeError("no such\nkernel")

    made = (
        machine_checks.Check("crash", crash, 1),
        machine_checks.Check("nan", lambda: float("nan"), 1),
        machine_checks.Check("at the bar", lambda: 1.0, 1),
    )
    monkeypatch.setattr(machine_checks, "checks", lambda: made)
    code, lines = run()
    assert code == 1
    assert lines[1:] == [
        "FAILED crash: RuntimeError: no such kernel",
        "FAILED nan: nan (at most 1)",
        "ok     at the bar: 1 (at most 1)",
        "2 of 3 checks failed: do not trust figures from here",
    ]

"""`compare` with encoders that are objects, against the same encoders as they are."""

import dataclasses
import sys

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.models.external import Representing, measured
from speechsim_jax.pipeline import accumulators
from tests.support.budgets import least_gb
from tests.support.small_models import QUICK, waves
from tests.support.wrapped import Wrapped, half_rate

pytestmark = pytest.mark.slow

SETTINGS = {"measures": "lincka,maxcorr,linreg", "exemplars": 2} | QUICK


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def result(encoders) -> ss.SimilarityResult:
    return ss.compare(encoders, waves(), **SETTINGS)


def assert_close(found: ss.SimilarityResult, expected: ss.SimilarityResult) -> None:
    assert found.representations == expected.representations
    for name in expected.measures:
        apart = np.abs(found.matrix(name).values - expected.matrix(name).values)
        assert apart.max() < 1e-6, name


@pytest.mark.parametrize("batch_seconds", [1.5, 3, 12])
def test_scores_are_those_of_the_encoders(encoders, result, batch_seconds):
    mixed = [encoders[0], Wrapped(encoders[1])]
    assert isinstance(mixed[1], Representing) and not isinstance(mixed[0], Representing)
    found = ss.compare(mixed, waves(), **SETTINGS | {"batch_seconds": batch_seconds})
    assert_close(found, result)


def test_both_may_be_objects(encoders, result):
    found = ss.compare([Wrapped(e, np.asarray) for e in encoders], waves(), **SETTINGS)
    assert_close(found, result)
    record = found.attributes["models"]["hubert-large"]
    assert (record["class"], record["module"]) == ("Wrapped", "tests.support.wrapped")
    assert "sha256" in record["notes"][0]


def test_in_several_passes_and_with_a_second_reading(encoders, result):
    models = [encoders[0], Wrapped(encoders[1])]
    several = SETTINGS | {"exemplars": 0, "errors_source": "reading"}
    budget = 1.1 * least_gb(ss.compare, models, waves(), **several)
    found = ss.compare(models, waves(), **several, device_memory_gb=budget)
    assert found.attributes["passes"] > 1
    assert_close(found, result)


def test_layers(encoders, result):
    found = ss.compare([Wrapped(encoders[0])], waves(), layers=(0, -1), **SETTINGS)
    last = encoders[0].config.num_hidden_layers
    assert [name.layer for name in found.representations] == [0, last]
    expected = result.matrix("maxcorr").loc["wav2vec2-base/0", f"wav2vec2-base/{last}"]
    assert found.matrix("maxcorr").values[0, 1] == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(UserError, match="layers 0 to"):
        ss.compare([Wrapped(encoders[0])], waves(), layers=(9,), **SETTINGS)


def test_half_the_rate_is_compared_with_means(encoders):
    """An object that returns means of two frames is, on its own frames, the encoder."""
    slow = dataclasses.replace(encoders[0], name="slow")
    models = [Wrapped(slow, change=half_rate), encoders[0]]
    found = ss.compare(models, waves(), **SETTINGS)
    assert found.attributes["frame_grid"]["of"] == "slow"
    assert found.attributes["frame_grid"]["hop_seconds"] == 0.04
    depth = encoders[0].config.num_hidden_layers + 1
    assert np.diag(found.matrix("lincka").values[:depth, depth:]) == pytest.approx(1, abs=1e-5)


def _interrupt(monkeypatch, models, folder) -> None:
    append, batches = accumulators.Accumulators.append, []

    def dies(self, *args):
        batches.append(args)
        if len(batches) > 2:
            raise Killed
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", dies)
        with pytest.raises(Killed):
            ss.compare(models, waves(), statistics_dir=folder, checkpoint_every=0, **SETTINGS)


def test_a_job_resumes_with_the_same_object(monkeypatch, encoders, tmp_path, caplog):
    models = [encoders[0], Wrapped(encoders[1])]
    whole = ss.compare(models, waves(), **SETTINGS)
    _interrupt(monkeypatch, models, tmp_path)
    with caplog.at_level("INFO"):
        found = ss.compare(models, waves(), statistics_dir=tmp_path, **SETTINGS)
    assert "resuming after batch 2" in caplog.text
    for name in whole.measures:
        assert np.array_equal(found.matrix(name).values, whole.matrix(name).values), name


class Versioned(Wrapped):
    version = "1"


def _doubled(found: ss.Representations) -> ss.Representations:
    return dataclasses.replace(found, arrays=2 * found.arrays)


def test_another_object_is_another_job(monkeypatch, encoders, tmp_path):
    models = [encoders[0], Versioned(encoders[1])]
    _interrupt(monkeypatch, models, tmp_path)
    newer = Versioned(encoders[1])
    newer.version = "2"
    renamed = dataclasses.replace(encoders[1], name="hubert-large")
    for other, words in (
        (newer, "models: hubert-large"),
        (Wrapped(encoders[1]), "models: hubert-large"),
        (Versioned(encoders[1], change=half_rate), "models: hubert-large"),
        (Versioned(renamed, change=_doubled), "hubert-large gives other activations"),
    ):
        with pytest.raises(UserError, match=words):
            ss.compare([encoders[0], other], waves(), statistics_dir=tmp_path, **SETTINGS)


def test_nan_is_named(encoders):
    def spoiled(found):
        return dataclasses.replace(found, arrays=found.arrays.at[1, 0, 3, 5].set(np.nan))

    with pytest.raises(UserError, match=r"hubert-large: hidden states .* NaN .* frame 3"):
        ss.compare([Wrapped(encoders[1], change=spoiled)], waves(2), **SETTINGS)


def test_what_only_encoders_have_is_refused(encoders):
    models = [encoders[0], Wrapped(encoders[1])]
    for settings in (
        {"measures": "attn_frobenius", "exemplars": 0},
        {"model_dtype": "bfloat16"},
    ):
        with pytest.raises(UserError, match="hubert-large") as caught:
            ss.compare(models, waves(2), **SETTINGS | settings)
        assert "\n" not in str(caught.value)


def test_of_one_class_they_get_numbers(encoders):
    models = [Wrapped(encoders[0]), Wrapped(encoders[0])]
    found = ss.compare(models, waves(2), **SETTINGS | {"layers": (0,)})
    assert found.models == ("wav2vec2-base#1", "wav2vec2-base#2")
    assert measured(models[0]).provenance["source"] == "tests.support.wrapped.Wrapped"


@pytest.mark.parametrize("models", [["torch:me/mine"], ["torch:tests"]])
def test_without_torch_one_line_says_what_to_install(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'speechsim_jax\[torch\]'"):
        ss.compare(models, waves(2), **SETTINGS)


def test_only_comparisons_run_torch():
    with pytest.raises(UserError, match=r"torch:me/mine: .*compare"):
        ss.load_encoder("torch:me/mine")


def test_patterns_of_modules_need_a_model_of_torch(encoders):
    with pytest.raises(UserError, match="torch_layers"):
        ss.compare(encoders, waves(2), torch_layers=("encoder.layers.*",), **SETTINGS)


def test_what_is_not_known_of_memory_is_said(encoders, caplog):
    with caplog.at_level("INFO"):
        ss.compare([encoders[0], Wrapped(encoders[1])], waves(2), **SETTINGS)
    (line,) = [line for line in caplog.messages if "not known" in line and "memory" in line]
    assert "hubert-large" in line and "wav2vec2-base" not in line

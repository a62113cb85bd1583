"""Exemplars in a result: names of any kind, neurons without any, and older files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.results.exemplars import exemplar_variables
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.statistics.exemplars import Exemplars
from tests.support.hostile import NAMES
from tests.support.report_results import SMALL, Shape, random_result, with_exemplars


def test_names_of_any_kind_come_back(tmp_path: Path) -> None:
    result = with_exemplars(random_result(SMALL), dict.fromkeys(NAMES, 16_000))
    loaded = SimilarityResult.load(result.save(tmp_path / "result.nc"))
    seen = set()
    for label in result.representations:
        found = loaded.exemplars(label)
        assert found == result.exemplars(label)
        seen |= {exemplar.utterance for exemplar in found}
    assert seen == set(NAMES)
    size = sum(result.dataset[f"exemplar_{n}"].nbytes for n in ("value", "utterance", "sample"))
    assert size == 12 * 5 * len(result.representations) * 40


def test_dead_neurons_and_representations_without_exemplars_have_none(tmp_path: Path) -> None:
    found = Exemplars(
        utterances=("a", "b"),
        value=np.array([[3.0, 2.0, 5.0], [1.0, -np.inf, 4.0]], np.float32),
        utterance=np.array([[1, 0, 0], [0, -1, 1]], np.int32),
        sample=np.array([[200, 520, 840], [1160, 0, 0]], np.int32),
        lowest=np.array([0, 0, 0], np.float32),
        layers=((0, 0),),
        widths=(3,),
    )
    plain = random_result({"m": Shape(2, 3, 0)})
    live = [np.array([True, True, False]), np.ones(3, bool)]
    result = SimilarityResult(plain.dataset.assign(exemplar_variables(found, live)))
    assert result.exemplars("m/0") == (
        (0, 1, 3.0, "b", 0.0125),
        (0, 2, 1.0, "a", 0.0725),
        (1, 1, 2.0, "a", 0.0325),
    )
    assert result.exemplars("m/0", 0) == result.exemplars("m/0")[:2]
    assert result.exemplars("m/0", 2) == result.exemplars("m/1") == ()
    with pytest.raises(UserError, match="neurons 0 to 2"):
        result.exemplars("m/0", 3)

    none = np.full((2, 3), -1, np.int32)
    nothing = dataclasses.replace(found, utterances=(), utterance=none)
    empty = SimilarityResult(plain.dataset.assign(exemplar_variables(nothing, live)))
    loaded = SimilarityResult.load(empty.save(tmp_path / "empty.nc"))
    assert loaded.exemplars("m/0") == ()


def test_a_result_without_exemplars_says_so() -> None:
    with pytest.raises(UserError, match="no exemplars"):
        random_result(SMALL).exemplars("runs/third-large/1")

"""A second reading of the audio, for standard errors of whole comparisons."""

import unittest.mock

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.measures import influence_sums
from tests.support.budgets import least_gb
from tests.support.same_result import assert_same_result
from tests.support.small_models import QUICK, of_speakers

SETTINGS = QUICK | {"measures": "maxcorr,linreg,lincka,svcca"}
FEW = {"errors_rows": 200}


class Killed(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(scope="module")
def corpus():
    """24 utterances of 12 speakers."""
    return of_speakers(24, 12)


@pytest.fixture(scope="module")
def all_rows(encoders, corpus) -> ss.SimilarityResult:
    """Every row is in the sample."""
    return ss.compare(encoders, corpus, **SETTINGS, errors_source="sample")


def kill_the_reading(encoders, corpus, folder, batches: int, **settings) -> None:
    """Begin a comparison that ends after some batches of the second reading."""
    add, added = influence_sums.InfluenceSums.add, []

    def dies(self, *rows) -> None:
        added.append(rows)
        if len(added) > batches:
            raise Killed
        add(self, *rows)

    with (
        unittest.mock.patch.object(influence_sums.InfluenceSums, "add", dies),
        pytest.raises(Killed),
    ):
        ss.compare(encoders, corpus, statistics_dir=folder, **SETTINGS | settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"errors_source": "reading"},
        FEW,
        {"errors_source": "reading", "batch_seconds": 1, "rows_per_update": 64, "heldout": True},
    ],
    ids=["reading", "auto", "batches"],
)
def test_it_gives_what_all_rows_give(settings, encoders, corpus, all_rows):
    result = ss.compare(encoders, corpus, **SETTINGS | settings)
    assert result.attributes["errors"]["source"] == "reading"
    assert result.attributes["errors"]["rows"] == result.attributes["rows"]
    assert_same_result(result, all_rows, 1e-4 if "batch_seconds" in settings else 1e-6)
    names = list(map(str, result.representations))
    cells = [(names[k], names[-1]) for k in (1, 2)]
    one, other = (r.contrast("lincka", *cells) for r in (result, all_rows))
    assert one.standard_error == pytest.approx(other.standard_error, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"errors_source": "reading"}, FEW], ids=["reading", "auto"])
def test_killed_and_resumed(settings, encoders, corpus, all_rows, tmp_path, caplog):
    caplog.set_level("INFO")
    kill_the_reading(encoders, corpus, tmp_path, 5, checkpoint_every=0, **settings)
    caplog.clear()
    resumed = ss.compare(encoders, corpus, statistics_dir=tmp_path, **SETTINGS | settings)
    assert "resuming after batch 5" in caplog.text and "completed by an earlier run" in caplog.text
    assert_same_result(resumed, all_rows, 1e-6)
    assert not list(tmp_path.rglob("reading-*"))
    caplog.clear()
    again = ss.compare(encoders, corpus, statistics_dir=tmp_path, **SETTINGS | settings)
    assert "second" not in caplog.text or "scored by an earlier run" in caplog.text
    np.testing.assert_array_equal(again.matrix("lincka_se"), resumed.matrix("lincka_se"))
    # Another source of errors is no other job.
    if settings == FEW:
        sampled = ss.compare(
            encoders, corpus, statistics_dir=tmp_path, **SETTINGS | FEW, errors_source="sample"
        )
        assert sampled.attributes["errors"]["source"] == "sample"


@pytest.mark.slow
def test_where_it_cannot_be(encoders, corpus, tmp_path, caplog):
    """Shards, merges and too little memory: refused, or the sample's errors and said."""
    settings = SETTINGS | {"statistics_dir": tmp_path}
    with pytest.raises(UserError, match="errors_source") as error:
        ss.accumulate(encoders, corpus, shard="1/2", errors_source="reading", **settings)
    assert "\n" not in str(error.value)
    for shard in ("1/2", "2/2"):
        ss.accumulate(encoders, corpus, shard=shard, **settings, **FEW)
    caplog.set_level("INFO")
    merged = ss.merge([tmp_path], progress=False)
    assert merged.attributes["errors"]["source"] == "sample" and "no second" in caplog.text


@pytest.mark.slow
def test_a_stored_job_without_a_sample_merges_without_errors(encoders, corpus, tmp_path):
    ss.compare(encoders, corpus, statistics_dir=tmp_path, **SETTINGS, errors_source="reading")
    merged = ss.merge([tmp_path], progress=False)
    with pytest.raises(UserError, match="no sample of rows"):
        merged.standard_error("lincka")


@pytest.mark.slow
def test_memory_for_the_sample_is_planned(encoders, corpus):
    """The smallest budget grows with the rows of the sample, and not with those of a reading."""
    least = {
        source: least_gb(ss.compare, encoders, corpus, **SETTINGS, errors_source=source)
        for source in ("sample", "reading")
    }
    assert least["sample"] > least["reading"]
    with pytest.raises(UserError, match="all models at once"):
        ss.compare(
            encoders, corpus, **SETTINGS, device_memory_gb=least["reading"],
            errors_source="reading",
        )  # fmt: skip

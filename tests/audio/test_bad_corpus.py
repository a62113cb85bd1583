"""One comparison over 2,000 files with every kind of bad one among them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from tests.support import bad_corpus
from tests.support.tiny_encoders import CONFIG

SETTINGS = {"measures": "lincka,maxcorr", "batch_seconds": 20, "buckets": 2, "progress": False}


def _alone(written: bad_corpus.Written, root: Path, folder: Path) -> Path:
    """The good files in a folder of their own."""
    for id_ in written.good:
        (folder / id_).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / id_, folder / id_)
    return folder


@pytest.mark.slow
def test_exactly_the_bad_files_are_left_out(tmp_path):
    written = bad_corpus.write(tmp_path / "mixed", 2000)
    assert len(written.good) + len(written.bad) == 2000 + written.duplicates
    assert set(written.kinds) == set(bad_corpus.BAD)
    models = [save_folder(tmp_path / f"m{k}", CONFIG, random_tensors(CONFIG, k)) for k in (0, 1)]

    mixed = ss.compare(models, str(tmp_path / "mixed"), **SETTINGS)
    attributes = mixed.attributes
    reasons = {skipped["id"]: skipped["reason"] for skipped in attributes["skipped"]}
    assert sorted(reasons) == sorted(written.bad)
    for id_, reason in reasons.items():
        assert reason.startswith(written.bad[id_]), (id_, reason, written.bad[id_])
        assert "\n" not in reason
    assert attributes["utterances"] == len(written.good)
    assert attributes["duplicates"] == written.duplicates
    assert attributes["corpus"]["passed_over"] == written.passed_over

    alone = ss.compare(
        models, str(_alone(written, tmp_path / "mixed", tmp_path / "alone")), **SETTINGS
    )
    assert alone.attributes["skipped"] == []
    assert alone.attributes["utterances"] == len(written.good)
    assert alone.attributes["frames"] == attributes["frames"]
    assert alone.attributes["reading"] == attributes["reading"]
    for measure in mixed.measures:
        np.testing.assert_allclose(
            mixed.dataset[measure], alone.dataset[measure], atol=1e-6, rtol=0
        )

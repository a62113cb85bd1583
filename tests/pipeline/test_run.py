"""Several passes give the result of one, hold only what they need, and can be resumed."""

import json
import re
import unittest.mock

import jax
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import UserError
from speechsim_jax.models import forward
from speechsim_jax.pipeline import accumulators, one_pass
from speechsim_jax.runtime import mesh as sharding
from tests.support.budgets import several_passes_gb
from tests.support.paths import DATA
from tests.support.same_result import assert_same_result

FOLDER = DATA / "parity"
SETTINGS = {
    "batch_seconds": 2,
    "buckets": 1,
    "rows_per_update": 40,
    "sample_frames": 100,
    "progress": False,
}
MEASURES = "maxcorr,mincorr,linreg,lincka,lincka_debiased,svcca,pwcca,rsa"
ATTENTION = "attn_frobenius,attn_lincka"


@pytest.fixture(scope="module")
def audio() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.choice([4000, 7000, 9000], 13)
    waves = {f"u{i}": 0.1 * rng.standard_normal(n) for i, n in enumerate(lengths)}
    return {name: wave.astype(np.float32) for name, wave in waves.items()} | {
        "silent": np.zeros(100, np.float32)
    }


@pytest.fixture(scope="module")
def encoders() -> list[ss.SpeechEncoder]:
    return [ss.load_encoder(FOLDER / name) for name in ("wavlm-base", "hubert-large")]


@pytest.fixture(scope="module")
def one(encoders, audio) -> ss.SimilarityResult:
    return ss.compare(encoders, audio, measures=f"{MEASURES},{ATTENTION}", **SETTINGS)


@pytest.fixture(scope="module")
def budget_gb(encoders, audio) -> float:
    return several_passes_gb(ss.compare, encoders, audio, measures="lincka", **SETTINGS)


@pytest.mark.slow
def test_several_passes_give_what_one_gives(encoders, audio, one, budget_gb):
    result = ss.compare(encoders, audio, measures=MEASURES, device_memory_gb=budget_gb, **SETTINGS)
    assert result.attributes["passes"] >= 3
    assert one.attributes["passes"] == 1
    assert_same_result(result, one)
    for name in ("frames", "rows", "utterances", "seconds", "skipped"):
        assert result.attributes[name] == one.attributes[name]
    assert [skipped["id"] for skipped in result.attributes["skipped"]] == ["silent"]


@pytest.mark.slow
def test_attention_has_a_pass_of_its_own(encoders, audio, one):
    """Where it does not fit next to the moments; with too little for itself that is an error."""
    measures = f"lincka,{ATTENTION}"
    with pytest.raises(UserError, match="for the attention of these models; give at") as raised:
        ss.compare(encoders, audio, measures=measures, device_memory_gb=1e-6, **SETTINGS)
    least = int(re.search(r"at least (\d+)", str(raised.value))[1])
    result = ss.compare(
        encoders, audio, measures=measures, device_memory_gb=least / 1e9, **SETTINGS
    )
    assert result.attributes["passes"] == 2
    assert_same_result(result, one)


def test_only_what_a_pass_needs_is_on_the_devices(encoders):
    """Parameters of other layers stay numpy arrays, and a shallow pass runs without them."""
    whole = encoders[0]
    mesh = sharding.mesh_from("data:1")
    shallow = forward.on_devices(forward.on_host(whole), mesh, depth=1)
    where = {
        forward.layer_of(path): isinstance(leaf, jax.Array)
        for path, leaf in jax.tree_util.tree_flatten_with_path(shallow.parameters)[0]
    }
    assert where == {None: True, 0: True, 1: False, 2: False}
    wave = np.random.default_rng(1).standard_normal(3000).astype(np.float32)
    result, expected = (e([wave], layers=[0, 1]).hidden_states for e in (shallow, whole))
    np.testing.assert_array_equal(result, expected)


class Killed(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.slow
def test_a_run_of_several_passes_is_resumed(encoders, audio, one, budget_gb, tmp_path):
    """Complete passes are not read again, and the plan stays, even with more memory."""
    arguments = {"measures": MEASURES, "statistics_dir": tmp_path, "checkpoint_every": 0} | SETTINGS
    append, batches = accumulators.Accumulators.append, []

    def dies(self, *batch):
        batches.append(batch)
        if len(batches) > 16:
            raise Killed
        append(self, *batch)

    dying = unittest.mock.patch.object(accumulators.Accumulators, "append", dies)
    with dying, pytest.raises(Killed):
        ss.compare(encoders, audio, device_memory_gb=budget_gb, **arguments)
    assert len(list(tmp_path.glob("shard-1-of-1/pass-1.*/statistics.json"))) == 1
    (plan,) = tmp_path.glob("plan.*.json")
    division = json.loads(plan.read_text())["division"]["tiles"]
    read = unittest.mock.Mock(wraps=one_pass._read_corpus)
    with unittest.mock.patch.object(one_pass, "_read_corpus", read):
        result = ss.compare(encoders, audio, device_memory_gb=1, **arguments)
    assert read.call_count == len(division) - 1
    assert result.attributes["passes"] == len(division)
    assert_same_result(result, one)
    with pytest.raises(UserError, match="is of another job"):
        ss.compare(encoders, audio, **arguments | {"seed": 1})

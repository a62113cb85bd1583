"""Checkpoints of a training: damaged ones give way to the one before."""

import numpy as np
import pytest

from speechsim_jax.errors import StorageError, UserError
from speechsim_jax.training.checkpoints import Checkpoints


def test_checkpoints_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    blocked = Checkpoints(tmp_path / "file", {}, 0)
    assert blocked.latest() is None
    with pytest.raises(StorageError, match="cannot be written to"):
        blocked.save(1, {"a": {"x": np.zeros(3)}}, {})
    full = Checkpoints(tmp_path / "full", {}, 0)
    full.save(1, {"a": {"x": np.zeros(3)}}, {})

    def no_space(*_, **__):
        raise ValueError("INTERNAL: write failed\nNo space left on device")

    monkeypatch.setattr(full._manager, "save", no_space)
    full.save(2, {"a": {"x": np.zeros(3)}}, {})  # begun, and looked at before the next one
    with pytest.raises(StorageError, match="write failed No space left on device") as error:
        full.save(3, {"a": {"x": np.zeros(3)}}, {})
    assert "\n" not in str(error.value)
    full.close()


def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path):
    state = {"one": {"x": np.arange(5.0), "of": np.arange(3, dtype=np.int32)}}
    first = Checkpoints(tmp_path, {"job": (1, 2)}, 0)
    assert first.latest() is None and not first.started and first.due()
    for step in (1, 2, 3):
        later = {"one": state["one"] | {"x": state["one"]["x"] + step}}
        first.save(step, later, {"cursor": step})
    first.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    result = Checkpoints(tmp_path, {"job": (1, 2)}, 60).latest()
    assert result.step == 3 and result.metadata["cursor"] == 3
    assert np.array_equal(result.state["one"]["x"], state["one"]["x"] + 3)
    assert result.state["one"]["of"].dtype == np.int32
    for broken, expected in (("3", 2), ("2", None)):
        for file in (tmp_path / broken).rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])
        again = Checkpoints(tmp_path, {"job": (1, 2)}, 60)
        if expected:
            assert again.latest().step == expected
        else:
            with pytest.raises(UserError, match="can be read"):
                again.latest()

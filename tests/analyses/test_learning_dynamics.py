"""Learning dynamics: of synthetic scores, and the script on tiny checkpoints."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.backends.backend_agg import FigureCanvasAgg

import speechsim_jax as ss
from speechsim_jax.analyses import learning_dynamics
from speechsim_jax.commands import dynamics as script
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.settings import Output, Settings
from tests.support.tiny_encoders import CONFIG

pytestmark = pytest.mark.slow

STEPS, LAYERS = (10, 20, 40), (0, 1, 2)


@pytest.fixture
def dynamics() -> learning_dynamics.LearningDynamics:
    """Layer l is settled from step l on; the untrained one is the same everywhere."""
    same = np.array([[0.9, 0.5, 0.3], [0.95, 0.9, 0.5], [1.0, 1.0, 1.0]])  # [step, layer]
    blocks = [{"svcca": np.full((3, 3), 0.1) + np.diag(row - 0.1)} for row in same]
    return learning_dynamics.LearningDynamics.from_blocks(
        STEPS, LAYERS, blocks, {"svcca": np.full((3, 3), 0.2)}, "a note"
    )


def test_settled_from_the_first_step_that_stays(dynamics):
    assert dynamics.settling_steps("svcca") == [10, 20, 40]
    wavering = dynamics.scores["svcca"].copy()
    wavering[1, 0, 0] = 0.5
    assert dataclasses.replace(dynamics, scores={"svcca": wavering}).settling_steps("svcca") == [
        40,
        20,
        40,
    ]
    never = np.full((3, 3, 3), np.nan)
    assert (
        dataclasses.replace(dynamics, scores={"svcca": never}).settling_steps("svcca") == [None] * 3
    )


def test_unknown_measure(dynamics):
    with pytest.raises(ss.UserError, match="no measure 'cca'"):
        dynamics.same_layer("cca")


def test_maps_show_the_scores(dynamics):
    figure = learning_dynamics.steps_map(dynamics, "svcca")
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    axes = next(a for a in figure.axes if a.get_label() == "map")
    np.testing.assert_array_equal(axes.images[0].get_array(), dynamics.same_layer("svcca"))
    assert axes.get_ylim() == (-0.5, 2.5)  # layer 0 at the bottom
    assert [t.get_text() for t in axes.get_xticklabels()] == ["10", "20", "40"]
    figure = learning_dynamics.layers_maps(dynamics, "svcca", most=2)
    maps = [a for a in figure.axes if a.get_label().startswith("map")]
    assert [a.get_title() for a in maps] == ["step 10", "step 40"]
    np.testing.assert_array_equal(maps[1].images[0].get_array(), dynamics.scores["svcca"][2])


def test_csv_has_every_cell(dynamics, tmp_path):
    with dynamics.write_csv(tmp_path / "dynamics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 9
    assert [row["step"] for row in rows[::9]] == ["", "10", "20", "40"]
    assert rows[9] == {
        "measure": "svcca", "step": "10", "layer": "0", "final_layer": "0", "score": "0.9",
    }  # fmt: skip


def test_csv_holds_no_formula_of_a_measure(dynamics, tmp_path):
    scores = {"=1+1": -dynamics.scores["svcca"]}
    hostile = dataclasses.replace(dynamics, scores=scores, untrained={})
    with hostile.write_csv(tmp_path / "dynamics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["measure"] for row in rows} == {"'=1+1"}
    assert float(rows[0]["score"]) == pytest.approx(-0.9)  # a number, not a text


# --- the script ---


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> Path:
    """Checkpoints on a straight line from one random encoder to another."""
    folder = tmp_path_factory.mktemp("pretraining")
    start, end = random_tensors(CONFIG, 1), random_tensors(CONFIG, 2)
    for name, share in (("step-000010", 0.3), ("step-000200", 0.9), ("model", 1.0)):
        tensors = {key: (1 - share) * start[key] + share * end[key] for key in start}
        save_folder(folder / name, CONFIG, tensors)
    (folder / "step-000300").mkdir()  # interrupted, without a model
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for index in range(3):
        samples = 0.1 * rng.standard_normal(16_000).cumsum() / 50
        soundfile.write(folder / f"{index}.wav", samples - samples.mean(), 16_000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pretraining, audio):
    workdir = tmp_path_factory.mktemp("runs") / "dynamics"
    config = script.Config(
        str(pretraining), str(audio), str(workdir), output=Output(note="tiny"),
        settings=Settings(rows_per_update=128, batch_seconds=3),
    )  # fmt: skip
    return config, script.run(config)


def test_script_writes_everything(finished):
    config, outcome = finished
    workdir = Path(config.workdir)
    assert (outcome.steps, outcome.layers) == ((10, 200), (0, 1, 2))
    assert set(outcome.scores) == set(outcome.untrained) == {"svcca", "lincka"}
    late, early = outcome.same_layer("lincka")[:, 1], outcome.same_layer("lincka")[:, 0]
    assert (late > early).all() and (late <= 1 + 1e-6).all()
    kinds = [
        f"dynamics_{m}{s}.{k}"
        for m in outcome.scores
        for s in ("", "_layers")
        for k in ("png", "pdf")
    ]
    assert sorted(path.name for path in (workdir / "figures").iterdir()) == sorted(kinds)
    assert (workdir / "figures" / kinds[1]).read_bytes().startswith(b"%PDF")
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["output"]["note"] == "tiny" and len(record["final"]["sha256"]) == 64
    assert "layer 2" in outcome.table("svcca")


def test_script_resumes(finished, monkeypatch):
    """Results that exist are not compared again, except those of a changed checkpoint."""
    config, outcome = finished
    Path(config.workdir, "steps", "step-000200.nc").unlink()
    compared = []
    compare = ss.compare
    monkeypatch.setattr(
        ss,
        "compare",
        lambda models, *a, **k: compared.append(models[0].name) or compare(models, *a, **k),
    )
    again = script.run(dataclasses.replace(config, resume=True))
    assert compared == ["step-000200"]
    np.testing.assert_array_equal(again.scores["svcca"], outcome.scores["svcca"])
    with pytest.raises(ss.UserError, match="other measures"):
        script.run(dataclasses.replace(config, resume=True, measures=("lincka",)))
    with pytest.raises(ss.UserError, match="--resume"):
        script.run(config)


def test_nothing_to_compare(tmp_path, audio, pretraining):
    config = script.Config(str(tmp_path / "none"), str(audio), str(tmp_path / "out"))
    with pytest.raises(ss.UserError, match="no such folder"):
        script.run(config)
    with pytest.raises(ss.UserError, match="no folders step-NNNNNN"):
        script.run(dataclasses.replace(config, run=str(tmp_path)))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "step-000010").symlink_to(pretraining / "step-000010")
    with pytest.raises(ss.UserError, match="one checkpoint and no model/"):
        script.run(dataclasses.replace(config, run=str(tmp_path / "one")))
    steps, final = script.checkpoints(
        dataclasses.replace(config, run=str(pretraining), final="elsewhere")
    )
    assert (list(steps), final) == ([10, 200], Path("elsewhere"))

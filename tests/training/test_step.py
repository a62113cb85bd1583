"""Interrupted trainings resume to the same bits; many devices compute what one computes."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from speechsim_jax.errors import UserError
from speechsim_jax.models.load import load_encoder
from speechsim_jax.training import pretraining, trainer
from speechsim_jax.training.data.sampling import TrainingBatch
from speechsim_jax.training.random_keys import DropoutRates
from speechsim_jax.training.recipe import Audio, ContrastiveRecipe, Crops
from tests.support import tolerances
from tests.support.objectives import CONFIG, CONTRASTIVE, quick_compiles
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

quick = pytest.fixture(scope="module", autouse=True)(quick_compiles)

# One convolution, which compiles quickly.
ENCODER = dataclasses.replace(CONFIG, conv_dim=(8,), conv_kernel=(400,), conv_stride=(320,))
RECIPE = ContrastiveRecipe(
    steps=6,
    audio=Audio(held_out_share=0.3),
    encoder=ENCODER,
    head=CONTRASTIVE,
    dropout=DropoutRates(final_dropout=0.1),
    crops=Crops(rows=3, frames=30),  # which two devices pad
    log_every=1,
    evaluate_every=3,
    snapshots=(0, 4),
    feature_grad_mult=1.0,
)


def environment(**more: str) -> dict[str, str]:
    """Of a subprocess that compiles programs as this process does."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | more


class Killed(Exception):
    pass


def training_run(recipe: ContrastiveRecipe = RECIPE) -> trainer.TrainingRun:
    rng = np.random.default_rng(0)
    waves = {
        f"{k}": 0.1 * rng.standard_normal(n).astype(np.float32)
        for k, n in enumerate(rng.integers(6000, 20_000, 8))
    }
    return pretraining.prepare(recipe, [waves], Path())


def lines(workdir: Path) -> list[dict]:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in record.items() if name != "seconds"} for record in records]


def assert_same(a: Path, b: Path) -> None:
    assert lines(a) == lines(b)
    for part in ("model", "step-000004"):
        tensors, others = (load_file(folder / part / "model.safetensors") for folder in (a, b))
        assert tensors.keys() == others.keys()
        assert all(tensors[n].tobytes() == others[n].tobytes() for n in tensors)
    assert (a / "held_out.json").read_text() == (b / "held_out.json").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("uninterrupted")
    outcome = trainer.train(training_run(), workdir, mesh="data:1", progress=False)
    assert outcome.finished and outcome.step == 6
    return workdir


def interrupt(workdir: Path, after: int) -> None:
    """A run that dies after so many steps, with a checkpoint after each."""
    run = training_run()

    def batch_of_step(step: int) -> TrainingBatch:
        if step == after:
            raise Killed
        return run.batch_of_step(step)

    dies = dataclasses.replace(run, batch_of_step=batch_of_step)
    with pytest.raises(Killed):
        trainer.train(dies, workdir, mesh="data:1", checkpoint_minutes=0, progress=False)


def test_files_of_a_training(uninterrupted):
    metrics = lines(uninterrupted)
    assert [line["step"] for line in metrics if line["of"] == "training"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in metrics if line["of"] == "held_out"] == [0, 3, 6]
    evaluated = {"loss", "accuracy", "chance", "perplexity"}
    assert evaluated <= metrics[0].keys()
    assert evaluated | {"gradient_norm", "learning_rate"} <= metrics[1].keys()
    assert all(np.isfinite(x) for line in metrics for x in line.values() if not isinstance(x, str))
    held_out = json.loads((uninterrupted / "held_out.json").read_text())
    assert len(held_out["speakers"]) == 2 and held_out["step"] == 6
    losses = [metrics["loss"] for metrics in held_out["speakers"].values()]
    assert min(losses) <= held_out["total"]["loss"] <= max(losses)
    record = json.loads((uninterrupted / "model" / "training.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(RECIPE.as_dict()))
    assert record["held_out"] == held_out["total"] and record["step"] == 6
    assert {path.name for path in uninterrupted.glob("step-*")} == {"step-000000", "step-000004"}
    first, last = load_encoder(uninterrupted / "step-000000"), load_encoder(uninterrupted / "model")
    assert first.config == last.config == ENCODER
    tensors = load_file(uninterrupted / "model" / "model.safetensors")
    assert "wav2vec2.masked_spec_embed" in tensors and "quantizer.codevectors" in tensors


def test_convolutions_without_gradient_do_not_change(tmp_path):
    """Nor do they decay."""
    recipe = dataclasses.replace(RECIPE, steps=2, snapshots=(0,), feature_grad_mult=0.0)
    trainer.train(training_run(recipe), tmp_path, mesh="data:1", progress=False)
    before = load_file(tmp_path / "step-000000" / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    still = {n for n, x in before.items() if np.array_equal(x, after[f"wav2vec2.{n}"])}
    assert {n for n in before if n.startswith("feature_extractor.")} == still


@pytest.mark.parametrize("after", [1, 4])
def test_resumes_to_the_same_bits(after, uninterrupted, tmp_path, caplog):
    interrupt(tmp_path, after)
    if after == 4:  # what a kill may leave of a line
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"of": "training", "step": 6, "lo')
    with caplog.at_level(logging.INFO):
        trainer.train(training_run(), tmp_path, mesh="data:1", checkpoint_minutes=0, progress=False)
    assert f"resuming after step {after}" in caplog.text
    assert_same(tmp_path, uninterrupted)


def test_resumes_after_sigkill(uninterrupted, tmp_path):
    """Killed at an arbitrary moment, once there is a checkpoint."""
    command = [sys.executable, "-m", "tests.training.test_step", "alone", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoints" / "2").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "held_out.json").exists()
    trainer.train(training_run(), tmp_path, mesh="data:1", progress=False)
    assert_same(tmp_path, uninterrupted)


def test_resumes_after_stop(uninterrupted, tmp_path):
    outcome = trainer.train(
        training_run(), tmp_path, mesh="data:1", stop_after_minutes=0, progress=False
    )
    assert (outcome.step, outcome.finished) == (1, False)
    assert not (tmp_path / "model").exists()
    assert trainer.train(training_run(), tmp_path, mesh="data:1", progress=False).finished
    assert_same(tmp_path, uninterrupted)


def test_checkpoints_of_another_training_are_refused(tmp_path):
    interrupt(tmp_path, 1)
    other = training_run(dataclasses.replace(RECIPE, seed=1))
    with pytest.raises(UserError, match=r"recipe: seed"):
        trainer.train(other, tmp_path, mesh="data:1", progress=False)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    broken = training_run()

    def batch_of_step(step: int) -> TrainingBatch:
        batch = broken.batch_of_step(step)
        return batch._replace(samples=batch.samples * (np.nan if step == 2 else 1))

    with pytest.raises(UserError) as error:
        trainer.train(
            dataclasses.replace(broken, batch_of_step=batch_of_step),
            tmp_path,
            mesh="data:1",
            checkpoint_minutes=0,
            progress=False,
        )
    message = str(error.value)
    assert all(word in message for word in ("step 3", "loss is nan", "peak_learning_rate"))
    saved = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert sorted(saved) == ["1", "2"]


def test_two_devices(uninterrupted, tmp_path):
    """From the start, and from a checkpoint of one device; in a subprocess."""
    interrupt(tmp_path / "resumed", 2)
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.test_step", "two devices", str(tmp_path)],
        cwd=ROOT,
        env=environment(XLA_FLAGS=flags),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    expected = lines(uninterrupted)
    for workdir in (tmp_path / "fresh", tmp_path / "resumed"):
        actual = lines(workdir)
        assert [line.keys() for line in actual] == [line.keys() for line in expected]
        for a, b in zip(actual, expected):
            errors = {
                name: abs(x - b[name]) / max(abs(b[name]), 1e-3)
                for name, x in a.items()
                if not isinstance(x, str)
            }
            worst = max(errors, key=errors.__getitem__)
            print(f"{workdir.name} {a['of']} {a['step']}: {worst} {errors[worst]:.1e}")
            assert errors[worst] <= tolerances.TRAINING_MESH, (a["step"], worst)


def on_two_devices(folder: Path) -> None:
    """Train and go on with batches divided over two devices."""
    for name in ("fresh", "resumed"):
        (folder / name).mkdir(exist_ok=True)
        trainer.train(training_run(), folder / name, mesh="data:2", progress=False)
    try:
        trainer.train(training_run(), folder / "refused", mesh="data:1,feature:2", progress=False)
    except UserError as error:
        assert "training divides batches only, as data:N" in str(error)
    else:
        raise AssertionError("the axis `feature` means nothing here")


if __name__ == "__main__":
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "alone":
        trainer.train(training_run(), place, mesh="data:1", checkpoint_minutes=0, progress=False)
    else:
        on_two_devices(place)

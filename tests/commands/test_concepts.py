"""`speechsim concepts` as a user meets it, and what it reads off a result."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.analyses import concepts as page
from speechsim_jax.errors import UserError
from speechsim_jax.figures.concepts import draw
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.results.concepts import (
    NEURON_COLUMNS,
    DepthCurve,
    neuron_rows,
    rank_correlation,
    read_concepts,
)
from tests.support.commands import assert_mistake, call
from tests.support.tiny_encoders import CONFIG

TONES = {"AA": 300, "IY": 900, "S": 2700}
SEGMENT = 0.15


@pytest.fixture(scope="module")
def speech_like(tmp_path_factory) -> Path:
    """Twelve speakers: a tone for each phone, over noise."""
    folder = tmp_path_factory.mktemp("speech_like")
    rng = np.random.default_rng(0)
    manifest, lines = ["path\tspeaker"], ["path\ttier\tstart\tend\tlabel"]
    for number in range(12):
        name = f"{number:02}.wav"
        labels = rng.choice(list(TONES), 8)
        time = np.arange(int(16_000 * SEGMENT)) / 16_000
        wave = [0.1 * np.sin(2 * np.pi * TONES[label] * time) for label in labels]
        wave = np.concatenate(wave) + 0.02 * rng.standard_normal(8 * len(time))
        soundfile.write(folder / name, wave, 16_000)
        lines += [
            f"{name}\tphone\t{k * SEGMENT:g}\t{(k + 1) * SEGMENT:g}\t{label}"
            for k, label in enumerate(labels)
        ]
        manifest.append(f"{name}\tspeaker {number}")
    (folder / "manifest.tsv").write_text("\n".join(manifest))
    (folder / "alignments.tsv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> str:
    """Two encoders."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        save_folder(folder / name, CONFIG, random_tensors(CONFIG, seed))
    return f"{folder / 'first'},{folder / 'second'}"


def flags(speech_like: Path, models: str, workdir: Path) -> list[str]:
    return [
        f"--models={models}", f"--audio={speech_like / 'manifest.tsv'}",
        f"--labels=phone:{speech_like / 'alignments.tsv'},speaker", f"--workdir={workdir}",
        "--batch_seconds=3", "--buckets=1",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_writes_the_page_figures_and_neurons(speech_like, models, tmp_path, capsys):
    probe = tmp_path / "probe.json"
    layers = [{"value": value} for value in (0.3, 0.5, 0.4)]
    probe.write_text(json.dumps({"encoders": {"first": {"layers": layers}}}))
    workdir = tmp_path / "run"
    given = [flag for flag in flags(speech_like, models, workdir) if "buckets" not in flag]
    ended = call(capsys, "concepts", *given, "--exemplars=2", f"--probe={probe}")
    assert ended.code == 0, ended.err
    assert "agreement of first with second on phone" in ended.out
    text = (workdir / "concepts.md").read_text()
    record = json.loads((workdir / "concepts.json").read_text())
    for figure in ("content", "localisation", "agreement_phone", "agreement_speaker"):
        assert f"figures/concepts_{figure}.png" in text
        assert (workdir / "figures" / f"concepts_{figure}.png").stat().st_size > 1000
    assert record["labels"] == ["phone", "speaker"] and record["features"] == ["logmel"]
    assert set(record["probe"]["phone"]) == {"first"} and "linear probe" in text
    result = ss.SimilarityResult.load(workdir / "result.nc")
    with (workdir / "neurons.csv").open() as file:
        rows = list(csv.DictReader(file))
    classes = 3 + 12
    assert len(rows) == 2 * 3 * classes and set(rows[0]) == set(NEURON_COLUMNS)
    row = next(r for r in rows if (r["model"], r["layer"], r["class"]) == ("second", "1", "IY"))
    correlations = result.dataset["class_corr"].sel({"x": "second/1", "class": "phone/IY"}).values
    assert int(row["neuron"]) == np.nanargmax(np.abs(correlations))
    assert float(row["correlation"]) == pytest.approx(correlations[int(row["neuron"])], rel=1e-5)
    report = (workdir / "report.html").read_text()
    assert 'id="concepts"' in report and 'id="exemplars"' in report
    assert any(f"<b>{phone}</b>" in report for phone in TONES)  # heard in an exemplar


@pytest.mark.slow
def test_a_complete_run_has_nothing_to_read(speech_like, models, tmp_path, capsys):
    workdir = tmp_path / "run"
    given = [flag for flag in flags(speech_like, models, workdir) if "buckets" not in flag]
    assert call(capsys, "concepts", *given).code == 0
    (workdir / "concepts.md").unlink()
    ended = call(capsys, "concepts", *given, "--resume")
    assert ended.code == 0 and (workdir / "concepts.md").exists()
    assert not any("compiling" in line for line in ended.err)


def test_of_mistakes_there_is_one_line(speech_like, models, tmp_path, capsys):
    given = [
        f"--models={models}", f"--audio={speech_like}/00.wav", f"--workdir={tmp_path / 'run'}"
    ]  # fmt: skip
    assert_mistake(call(capsys, "concepts", *given), "name labels")
    wrong = tmp_path / "probe.json"
    wrong.write_text("[]")
    assert_mistake(call(capsys, "concepts", *given, f"--probe={wrong}"), "no probe.json")
    labels = "--labels=accent"
    assert_mistake(call(capsys, "concepts", *given, labels), "accent")


# --- what is read off a result ---


@pytest.fixture(scope="module")
def result() -> ss.SimilarityResult:
    """Neuron k of "local" tells class k; "turned" is the same in other axes, "other" is noise."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 4000)
    local = np.eye(4)[label] + 0.3 * rng.standard_normal((4000, 4))
    turned = local @ np.linalg.qr(rng.standard_normal((4, 4)))[0]
    other = rng.standard_normal((4000, 4))
    arrays = {"local/0": local, "local/1": 2 * local, "turned/0": turned, "other/0": other}
    return ss.compare_activations(
        arrays, ["linreg", "maxcorr"], labels={"<b>class": [f"k{k}" for k in label]}
    )


def test_content_localisation_and_agreement_are_those_of_the_result(result):
    found = read_concepts(result)
    assert found.models == ("local", "turned", "other") and found.labels == ("<b>class",)
    content = {c.model: c for c in found.content}
    assert content["local"].layers.tolist() == [0, 1]
    assert content["local"].values[0] == pytest.approx(content["turned"].values[0])
    assert content["other"].values[0] < 0.1 < 0.8 < content["local"].values[0]
    localised = {c.model: c for c in found.localisation}
    assert localised["local"].values.min() > 0.95 > 0.9 > localised["turned"].values[0]
    agreed = {(a.x, a.y): a for a in found.agreement}
    assert agreed["local", "turned"].layers == ((0, 0), (1, 0))
    expected = float(result.matrix("concept_agreement_kappa").loc["local/1", "turned/0"][0])
    assert agreed["local", "turned"].kappa[1] == expected


def test_neurons_are_those_that_tell_each_class_best(result):
    rows = [row for row in neuron_rows(result, ["local"]) if row[1] == 0]
    assert [(row[3], row[4]) for row in sorted(rows, key=lambda row: row[3])] == [
        (f"k{k}", k) for k in range(4)
    ]


def test_page_and_figures_show_hostile_names_as_text(result):
    concepts = read_concepts(result)
    text = page.markdown(concepts, ["about"], [], {"<b>class": {"local": 0.5}})
    assert "<b>" not in text.replace(r"\<b\>", "") and r"\<b\>class" in text
    assert set(draw(concepts, (), "")) == {"content", "localisation", "agreement__b_class"}
    assert "k" in page.summary(concepts)
    assert json.dumps(page.as_record(concepts, {}))


def test_ranks_are_those_of_held_out_content_where_it_is_known():
    nothing = np.full(3, np.nan)
    layers, values = np.array([0, 2, 3]), np.array([0.1, 0.3, 0.2])
    curve = DepthCurve("m", "phone", layers, layers / 4, values, nothing, nothing)
    accuracies = [0.5, 0.0, 0.9, 0.7]
    assert rank_correlation(curve, accuracies) == pytest.approx(1)
    held = DepthCurve("m", "phone", layers, layers / 4, values, nothing, -values)
    assert rank_correlation(held, accuracies) == pytest.approx(-1)
    with pytest.raises(UserError, match="has 3 layers"):
        rank_correlation(curve, accuracies[:3])


def test_without_tracks_or_content_there_is_one_line():
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((50, 3)) for name in "ab"}
    with pytest.raises(UserError, match="no tracks"):
        read_concepts(ss.compare_activations(arrays, ["linreg"]))
    with pytest.raises(UserError, match="linreg"):
        labels = {"phone": rng.integers(0, 2, 50)}
        read_concepts(ss.compare_activations(arrays, ["lincka"], labels=labels))

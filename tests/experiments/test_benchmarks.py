"""The benchmarks: each runs at reduced size, and their baselines and counts are right."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import speechsim_jax as ss
from experiments.benchmarks import (
    accuracy,
    answer,
    bootstraps,
    compiled,
    coverage,
    encoder,
    memory,
    merging,
    null,
    one_by_one,
    pipeline,
    plain,
    plots,
    processes,
    pwcca,
    scaling,
    scores,
    startup,
    stored,
    streaming,
)
from experiments.benchmarks import published as published_measures
from experiments.benchmarks import statistics as statistics_benchmark
from speechsim_jax.errors import UserError
from speechsim_jax.measures import MEASURES
from speechsim_jax.runtime.mesh import mesh_from
from speechsim_jax.statistics.moments import ModelShape
from tests.support.golden import GOLDEN, GOLDEN_MEASURES, NAMES
from tests.support.paths import ROOT
from tests.support.sound_files import noise, write

PAIRS = [(i, j) for i in range(len(NAMES)) for j in range(i)]


# --- every benchmark ---


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("speech")
    for speaker in "ab":
        for number in range(3):
            write(folder / speaker / f"{number}.wav", noise(32_000, ord(speaker) + number))
    return str(folder)


def figures(printed: str, what: str) -> dict[str, list[float]]:
    """The values of each figure; everything printed must be lines of JSON of this benchmark."""
    lines = [json.loads(line) for line in printed.splitlines()]
    assert all(line["what"] == what for line in lines)
    assert "machine" in lines[0]
    values: dict[str, list[float]] = {}
    for line in lines[1:]:
        values.setdefault(line["figure"], []).append(line["value"])
        assert line["unit"]
    return values


@pytest.mark.slow
def test_memory(speech, capsys):
    memory.run(speech, [0.1], small=True)
    values = figures(capsys.readouterr().out, "memory")
    parts = ("startup", "reading", "scores", "saving")
    assert sum(values[part][0] for part in parts) == pytest.approx(values["total"][0], abs=0.05)
    assert all(values[part][0] > 0 for part in (*parts, "compiling", "peak RSS"))


def test_startup(speech, capsys):
    startup.run(speech, 5, str(ROOT), small=True)
    values = figures(capsys.readouterr().out, "startup")
    assert len(values) == 5 and all(len(seconds) == 2 for seconds in values.values())
    assert all(seconds > 0 for both in values.values() for seconds in both)


@pytest.mark.slow
def test_one_by_one(speech):
    """What is encoded and counted; the passes need torch."""
    found = one_by_one.utterances(speech, np.array([2, 1, 1.5]))
    assert [len(wave) for wave in found] == [32_000, 16_000, 24_000]
    with pytest.raises(UserError, match=r"too few utterances of 2\.1 s"):
        one_by_one.utterances(speech, np.array([1, 2.1]))
    # 17 to 20 frames, and 28
    assert one_by_one.programs(np.array([5600, 6400, 9100])) == 2


@pytest.mark.slow
def test_coverage(capsys):
    coverage.run(4, small=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    covered = [line for line in lines if line["shown"] == "covered, %"]
    measures = {line["figure"] for line in covered}
    assert len(covered) == 2 * len(measures) and {"svcca", "maxcorr", "procrustes"} <= measures
    ratios = [line["value"] for line in lines if line["shown"] == "error / spread"]
    assert all(0.2 < ratio < 5 for ratio in ratios)


def test_coverage_of_a_length_that_no_corpus_has():
    with pytest.raises(UserError, match=r"--rows=7: corpora have 300, 900, 6000, 30000 rows"):
        coverage.run(4, 7)


def test_pwcca(capsys):
    """The estimators that were tried, on corpora without ties and with some."""
    pwcca.run(3, small=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    ratios = [line["value"] for line in lines if line["figure"].startswith("standard error")]
    assert len(ratios) == 2 * 6 and all(ratio > 0 for ratio in ratios)


@pytest.mark.slow
def test_bootstraps(speech, tmp_path, capsys):
    files = sorted(Path(speech).rglob("*.wav"))
    rows = [f"{path}\t{number % 4}" for number, path in enumerate(files)]
    (tmp_path / "manifest.tsv").write_text("\n".join(["path\tspeaker", *rows]) + "\n")
    bootstraps.run(str(tmp_path / "manifest.tsv"), ["*.wav"], 3, small=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert {"svcca", "maxcorr", "procrustes"} <= {line["figure"] for line in lines}
    assert all(line["speakers"] == 4 for line in lines)
    assert any(line["low"] <= line["value"] <= line["high"] for line in lines)


@pytest.mark.slow
def test_null(capsys):
    null.run(8, None, 0, 0, small=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(lines) == 2 * 2 * 2 * 4 * 3
    half = [line["value"] for line in lines if line["p at most"] == 0.5 and line["rows"] == 300]
    assert 20 < np.mean(half) < 80


@pytest.mark.slow
def test_answer(tmp_path, capsys):
    """Of a target that one step reaches, or the end of the audio."""
    for number in range(12):
        write(tmp_path / "speech" / f"{number}.wav", noise(32_000, number))
    answer.run(str(tmp_path / "speech"), 0.5, small=True)
    values = figures(capsys.readouterr().out, "answer")
    assert len(values["until the answer"]) == 2
    assert all(error <= 0.5 for error in values["standard error, largest"])
    assert all(value > 0 for value in values["reading an hour, at the rate of this run"])


@pytest.mark.slow
def test_merging(capsys):
    merging.run([1, 2], small=True)
    values = figures(capsys.readouterr().out, "merging")
    assert values["size of all stores"][1] == pytest.approx(
        2 * values["size of all stores"][0], rel=1e-3
    )
    assert all(value > 0 for both in values.values() for value in both)


@pytest.mark.slow
def test_scaling(capsys):
    scaling.run(small=True)
    values = figures(capsys.readouterr().out, "scaling")
    # data:1; data:2; feature:2
    one, two, sliced = values["update, products of a device"]
    assert one == pytest.approx(two, rel=0.1) and sliced == pytest.approx(two, rel=0.2)
    assert values["update, collectives along data"] == [0, 0, 0]
    assert values["update, bytes a device receives"][:2] == [0, 0]
    assert values["encoder, bytes a device receives"] == [0, 0]


@pytest.mark.slow
def test_streaming(speech, capsys):
    streaming.run(speech, small=True)
    values = figures(capsys.readouterr().out, "streaming")
    assert len(values["host memory, peak"]) == 3
    _, once, eight_times = values["live device bytes, peak"]
    assert once <= eight_times < 1.1 * once


@pytest.mark.slow
def test_scores(capsys):
    scores.run(small=True)
    values = figures(capsys.readouterr().out, "scores")
    assert values["largest difference between the two"][0] < 1e-9
    assert all(ratio > 0 for ratio in values["plain loop : ours"])


@pytest.mark.slow
def test_accuracy(speech, capsys):
    accuracy.run(speech, small=True)
    values = figures(capsys.readouterr().out, "accuracy")
    assert max(values["covariance over standard deviations"]) < 1e-6
    assert max(values["covariance, products by it"]) < 1e-6
    assert max(values["error against float64 statistics"]) < 1e-5
    assert max(values["error against float64 arrays"]) < 1e-5


def test_statistics(capsys):
    statistics_benchmark.run(2, small=True)
    values = figures(capsys.readouterr().out, "statistics")
    assert values["update"][0] > 0 and values["share of the best sgemm"][0] > 0


@pytest.mark.slow
def test_attention(speech):
    """By the script: in this process the checks of types refuse the abstract arrays of programs."""
    flags = ["--what=attention", "--small", f"--speech={speech}", "--minutes=0.1", "--repeats=1"]
    process = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    values = figures(process.stdout, "attention")
    assert values["loop : ours"][0] > 0 and values["total"][0] > 0


@pytest.mark.parity
def test_encoder(capsys):
    pytest.importorskip("torch")
    encoder.run(1, small=True)
    values = figures(capsys.readouterr().out, "encoder")
    assert values["torch sdpa, hidden states : ours, hidden states"][0] > 0


@pytest.mark.parity
def test_pipeline(speech, capsys):
    pytest.importorskip("torch")
    pipeline.run(speech, [0.1], repeats=1, pairs=0, small=True)
    values = figures(capsys.readouterr().out, "pipeline")
    assert values["published : ours, end to end"][0] > 0
    apart = {k: v for k, v in values.items() if k.startswith("largest difference")}
    # The published regression keeps null directions, which raises r where there are few rows.
    linreg, _ = apart["largest difference of linreg"]
    assert linreg < 0.05
    apart["largest difference of linreg"].remove(linreg)
    assert max(map(max, apart.values())) < 1e-5


def test_a_process_that_fails_is_reported():
    with pytest.raises(UserError, match="No module named"):
        processes.run_module("experiments.nothing", [])


# --- baselines ---


def golden(name: str) -> np.ndarray:
    return GOLDEN[f"x_{name}"].astype(np.float64)


def worst(scores: dict[tuple[int, int], plain.Scores]) -> dict[str, float]:
    """By measure, the largest difference from Wu et al.'s own code."""
    return {
        name: max(
            abs(value - GOLDEN[name][pair])
            for (i, j), both in scores.items()
            for pair, value in zip(((i, j), (j, i)), both[name])
        )
        for name in GOLDEN_MEASURES
    }


def test_plain_measures_are_the_published_ones():
    representations = [golden(name) - golden(name).mean(0) for name in NAMES]
    rows = len(representations[0])
    summaries = [plain.summary(x.T @ x, rows, 1e-14) for x in representations]
    scores = {
        (i, j): plain.paper(
            summaries[i], summaries[j], representations[i].T @ representations[j], rows
        )
        for i, j in PAIRS
    }
    assert max(worst(scores).values()) <= 1e-9


@pytest.mark.slow
def test_plain_measures_are_those_of_the_package():
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((400, 6))
    representations = {
        name: (shared @ rng.standard_normal((6, width)) + rng.standard_normal((400, width)) + 1)
        for name, width in (("x", 8), ("y", 12), ("z", 5))
    }
    rows = {name: x.astype(np.float32) for name, x in representations.items()}
    kinds = {"moments": plain.on_moments(list(rows.values()), 1e-6)}
    kinds["sample"] = plain.on_sample(list(rows.values()))
    for statistic, expected in kinds.items():
        names = [m.name for m in MEASURES.values() if m.statistic == statistic]
        assert set(names) - {"rotcorr"} == set(expected)
        result = ss.compare_activations(
            rows, names, stats_dtype="float64", rank_tolerance=1e-6, sample_frames=400
        )
        for name, matrix in expected.items():
            error = np.nanmax(np.abs(result.matrix(name).values - matrix))
            assert error <= (1e-9 if statistic == "moments" else 1e-5), name


@pytest.mark.parity
def test_the_baseline_is_the_published_pipeline():
    torch = pytest.importorskip("torch")
    representations = [torch.from_numpy(golden(name)) for name in NAMES]
    scores: dict[tuple[int, int], plain.Scores] = {pair: {} for pair in PAIRS}
    for measure in published_measures.MEASURES.values():
        seconds, of_pairs = stored.timed(measure, representations, PAIRS)
        assert seconds > 0
        for pair in PAIRS:
            scores[pair] |= of_pairs[pair]
    assert max(worst(scores).values()) <= 1e-9
    _, once = stored.timed(published_measures.FROM_MOMENTS, representations, PAIRS)
    assert max(worst(once).values()) <= 1e-9


def test_pairs_are_drawn_in_proportion():
    models = [0] * 13 + [1] * 13
    everything = stored.sample_of_pairs(models, 0)
    assert len(everything) == len(set(everything)) == 26 * 25 // 2
    assert stored.sample_of_pairs(models, 1000) == everything
    some = stored.sample_of_pairs(models, 50)
    assert some == stored.sample_of_pairs(models, 50) and set(some) < set(everything)
    assert len(set(some)) == 50
    assert sum(models[i] == models[j] for i, j in some) == round(50 * 156 / 325)


def test_time_of_some_pairs_is_scaled_to_all(monkeypatch):
    clock = iter([0.0, 6.0, 16.0])
    monkeypatch.setattr(stored.time, "perf_counter", lambda: next(clock))
    measure = published_measures.Measure(lambda x: -x, lambda x, y, of_x, of_y: {"m": (x, of_y)})
    seconds, scores = stored.timed(measure, [1, 2, 3, 4], [(0, 2), (1, 2)])
    assert seconds == 6 * 4 / 3 + 10 * 6 / 2
    assert scores == {(0, 2): {"m": (1, -3)}, (1, 2): {"m": (2, -3)}}


def test_parts_of_the_pipeline_add_up():
    ours = processes.Run(100.0, 10.0, 70.0, 15.0, 5.0, 20.0, 4.0)
    names = ("reading", "forward", "storing", "files", "moments", *published_measures.MEASURES)
    seconds = {name: 2.0**i for i, name in enumerate(names)}
    parts = pipeline.parts(ours, 40.0, seconds)
    assert parts["ours", "analysis"] == 60 and parts["ours", "analysis, core"] == 25
    others = seconds["moments"] + seconds["files"]
    assert parts["published", "end to end"] == sum(seconds.values()) - others
    assert parts["its files", "analysis"] - parts["published", "analysis"] == seconds["files"]
    assert parts["moments", "analysis"] == seconds["storing"] + seconds["moments"]


# --- work of compiled programs ---


def test_work_of_a_loop_counts_as_often_as_it_runs():
    def looped(x):
        x = lax.fori_loop(0, 5, lambda _, y: y @ y, x)
        return lax.map(lambda y: y @ x, jnp.stack([x, x + 1, x + 2]))

    program = jax.jit(looped).lower(jax.ShapeDtypeStruct((64, 64), np.float32)).compile()
    assert compiled.work(program.as_text()) == ((5 + 3) * 2 * 64**3, {})


def test_work_of_a_convolution():
    def grouped(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=4,
        )  # fmt: skip

    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((2, 50, 32), (5, 8, 16))]
    program = jax.jit(grouped).lower(*shapes).compile()
    assert compiled.work(program.as_text()).flops == 2 * (2 * 46 * 16) * (5 * 8)


def test_bytes_of_collectives():
    text = """
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[8]{0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

%condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %c = pred[] compare(%p, %p), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (a: f32[3,4]) -> f32[3,16] {
  %a = f32[3,4]{1,0} parameter(0)
  %w = (s32[], f32[4]{0}) while(%t), condition=%condition, body=%body, backend_config=TRIPS
  ROOT %g = f32[3,16]{1,0} all-gather(%a), replica_groups={{0,1,2,3}}, dimensions={1}
}
"""
    known = text.replace("TRIPS", '{"known_trip_count":{"n":"7"}}')
    assert compiled.work(known) == (0, {"all-reduce": 7 * 8 * 4, "all-gather": 3 * 12 * 4})
    with pytest.raises(ValueError, match="unknown length"):
        compiled.work(text)


def test_work_of_the_update():
    streams, rows = (ModelShape(3, 64), ModelShape(2, 32)), 128
    program = scaling.compiled_update(mesh_from("data:1"), streams, rows)
    planned = statistics_benchmark.flops(streams, rows)
    # Apart from the layer pairs: products with the energies of 5 representations, and with ones.
    others = 2 * rows * (5 + 1) * (5 + 3 * 64 + 2 * 32)
    work = compiled.work(program.as_text())
    assert planned < work.flops <= planned + others
    assert work.received == {}


def test_collectives_that_leave_the_feature_axis():
    line = "  %a = f32[4]{0} all-gather(%x), replica_groups="
    assert scaling.along_data(line + "{{0,1},{2,3}}", 2) == 0
    assert scaling.along_data(line + "{{0,2},{1,3}}", 2) == 2
    assert scaling.along_data(line + "{}", 2) == 1


# --- plots ---

LINES = [
    *(
        {"what": "pipeline", "figure": figure, "value": value, "by": by, "minutes": 5.0}
        for by, value in (("ours", 60.0), ("published", 300.0), ("moments", 90.0))
        for figure, value in (("end to end", value), ("analysis", value / 2))
    ),
    *(
        {"what": "memory", "figure": figure, "value": 4.0 + minutes / 100, "minutes": minutes}
        for minutes in (4.0, 30.0)
        for figure in ("peak RSS", "total")
    ),
    *(
        {"what": "scaling", "figure": figure, "value": 8.0 / n, "planned": 8.0 / n, "devices": n,
         "feature": feature}
        for feature in (1, 2)
        for n in (feature, 4, 8)
        for figure in (
            "update, products of a device for an hour", "update, bytes a device receives",
            "update, state and rows of a device",
        )
    ),
]  # fmt: skip


def test_plots(tmp_path):
    file = tmp_path / "lines.jsonl"
    text = [json.dumps(line) for line in LINES]
    file.write_text("\n".join(["anything", '{"what": "memory", "machine": {}}', *text]))
    plots.run(str(file), str(tmp_path / "out"))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"pipeline.png", "memory.png", "scaling.png"}


def test_plots_of_nothing(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text('{"what": "statistics", "figure": "x"}\n')
    with pytest.raises(UserError, match="no lines"):
        plots.run(str(file), str(tmp_path))
    with pytest.raises(UserError, match="--lines"):
        plots.run(str(tmp_path / "nothing"), str(tmp_path))

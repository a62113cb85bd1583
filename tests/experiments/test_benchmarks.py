"""The benchmarks' own pieces: what they measure against, what they count, what they draw."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import speechsim_jax as ss
from experiments.benchmarks import compiled, pipeline, plain, plots, processes, scaling, stored
from experiments.benchmarks import published as published_measures
from experiments.benchmarks import statistics as statistics_benchmark
from speechsim_jax.errors import UserError
from speechsim_jax.runtime.mesh import mesh_from
from speechsim_jax.statistics.moments import ModelShape
from tests.measures.test_measures import GOLDEN, GOLDEN_MEASURES, NAMES
from tests.support.parity import fixture

PAIRS = [(i, j) for i in range(len(NAMES)) for j in range(i)]


def golden(name: str) -> np.ndarray:
    return GOLDEN[f"x_{name}"].astype(np.float64)


def worst(scores: dict[tuple[int, int], plain.Scores]) -> dict[str, float]:
    """By measure, the largest difference from Wu et al.'s own code."""
    return {
        name: max(
            abs(value - GOLDEN[name][pair])
            for (i, j), found in scores.items()
            for pair, value in zip(((i, j), (j, i)), found[name])
        )
        for name in GOLDEN_MEASURES
    }


def test_plain_measures_are_the_published_ones():
    representations = [golden(name) - golden(name).mean(0) for name in NAMES]
    rows = len(representations[0])
    own = [plain.own(x.T @ x, rows, 1e-14) for x in representations]
    scores = {
        (i, j): plain.pair(own[i], own[j], representations[i].T @ representations[j], rows)
        for i, j in PAIRS
    }
    assert max(worst(scores).values()) <= 1e-9


@pytest.mark.parity
def test_the_baseline_is_the_published_pipeline():
    torch = pytest.importorskip("torch")
    representations = [torch.from_numpy(golden(name)) for name in NAMES]
    scores: dict[tuple[int, int], plain.Scores] = {pair: {} for pair in PAIRS}
    for measure in published_measures.MEASURES.values():
        seconds, found = stored.timed(measure, representations, PAIRS)
        assert seconds > 0
        for pair in PAIRS:
            scores[pair] |= found[pair]
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
    names = ("reading", "forward", "keeping", "files", "moments", *published_measures.MEASURES)
    seconds = {name: 2.0**i for i, name in enumerate(names)}
    found = pipeline.parts(ours, 40.0, seconds)
    assert found["ours", "analysis"] == 60 and found["ours", "analysis, core"] == 25
    others = seconds["moments"] + seconds["files"]
    assert found["published", "end to end"] == sum(seconds.values()) - others
    assert found["its files", "analysis"] - found["published", "analysis"] == seconds["files"]
    assert found["moments", "analysis"] == seconds["keeping"] + seconds["moments"]


def test_the_log_says_what_is_read_from_it(caplog):
    encoder = fixture("wav2vec2-base").encoder
    noise = np.random.default_rng(0).standard_normal(6480).astype(np.float32)
    with caplog.at_level(logging.INFO, "speechsim_jax"):
        ss.compare([encoder], {"a": noise}, measures="lincka", progress=False)
    said = [processes._MESSAGE.match(record.getMessage()) for record in caplog.records]
    assert [found[1] for found in said if found] == ["read", "scored"]


def test_a_process_that_fails_is_said():
    with pytest.raises(UserError, match="No module named"):
        processes.python("experiments.nothing", [])


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
    # Beside the layer pairs: products with the energies of 5 representations, and with ones.
    others = 2 * rows * (5 + 1) * (5 + 3 * 64 + 2 * 32)
    found = compiled.work(program.as_text())
    assert planned < found.flops <= planned + others
    assert found.received == {}


def test_collectives_that_leave_the_feature_axis():
    line = "  %a = f32[4]{0} all-gather(%x), replica_groups="
    assert scaling.along_data(line + "{{0,1},{2,3}}", 2) == 0
    assert scaling.along_data(line + "{{0,2},{1,3}}", 2) == 2
    assert scaling.along_data(line + "{}", 2) == 1


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
    drawn = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert drawn.keys() == {"pipeline.png", "memory.png", "scaling.png"}
    assert max(drawn.values()) < 60_000
    bars = plots.pipeline(LINES[:6]).axes[0]
    assert [text.get_text() for text in bars.texts] == ["60 s", "90 s (1.5 x)", "300 s (5.0 x)"]


def test_plots_of_nothing(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text('{"what": "statistics", "figure": "x"}\n')
    with pytest.raises(UserError, match="no lines of pipeline, memory, scaling"):
        plots.run(str(file), str(tmp_path))
    with pytest.raises(UserError, match="cannot be read"):
        plots.run(str(tmp_path / "nothing"), str(tmp_path))

"""Which frames count: stride, pooling and labels, against written-out loops over hidden states."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.audio import corpus
from speechsim_jax.audio.alignments import Segments
from speechsim_jax.audio.batching import Batch
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.pipeline import accumulators, frame_choice
from speechsim_jax.pipeline.frame_choice import FrameChoice
from speechsim_jax.pipeline.frame_grid import FrameGrid
from tests.support.small_models import MODELS, QUICK, waves

GRID = FrameGrid(320, 200.0, (Wav2Vec2Config(family="wav2vec2"),), "base")
CENTRES = [0.0125 + 0.02 * t for t in range(3000)]


@pytest.fixture(scope="module")
def encoders() -> list[ss.SpeechEncoder]:
    return [ss.load_encoder(folder) for folder in MODELS]


def batch_of(lengths: dict[str, int], rows: int, samples: int) -> Batch:
    padded = np.zeros(rows, np.int32)
    padded[: len(lengths)] = list(lengths.values())
    return Batch(np.zeros((rows, samples), np.float32), padded, tuple(lengths))


def segments_of(*segments: tuple[float, float, str]) -> Segments:
    starts, ends, labels = zip(*segments)
    return Segments(np.array(starts, float), np.array(ends, float), labels)


# 1.0 s is 49 frames; (16000 - 400) // 320 + 1.
BATCH = batch_of({"long#1": 16_000, "b": 8_000}, 3, 20_080)
WIDTH = 62
ALIGNED = {
    # the piece starts at 1 s
    "long": segments_of((0.0, 0.9, "A"), (0.9, 1.1, "SIL"), (1.1, 1.2, "B"), (1.5, 2.5, "A")),
    "b": segments_of((0.0, 0.005, "A"), (0.02, 0.3, "SIL"), (0.3, 0.4, "C")),
}


def chosen(**options) -> tuple[list[tuple[int, int, list[int]]], frame_choice.FrameSelection]:
    """(batch row, number, frames) of each row of the statistics, frames by their time."""
    ids = frozenset({"long", "b"})
    got = FrameChoice(GRID, ids, **options).of(BATCH, WIDTH)
    members: dict[int, list[int]] = {int(p): [int(p) % WIDTH] for p in got.rows.positions}
    if got.into is not None:
        assert got.into.shape == (3 * WIDTH,)
        members = {int(p): [] for p in got.rows.positions}
        for place, into in enumerate(got.into):
            if into < 3 * WIDTH:
                members[int(into)].append(place % WIDTH)
    rows = zip(got.rows.positions.tolist(), got.rows.utterance.tolist(), got.rows.number.tolist())
    assert got.rows.utterances == ("long", "b") and got.rows.ids == BATCH.ids
    assert got.frames == sum(map(len, members.values()))
    assert all(position // WIDTH == utterance for position, utterance, _ in rows)
    rows = zip(got.rows.positions.tolist(), got.rows.utterance.tolist(), got.rows.number.tolist())
    return [(utterance, number, members[p]) for p, utterance, number in rows], got


def label_at(row: int, frame: int) -> tuple[int, str]:
    """The segment and the label of a frame by its centre, -1 and nothing outside."""
    seconds = CENTRES[frame] + (1.0 if row == 0 else 0.0)
    for index, name in enumerate(ALIGNED[("long", "b")[row]].labels):
        segments = ALIGNED[("long", "b")[row]]
        if segments.starts[index] <= seconds < segments.ends[index]:
            return index, name
    return -1, ""


EVERY = [(row, frame) for row, count in ((0, 49), (1, 24)) for frame in range(count)]


def test_every_frame():
    rows, got = chosen()
    assert rows == [(row, frame, [frame]) for row, frame in EVERY]
    assert got.into is None and got.frames == 73


def test_stride():
    rows, _ = chosen(stride=4)
    assert rows == [(row, frame, [frame]) for row, frame in EVERY if frame % 4 == 0]


def test_dropped_labels_keep_frames_outside_segments():
    rows, _ = chosen(segments=ALIGNED, drop_labels=("SIL", "C"))
    kept = [(r, f) for r, f in EVERY if label_at(r, f)[1] not in ("SIL", "C")]
    assert rows == [(row, frame, [frame]) for row, frame in kept]
    assert {label_at(r, f)[1] for r, f in kept} == {"", "A", "B"}


def grouped(stride: int = 1, drop: tuple[str, ...] = ()) -> list[tuple[int, int, list[int]]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for row, frame in EVERY:
        index, label = label_at(row, frame)
        if index >= 0 and label not in drop and frame % stride == 0:
            groups.setdefault((row, index), []).append(frame)
    return [(*key, members) for key, members in groups.items()]


@pytest.mark.parametrize("drop", [(), ("SIL",)])
@pytest.mark.parametrize("stride", [1, 3])
def test_segments(stride, drop):
    rows, _ = chosen(stride=stride, pool="segment", segments=ALIGNED, drop_labels=drop)
    assert rows == grouped(stride, drop)
    # b's first segment contains no centre, and before 0.02 s nothing is labelled
    assert (1, 0) not in {row[:2] for row in rows}


def test_utterances():
    rows, _ = chosen(pool="utterance")
    assert rows == [(0, 0, list(range(49))), (1, 0, list(range(24)))]
    rows, _ = chosen(pool="utterance", stride=2, segments=ALIGNED, drop_labels=("A",))
    expected = [
        [f for r, f in EVERY if r == row and f % 2 == 0 and label_at(r, f)[1] != "A"]
        for row in (0, 1)
    ]
    assert rows == [(0, 0, expected[0]), (1, 0, expected[1])]


def test_nothing_left_is_no_row():
    everything = {"long": segments_of((0, 9, "A")), "b": segments_of((0, 9, "A"))}
    for pool in ("none", "utterance", "segment"):
        rows, got = chosen(pool=pool, segments=everything, drop_labels=("A",))
        assert rows == [] and got.frames == 0


def test_an_id_with_a_number_sign_may_be_whole():
    choice = FrameChoice(GRID, frozenset({"take#3", "a#b"}))
    got = choice.of(batch_of({"take#3": 800, "a#b#12": 800}, 2, 1040), 3)
    assert got.rows.utterances == ("take#3", "a#b")


def hidden_of(encoder: ss.SpeechEncoder, waveforms: list[np.ndarray]) -> list[np.ndarray]:
    """[layer, frame, neuron] of each utterance, float64; in one padded batch."""
    acts = encoder(waveforms)
    states, mask = np.asarray(acts.hidden_states, np.float64), np.asarray(acts.frame_mask)
    return [states[:, row, mask[row]] for row in range(len(waveforms))]


def seen_rows(monkeypatch) -> list[np.ndarray]:
    """Filled with what each batch gives the statistics: [layer, row, neuron] of the last model."""
    got: list[np.ndarray] = []
    append = accumulators.MomentsAccumulator.append

    def spy(self, hidden, positions):
        flat = np.asarray(hidden[-1]).reshape(len(hidden[-1]), -1, hidden[-1].shape[-1])
        got.append(flat[:, positions])
        append(self, hidden, positions)

    monkeypatch.setattr(accumulators.MomentsAccumulator, "append", spy)
    return got


def same_rows(got: list[np.ndarray], expected: list[np.ndarray], bar: float) -> None:
    """The same rows in any order (batches are filled by length), to `bar` of the largest value."""
    rows = np.concatenate(got, axis=1)
    expected_rows = np.stack(expected, axis=1)
    assert rows.shape == expected_rows.shape
    sort = [np.argsort(x[-1, :, 0]) for x in (rows, expected_rows)]
    error = np.abs(rows[:, sort[0]] - expected_rows[:, sort[1]]).max()
    assert error <= bar * np.abs(expected_rows).max()


def write_tsv(path: Path, lines: list[tuple[str, float, float, str]]) -> Path:
    text = "path\tstart\tend\tlabel\n"
    path.write_text(text + "".join("\t".join(map(str, line)) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_pooled_rows_equal_a_loop_over_hidden_states(encoders, monkeypatch, tmp_path):
    """Through `compare`, utterances in pieces of at most 0.5 s, two labels, gaps, a stride."""
    data = waves(5)
    lines, expected, pieces = [], [], []
    for name, wave in data.items():
        edges = np.arange(0.03, len(wave) / 16_000, 0.11)
        for k, (start, end) in enumerate(itertools.pairwise(edges)):
            if k % 4:
                lines.append((f"{name}.wav", round(start, 3), round(end, 3), "ABC"[k % 3]))
        count = -(-len(wave) // 8080)  # as `batches` cuts it
        pieces += [(name, k, part) for k, part in enumerate(np.array_split(wave, count))]
    every = hidden_of(encoders[1], [part for _, _, part in pieces])
    for (name, index, part), states in zip(pieces, every):
        offset = index * len(part) / 16_000
        for path, start, end, label in lines:
            times = [t for t in range(0, states.shape[1], 2) if start <= offset + CENTRES[t] < end]
            if path == f"{name}.wav" and label != "B" and times:
                expected.append(states[:, times].mean(axis=1))
    got = seen_rows(monkeypatch)
    path = write_tsv(tmp_path / "a.tsv", lines)
    options = {"max_seconds": 0.5, "pool": "segment", "alignments": path, "frame_stride": 2}
    result = ss.compare(
        encoders, data, measures="lincka,rbfcka,mutual_knn", drop_labels=["B"], **options, **QUICK
    )
    same_rows(got, expected, 2e-6)
    assert result.attributes["rows"] == len(expected)
    assert result.attributes["frames"] > len(expected)
    settings = result.attributes["settings"]
    assert (settings["pool"], settings["frame_stride"]) == ("segment", 2)
    assert (settings["drop_labels"], settings["alignments"]) == (["B"], str(path))
    assert len(bytes.fromhex(result.attributes["alignments"]["sha256"])) == 32
    assert result.attributes["sample"] == {"rows": len(expected), "utterances": 5}


@pytest.mark.slow
def test_utterance_rows_and_the_stride(encoders, monkeypatch):
    data = waves(6)
    alone = hidden_of(encoders[1], list(data.values()))
    got = seen_rows(monkeypatch)
    ss.compare(encoders, data, measures="lincka", pool="utterance", **QUICK)
    same_rows(got, [states.mean(axis=1) for states in alone], 2e-6)
    got.clear()
    ss.compare(encoders, data, measures="lincka", frame_stride=7, **QUICK)
    same_rows(got, [states[:, t] for states in alone for t in range(0, states.shape[1], 7)], 2e-6)


def test_means_keep_their_digits_and_constant_neurons():
    """Utterances of up to 3000 frames at mean/std = 30, beside NaN in the padding."""
    rng = np.random.default_rng(0)
    hidden = (rng.standard_normal((1, 4, 3000, 8)) + 30 * rng.standard_normal(8)).astype(np.float32)
    hidden[..., 5] = 0.1
    counts = [3000, 1777, 1, 0]
    into = np.full((4, 3000), 4 * 3000, np.int32)
    for row, count in enumerate(counts):
        into[row, :count] = row * 3000
        hidden[:, row, count:] = np.nan
    means = np.asarray(frame_choice._means(hidden, into.reshape(-1)))
    for row, count in enumerate(counts[:3]):
        exact = hidden[0, row, :count].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(means[0, row, 0], exact, rtol=2e-7)
        assert means[0, row, 0, 5] == np.float32(0.1)


@pytest.mark.slow
def test_the_number_of_segments_compiles_nothing(encoders, tmp_path):
    data = waves(4)
    cached = []
    for step in (0.4, 0.05):
        lines = [(n, k * step, (k + 1) * step, "A") for n in data for k in range(int(0.4 / step))]
        path = write_tsv(tmp_path / "a.tsv", lines)
        options = {"pool": "segment", "alignments": path, "measures": "lincka"} | QUICK
        result = ss.compare(encoders, data, **options)
        assert result.attributes["rows"] == len(lines)
        cached.append(frame_choice._means._cache_size())
    assert cached[0] == cached[1]


def test_utterances_without_alignment_are_listed(encoders, tmp_path, caplog):
    data = waves(3)
    path = write_tsv(tmp_path / "a.tsv", [(f"x/{n}.wav", 0, 0.2, "A") for n in [*data][:2]])
    options = {"alignments": path, "pool": "segment", "measures": "maxcorr"} | QUICK
    with caplog.at_level(logging.WARNING):
        result = ss.compare(encoders[:1], data, **options)
    assert result.attributes["skipped"] == [
        {"id": "utterance002", "reason": f"has no alignment in {path}"}
    ]
    assert "skipped utterance002" in caplog.text
    assert (result.attributes["utterances"], result.attributes["rows"]) == (2, 2)
    with pytest.raises(ss.UserError, match="utterance002 has no alignment in"):
        ss.compare(encoders[:1], data, strict=True, **options)
    other = {f"other{i}": wave for i, wave in enumerate(data.values())}
    message = r"names no utterance of arrays: it has 'x/utterance000.wav', the audio 'other0'"
    with pytest.raises(ss.UserError, match=message):
        ss.compare(encoders[:1], other, **options)
    with pytest.raises(ss.UserError, match=r"drop_labels: 'sil' .* its labels: A$"):
        ss.compare(encoders[:1], data, drop_labels=["sil"], **options)
    with pytest.raises(ss.UserError, match=r"0 frames of 2 utterances are chosen and give 0 rows"):
        ss.compare(encoders[:1], data, drop_labels=["A"], **options)


def test_choices_are_checked_before_any_work():
    for wrong, message in (
        ({"pool": "word"}, "pool is 'word'; expected 'none' or 'utterance' or 'segment'"),
        ({"pool": "segment"}, "pool='segment' needs alignments"),
        ({"drop_labels": ("SIL",)}, "drop_labels needs alignments"),
        ({"drop_labels": "SIL"}, "drop_labels is 'SIL'"),
        ({"alignments": "a.tsv"}, "alignments are given but not used"),
        ({"alignment_tier": "phone"}, "alignment_tier is given without alignments"),
        ({"frame_stride": 0}, "frame_stride is 0; expected at least 1"),
        ({"sample_frames": 3}, "sample_frames is 3; expected at least 4"),
    ):
        with pytest.raises(ss.UserError, match=message):
            ss.compare(["no/such/folder"], "no-such-audio", **wrong)


@pytest.mark.slow
def test_segments_of_real_speech(encoders, speech, monkeypatch):
    """Two utterances with forced alignments, silence dropped, against a loop over the lines."""
    names = [f"librispeech_test_other/1688/1688-142285-000{i}.flac" for i in (0, 2)]
    data = {n: corpus.read(corpus.Source(n, speech / n)).samples for n in names}
    expected = []
    for name, states in zip(names, hidden_of(encoders[1], list(data.values()))):
        for line in (speech / "alignments_pocketsphinx.tsv").read_text().splitlines()[1:]:
            path, tier, start, end, label = line.split("\t")
            if path == name and tier == "phone" and label != "SIL":
                inside = [
                    t for t in range(states.shape[1]) if float(start) <= CENTRES[t] < float(end)
                ]
                if inside:
                    expected.append(states[:, inside].mean(axis=1))
    assert len(expected) > 100
    got = seen_rows(monkeypatch)
    result = ss.compare(
        encoders[1:],
        {name.removeprefix("librispeech_test_other/"): wave for name, wave in data.items()},
        measures="lincka,mutual_knn,rsa",
        pool="segment",
        alignments=speech / "alignments_pocketsphinx.tsv",
        alignment_tier="phone",
        drop_labels=["SIL"],
        progress=False,
    )
    same_rows(got, expected, 2e-6)
    assert result.attributes["rows"] == len(expected)
    assert result.attributes["alignments"]["tier"] == "phone"
    assert np.isfinite(result.matrix("mutual_knn").values).all()

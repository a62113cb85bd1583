"""Acoustic features, functions and arrays as tracks."""

import functools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import pytest
import soundfile

from speechsim_jax.audio.features import FEATURES, array_track, feature_tracks, function_track
from speechsim_jax.audio.label_sources import label_tracks
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.audio.tracks import Piece, Track
from speechsim_jax.errors import UserError
from tests.support.sound_files import noise

RATE = 16_000


def piece(samples: np.ndarray, start_seconds: float = 0.0, utterance: str = "u") -> Piece:
    return Piece(utterance, start_seconds, np.asarray(samples, np.float32))


def grid(samples: int, hop: int = 320) -> np.ndarray:
    """Centres of the windows of 25 ms that fit."""
    return (np.arange((samples - 400) // hop + 1) * hop + 200) / RATE


def rows(name: str, samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return FEATURES[name].rows(piece(samples), centres)


def speechlike(seconds: float = 2.0, hz: float = 130.0) -> np.ndarray:
    """A buzz with a changing spectrum, and noise."""
    t = np.arange(round(seconds * RATE)) / RATE
    buzz = 0.2 * ((t * hz) % 1 - 0.5) * (1.2 + np.sin(2 * np.pi * 3 * t))
    return (buzz + 0.01 * noise(len(t))).astype(np.float32)


SPEECHLIKE = speechlike()
IRREGULAR = np.sort(np.random.default_rng(1).uniform(0.05, 1.95, 23))


def cut(centres: np.ndarray, samples: np.ndarray = SPEECHLIKE) -> list[np.ndarray]:
    starts = np.rint(centres * RATE - 200).astype(int)
    return [samples[start : start + 400] for start in starts]


@pytest.mark.parametrize("centres", [grid(len(SPEECHLIKE)), IRREGULAR], ids=["grid", "irregular"])
def test_librosa_gives_the_same_of_each_window(centres):
    options = {"sr": RATE, "n_fft": 400, "hop_length": 400, "center": False}
    windows = cut(centres)
    expected = {
        "logmel": [
            librosa.power_to_db(
                librosa.feature.melspectrogram(y=window, n_mels=80, **options),
                amin=1e-10,
                top_db=None,
            )
            for window in windows
        ],
        "spectral_centroid": [
            librosa.feature.spectral_centroid(y=window, **options) / 1000 for window in windows
        ],
        "zero_crossings": [
            librosa.feature.zero_crossing_rate(
                window, frame_length=400, hop_length=400, center=False
            )
            for window in windows
        ],
        "energy": [
            librosa.amplitude_to_db(
                librosa.feature.rms(y=window, frame_length=400, hop_length=400, center=False),
                top_db=None,
            )
            for window in windows
        ],
    }
    for name, values in expected.items():
        got = rows(name, SPEECHLIKE, centres)
        np.testing.assert_allclose(got, np.stack(values)[:, :, 0], atol=2e-3, err_msg=name)


def test_mfcc_with_deltas_of_librosa():
    samples = SPEECHLIKE[: 400 + 160 * 180]  # ends with a window, as its deltas do
    mel = librosa.feature.melspectrogram(
        y=samples, sr=RATE, n_fft=400, hop_length=160, center=False, n_mels=40, htk=True
    )
    static = librosa.feature.mfcc(S=librosa.power_to_db(mel, top_db=None), n_mfcc=13, lifter=22)
    delta = librosa.feature.delta(static, width=5, mode="nearest")
    double = librosa.feature.delta(delta, width=5, mode="nearest")
    expected = np.concatenate([static, delta, double]).T
    # Librosa's lifter begins with sin(pi / 22) at c0, Kaldi's with 0.
    ratio = (1 + 11 * np.sin(np.pi * np.arange(13) / 22)) / (
        1 + 11 * np.sin(np.pi * np.arange(1, 14) / 22)
    )
    got = rows("mfcc", samples, grid(len(samples), 160))
    assert got.shape == (181, 39)
    np.testing.assert_allclose(got, expected * np.tile(ratio, 3), atol=0.02)  # values up to 500


@pytest.mark.parametrize("name", FEATURES)
def test_a_value_depends_on_its_centre_only(name):
    whole = rows(name, SPEECHLIKE, IRREGULAR)
    for index in (0, 7, 22):
        alone = rows(name, SPEECHLIKE, IRREGULAR[index : index + 1])
        np.testing.assert_allclose(alone[0], whole[index], atol=1e-3)
    # The same sound later has the same values, at no frame rate in particular.
    later = np.concatenate([noise(1111), SPEECHLIKE])
    np.testing.assert_allclose(rows(name, later, IRREGULAR + 1111 / RATE), whole, atol=1e-3)


@pytest.mark.parametrize("hz", [70.0, 120.0, 233.0, 410.0])
@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_pitch_of_a_buzz(hz, gain):
    got = rows("f0", gain * speechlike(hz=hz), IRREGULAR)
    assert (got[:, 0] == 1).all()
    np.testing.assert_allclose(got[:, 1], np.log2(hz / 100), atol=0.02)


def test_noise_has_no_pitch():
    got = rows("f0", noise(2 * RATE), IRREGULAR)
    assert got[:, 0].mean() < 0.1
    assert (got[got[:, 0] == 0] == 0).all()


def test_a_hum_in_the_pauses_is_not_voice():
    hum = np.concatenate([speechlike(1.0), 0.001 * speechlike(1.0, hz=100.0)])
    got = rows("f0", hum, np.array([0.5, 1.5]))
    assert got[:, 0].tolist() == [1, 0]


def test_levels_in_decibels():
    t = np.arange(RATE) / RATE
    sine = 0.5 * np.sin(2 * np.pi * 400 * t)  # whole periods in a window
    np.testing.assert_allclose(
        rows("energy", sine, grid(RATE)), 20 * np.log10(0.5 / np.sqrt(2)), atol=1e-3
    )
    assert (rows("energy", np.zeros(RATE), grid(RATE)) == -100).all()
    assert (rows("logmel", np.zeros(RATE), grid(RATE)) == -100).all()


ODD = {
    "silence": np.zeros(4000),
    "silence, then one sample": np.r_[np.zeros(3999), 1.0],
    "clipped": np.clip(30 * noise(4000), -1, 1),
    "constant": np.full(4000, 0.3),
    "shorter than a window": noise(90),
    "one sample": np.array([0.5]),
    "nearly nothing": 1e-20 * noise(4000),
    "too loud": 15 * np.sign(noise(4000)),
}


@pytest.mark.parametrize("what", ODD)
@pytest.mark.parametrize("name", FEATURES)
def test_odd_audio_has_finite_values(name, what):
    samples = ODD[what]
    centres = np.array([0.0, 0.0125, 0.1, len(samples) / RATE])
    got = rows(name, samples, centres)
    assert got.shape == (4, FEATURES[name].width)
    assert got.dtype == np.float32
    assert np.isfinite(got).all()
    assert rows(name, samples, centres[:0]).shape == (0, FEATURES[name].width)


def test_samples_beyond_the_audio_are_zeros():
    padded = np.concatenate([np.zeros(2000), SPEECHLIKE, np.zeros(2000)]).astype(np.float32)
    centres = np.array([0.0, 0.004, 2.0])
    for name in set(FEATURES) - {"mfcc"}:  # whose deltas repeat the outermost window
        shifted = rows(name, padded, centres + 2000 / RATE)
        np.testing.assert_allclose(rows(name, SPEECHLIKE, centres), shifted, atol=1e-3)


def test_many_frames_at_once_are_the_same(monkeypatch):
    centres = grid(len(SPEECHLIKE), 40)
    for name in FEATURES:
        whole = rows(name, SPEECHLIKE, centres)
        with monkeypatch.context() as context:
            context.setattr("speechsim_jax.audio.features._BLOCK_FRAMES", 17)
            np.testing.assert_allclose(rows(name, SPEECHLIKE, centres), whole, atol=1e-3)


def test_threads_give_the_same_values():
    parts = [piece(noise(8000, seed), utterance=str(seed)) for seed in range(24)]
    for track in feature_tracks(list(FEATURES)):
        alone = [track.rows(part, grid(8000)) for part in parts]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda part, of=track: of.rows(part, grid(8000)), parts))
        np.testing.assert_array_equal(together, alone)


def test_tracks_by_name():
    tracks = feature_tracks(["energy", "logmel"])
    assert [(track.name, track.width, track.classes) for track in tracks] == [
        ("energy", 1, ()),
        ("logmel", 80, ()),
    ]
    assert all(isinstance(track, Track) for track in tracks)
    for track in FEATURES.values():
        assert json.loads(json.dumps(track.record)) == track.record
    assert FEATURES["mfcc"].record["librosa"] == librosa.__version__


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["log_mel"], "did you mean 'logmel'"),
        (["f0", "loudness"], "there are: logmel"),
        (["f0", "energy", "f0"], "f0 is there twice"),
    ],
)
def test_names_that_cannot_be(names, expected):
    with pytest.raises(UserError, match=expected):
        feature_tracks(names)


def test_naming_features_loads_no_library():
    program = (
        "import sys; from speechsim_jax.audio.features import feature_tracks\n"
        "feature_tracks(['logmel', 'f0'])[0].record\n"
        "print([name for name in ('librosa', 'numba', 'jax') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_real_speech(speech):
    """Vowels are voiced, hissing is not, and women speak higher."""
    corpus = with_durations(open_corpus(speech / "manifest.tsv"))
    (phones,) = label_tracks([f"phone:{speech / 'alignments_pocketsphinx.tsv'}"], corpus)
    voiced: dict[str, list[float]] = {}
    pitch: dict[str, list[float]] = {}
    aligned = [source for source in corpus.sources if phones.segments[source.id] is not None]
    for source in aligned[::4]:
        samples, _ = soundfile.read(source.path, dtype="float32")
        centres = grid(len(samples))
        got = FEATURES["f0"].rows(piece(samples), centres)
        labels = phones.rows(piece(samples, utterance=source.id), centres)
        for label, (is_voiced, octaves) in zip(labels, got):
            name = phones.classes[label] if label >= 0 else ""
            voiced.setdefault(name, []).append(is_voiced)
            if is_voiced:
                pitch.setdefault(source.columns["gender"], []).append(octaves)

    def share(*names: str) -> float:
        return float(np.mean([one for name in names for one in voiced[name]]))

    assert share("AA", "AE", "AO", "IY", "EY", "OW") > 0.75
    assert share("S", "SH", "F", "T", "K", "P") < 0.35
    assert np.median(pitch["female"]) - np.median(pitch["male"]) > 0.4


# --- functions ---


def squares(samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.array([samples[round(c * RATE)] ** 2 for c in centres])


def cubes(samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.array([samples[round(c * RATE)] ** 3 for c in centres])


def test_a_function():
    track = function_track("squares", squares, {"by": "hand"})
    assert (track.name, track.width, track.classes) == ("squares", 1, ())
    got = track.rows(piece(SPEECHLIKE), IRREGULAR)
    np.testing.assert_allclose(got[:, 0], squares(SPEECHLIKE, IRREGULAR), rtol=1e-6)
    assert got.dtype == np.float32
    assert isinstance(track, Track)
    wide = function_track("wide", lambda samples, centres: np.ones((len(centres), 3), int))
    assert wide.width == 3
    assert track.record["by"] == "hand"
    assert json.loads(json.dumps(track.record)) == track.record


def test_another_function_has_another_record():
    def twice(samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
        return 2 * centres

    was = twice

    def twice(samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
        return centres + centres

    assert (
        function_track("t", was).record["function"] == function_track("t", twice).record["function"]
    )
    records = [
        function_track("t", function).record
        for function in (
            squares,
            cubes,
            was,
            twice,
            functools.partial(power, exponent=2),
            functools.partial(power, exponent=3),
        )
    ]
    assert len({json.dumps(record) for record in records}) == 6
    assert function_track("t", squares).record == records[0]


def power(samples: np.ndarray, centres: np.ndarray, exponent: int) -> np.ndarray:
    return centres**exponent


BAD_FUNCTIONS = {
    "raises": (lambda samples, centres: 1 / 0, "ZeroDivisionError"),
    "a row too few": (lambda samples, centres: centres[1:], "48 rows"),
    "NaN": (lambda samples, centres: np.where(centres > 0.5, np.nan, 0), "nan at frame 25"),
    "too large": (lambda samples, centres: np.full(len(centres), 1e300), "inf at frame 0"),
    "text": (lambda samples, centres: ["a"] * len(centres), "shape"),
    "nothing": (lambda samples, centres: None, "shape"),
    "a number": (lambda samples, centres: 3.0, "shape"),
    "three axes": (lambda samples, centres: np.zeros((len(centres), 2, 2)), "shape"),
    "no columns": (lambda samples, centres: np.zeros((len(centres), 0)), "shape"),
    "ragged": (lambda samples, centres: [[1.0], [1.0, 2.0]], "shape"),
}


@pytest.mark.parametrize("what", BAD_FUNCTIONS)
def test_functions_that_return_no_rows(what):
    function, expected = BAD_FUNCTIONS[what]
    with pytest.raises(UserError, match=expected) as caught:
        function_track("mine", function)
    assert "mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_function_that_fails_later_names_the_utterance():
    def fragile(samples: np.ndarray, centres: np.ndarray) -> np.ndarray:
        if len(samples) == 500:
            return np.ones((len(centres), 2))
        return centres / (0 if len(samples) == 400 else 1)

    track = function_track("fragile", fragile)
    with pytest.raises(UserError, match=r"fragile of a/7.wav has 2 numbers"):
        track.rows(piece(noise(500), utterance="a/7.wav"), grid(500))
    with np.errstate(divide="ignore"), pytest.raises(UserError, match=r"a/8.wav has inf"):
        track.rows(piece(noise(400), utterance="a/8.wav"), grid(400))


# --- arrays ---


def test_arrays_go_on_over_pieces():
    array = np.arange(120.0).reshape(60, 2)
    track = array_track("mine", {"u": array, "v": np.zeros((3, 2))})
    assert (track.name, track.width) == ("mine", 2)
    first = track.rows(piece(noise(RATE // 2)), grid(RATE // 2))
    np.testing.assert_array_equal(first, array[:24])
    # The second piece begins at frame 25; frame 24 would have needed samples of both.
    second = track.rows(piece(noise(RATE // 2), 0.5), grid(RATE // 2))
    np.testing.assert_array_equal(second, array[25:49])
    # Frames of another rate take the nearest row.
    fast = track.rows(piece(noise(RATE // 2)), grid(RATE // 2, 160))
    np.testing.assert_array_equal(fast[::2], array[:24])


def test_arrays_at_another_rate_and_of_one_number():
    track = array_track("mine", {"u": np.arange(100)}, first_seconds=0.0, hop_seconds=0.01)
    assert track.width == 1
    np.testing.assert_array_equal(
        track.rows(piece(noise(RATE)), np.array([0.0, 0.101, 0.5]))[:, 0], [0, 10, 50]
    )


def test_arrays_that_are_not_enough():
    track = array_track("mine", {"u": np.zeros(48)})
    assert track.rows(piece(noise(RATE)), grid(RATE)[:48]).shape == (48, 1)
    with pytest.raises(UserError, match="mine of u has 48 rows; frame 48"):
        track.rows(piece(noise(RATE)), grid(RATE))
    with pytest.raises(UserError, match="no array for w"):
        track.rows(piece(noise(RATE), utterance="w"), grid(RATE))


def test_other_numbers_have_another_record():
    arrays = {"u": np.arange(6.0), "v": np.arange(4.0)}

    def record(arrays, **options):
        return json.dumps(array_track("mine", arrays, **options).record)

    same = record(arrays)
    assert record(dict(reversed(arrays.items()))) == same
    assert record({"u": arrays["u"][:, None], "v": [0, 1, 2, 3]}) == same
    others = [
        record(arrays | {"v": arrays["v"] + 1}),
        record({"u": arrays["u"], "w": arrays["v"]}),
        record({"u": arrays["u"][:4], "v": np.r_[arrays["u"][4:], arrays["v"]]}),
        record(arrays, hop_seconds=0.01),
        record(arrays, first_seconds=0.0),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize(
    ("arrays", "options", "expected"),
    [
        ({}, {}, "no arrays"),
        ({"u": np.zeros((3, 2)), "v": np.zeros(3)}, {}, "mine of v has 1 numbers a row, of u 2"),
        ({"u": np.array([0.0, np.inf])}, {}, "mine of u has inf at frame 1"),
        ({"u": np.zeros((2, 2, 2))}, {}, "shape"),
        ({"u": ["a", "b"]}, {}, "shape"),
        ({"u": np.zeros(3)}, {"hop_seconds": 0.0}, "every 0.0 s"),
        ({"u": np.zeros(3)}, {"first_seconds": float("nan")}, "from nan s"),
    ],
)
def test_arrays_that_cannot_be(arrays, options, expected):
    with pytest.raises(UserError, match=expected):
        array_track("mine", arrays, **options)


def test_a_function_cannot_change_what_the_models_hear():
    def removes_the_mean(samples, centres):
        samples -= samples.mean()
        return np.zeros(len(centres))

    with pytest.raises(UserError, match="read-only") as error:
        function_track("mine", removes_the_mean)
    assert "\n" not in str(error.value)


def test_a_reason_of_many_lines_is_one():
    def fails(samples, centres):
        raise ValueError("first\nsecond")

    with pytest.raises(UserError, match="first second") as error:
        function_track("mine", fails)
    assert "\n" not in str(error.value)


def made(factor, table=None):
    def level(samples, centres):
        return np.full(len(centres), factor)

    return level


class Level:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, samples, centres):
        return np.full(len(centres), self.factor)

    def of(self, samples, centres):
        return self(samples, centres)


def keyword(samples, centres, *, factor=1.0):
    return np.full(len(centres), factor)


@pytest.mark.parametrize(
    "one, other",
    [
        (made(0.5), made(0.7)),
        (Level(0.5), Level(0.7)),
        (Level(0.5).of, Level(0.7).of),
        (functools.partial(keyword, factor=1.0), functools.partial(keyword, factor=2.0)),
        (
            functools.partial(keyword, factor=np.arange(5000.0)[:1].item()),
            functools.partial(keyword, factor=np.arange(5000.0)[1:2].item()),
        ),
    ],
    ids=["closure", "instance", "method", "partial", "number"],
)
def test_what_a_function_was_given_is_in_its_record(one, other):
    assert function_track("t", one).record != function_track("t", other).record
    assert function_track("t", one).record == function_track("t", one).record


def test_an_array_of_all_frames_is_enough_for_pieces():
    """The second half of a long utterance starts half a frame later than its frames."""
    frames, count = 3124, 1_000_000
    track = array_track("mine", {"u": np.arange(frames, dtype=float)})
    half = count // 2
    centres = (np.arange((half - 400) // 320 + 1) * 320 + 200) / 16_000
    rows = track.rows(Piece("u", half / 16_000, np.zeros(half, np.float32)), centres)
    assert rows.max() == frames - 1 and (np.diff(rows[:, 0]) >= 0).all()
    short = array_track("mine", {"u": np.arange(frames - 2, dtype=float)})
    with pytest.raises(UserError, match="needs one"):
        short.rows(Piece("u", half / 16_000, np.zeros(half, np.float32)), centres)

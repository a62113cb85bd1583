"""Sound files as people have them: read, or skipped with the reason; never silently wrong."""

import io
import os
import struct
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import AudioError, Corpus, Skipped, Source, read
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from tests.support.paths import DATA
from tests.support.sound_files import ids, noise, source_of, write


def seconds_of(path: Path) -> float | None:
    return with_durations(Corpus("x", (source_of(path),))).sources[0].seconds


# --- B1, B8: headers that cannot be ---


def _flac_without_length(path: Path, frames: int = 0) -> Path:
    """As a segmenter or a pipe leaves it: STREAMINFO has another number of samples."""
    write(path, noise(16_000))
    data = bytearray(path.read_bytes())
    assert data[:4] == b"fLaC"
    # 36 bits from byte 21 on, after rate, channels and width.
    value = int.from_bytes(data[18:26], "big")
    value = value >> 36 << 36 | frames
    data[18:26] = value.to_bytes(8, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("frames", [0, 2**36 - 1])
def test_a_flac_whose_header_has_no_length_is_read_to_its_end(tmp_path, frames):
    path = _flac_without_length(tmp_path / "x.flac", frames)
    assert len(read(source_of(path)).samples) == 16_000
    assert seconds_of(path) is None


def test_a_length_that_is_too_small_does_not_cut(tmp_path):
    """The decoder goes by the stream, the header may be wrong in either direction."""
    path = _flac_without_length(tmp_path / "x.flac", 9000)
    assert len(read(source_of(path)).samples) >= 9000


def test_with_max_minutes_it_is_chosen_like_any_other(tmp_path):
    """An impossible duration counted as 5.8e14 s, and the file vanished unlisted."""
    _flac_without_length(tmp_path / "x.flac")
    write(tmp_path / "y.flac", noise(16_000, 1))
    result = ss.compare(
        [DATA / "parity" / "wav2vec2-base"], str(tmp_path), "lincka", max_minutes=1, progress=False
    )
    assert result.attributes["utterances"] == 2


@pytest.mark.parametrize("rate_hz", [1, 900, 2_000_000])
def test_a_rate_that_cannot_be_is_refused(tmp_path, rate_hz):
    path = write(tmp_path / "x.wav", noise(16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate_hz)
    path.write_bytes(data)
    with pytest.raises(AudioError, match=f"sampling rate of {rate_hz} Hz, which cannot be"):
        read(source_of(path))
    assert seconds_of(path) is None


# --- B2, B3: formats and names ---


@pytest.mark.parametrize(
    ("suffix", "format", "subtype"),
    [
        ("wav", "WAV", "GSM610"), ("wav", "WAV", "MS_ADPCM"), ("wav", "WAV", "ULAW"),
        ("aiff", "AIFF", "PCM_16"), ("aif", "AIFF", "FLOAT"), ("sph", "NIST", "PCM_16"),
        ("au", "AU", "PCM_16"), ("caf", "CAF", "PCM_16"), ("w64", "W64", "PCM_16"),
        ("rf64", "RF64", "PCM_16"), ("wav", "WAVEX", "PCM_24"), ("wav", "WAV", "DOUBLE"),
    ],
)  # fmt: skip
def test_formats_that_libsndfile_reads(tmp_path, suffix, format, subtype):
    tone = 0.5 * np.sin(np.cumsum(np.linspace(0.05, 0.3, 16_000))).astype(np.float32)
    path = write(tmp_path / f"x.{suffix}", tone, format=format, subtype=subtype)
    assert ids(open_corpus(tmp_path)) == [path.name]
    samples = read(source_of(path)).samples
    assert abs(len(samples) - 16_000) <= 1024  # codecs of blocks fill the last one
    assert np.corrcoef(samples[:15_000], tone[:15_000])[0, 1] > 0.9


@pytest.mark.parametrize("name", [b"caf\xe9.wav", b"\xff\xfe.wav", "日本.wav".encode()])
def test_names_that_are_not_utf8(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    with path.open("wb") as file:
        soundfile.write(file, noise(16_000), 16_000, format="WAV")
    (source,) = with_durations(open_corpus(tmp_path)).sources
    assert source.seconds == 1.0 and len(read(source).samples) == 16_000
    assert len(open_corpus(tmp_path).fingerprint()) == 64


def test_whatever_a_decoder_raises_is_a_skip(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.wav", noise(16_000))

    class Fails(soundfile.SoundFile):
        def read(self, *args, **kwargs):
            if "a.wav" in str(self.name):
                raise ZeroDivisionError("inside a codec")
            return super().read(*args, **kwargs)

    monkeypatch.setattr(soundfile, "SoundFile", Fails)
    skipped: list[Skipped] = []
    buckets = batching.plan_buckets([1.0], hop_samples=320, window_samples=400)
    batch = next(
        batching.batches(open_corpus(tmp_path), buckets, min_samples=400, on_skip=skipped.append)
    )
    assert batch.ids == ("b.wav",)
    assert skipped == [Skipped("a.wav", "cannot be decoded: inside a codec")]


def test_a_pipe_is_no_file(tmp_path):
    """Opening it would wait for a writer, for ever."""
    os.mkfifo(tmp_path / "fifo.wav")
    write(tmp_path / "a.wav", noise(16_000))
    (tmp_path / "dir.wav").mkdir()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    for channel in ("mean", "each"):
        corpus = with_durations(open_corpus(tmp_path, channel=channel))
        assert [s.id for s in corpus.sources if s.seconds] == ["a.wav"]
        for source in corpus.sources:
            if source.id != "a.wav":
                with pytest.raises(AudioError, match="is not a file"):
                    read(source)


# --- B4, B5: channels ---


@pytest.mark.parametrize("gain", [1.0, 0.98])
def test_an_inverted_channel_does_not_cancel_the_other(tmp_path, gain):
    x = noise(16_000)
    path = write(tmp_path / "x.wav", np.stack([x, -gain * x], 1), subtype="PCM_16")
    utterance = read(source_of(path))
    np.testing.assert_allclose(utterance.samples, x, atol=1e-4)
    assert utterance.notes == ("channels cancel each other, one was taken",)


def test_many_channels_are_read_in_small_blocks(tmp_path, monkeypatch):
    """A header of 1024 channels took 4 GB."""
    path = write(tmp_path / "x.wav", np.stack([noise(800)] * 200, 1), subtype="FLOAT")
    asked = []

    class Counts(soundfile.SoundFile):
        def read(self, frames, *args, **kwargs):
            asked.append(frames * self.channels)
            return super().read(frames, *args, **kwargs)

    monkeypatch.setattr(soundfile, "SoundFile", Counts)
    np.testing.assert_allclose(read(source_of(path)).samples, noise(800), atol=1e-6)
    assert max(asked) <= 2**20


@pytest.mark.parametrize("channels", [2, 6])
def test_other_channels_are_averaged_which_is_noted(tmp_path, channels):
    x = np.stack([noise(16_000, seed) for seed in range(channels)], 1)
    utterance = read(source_of(write(tmp_path / "x.wav", x, subtype="FLOAT")))
    np.testing.assert_allclose(utterance.samples, x.mean(axis=1), atol=1e-6)
    assert utterance.notes == ("channels averaged",)


def test_a_talker_a_channel(tmp_path):
    x = np.stack([noise(16_000, 0), noise(16_000, 1)], 1)
    write(tmp_path / "call.wav", x, subtype="FLOAT")
    write(tmp_path / "mono.wav", x[:, 0], subtype="FLOAT")

    def read_as(channel: str) -> dict[str, np.ndarray]:
        return {s.id: read(s).samples for s in open_corpus(tmp_path, channel=channel).sources}

    for channel, index in (("left", 0), ("right", 1), ("2", 1)):
        samples = read_as(channel)
        np.testing.assert_array_equal(samples["call.wav"], x[:, index])
        np.testing.assert_array_equal(samples["mono.wav"], x[:, 0])
    each = read_as("each")
    assert sorted(each) == ["call.wav:1", "call.wav:2", "mono.wav"]
    np.testing.assert_array_equal(each["call.wav:2"], x[:, 1])
    fingerprints = {c: open_corpus(tmp_path, channel=c).fingerprint() for c in ("left", "right")}
    assert len(set(fingerprints.values())) == 2
    source = next(s for s in open_corpus(tmp_path, channel="3").sources if s.id == "call.wav")
    with pytest.raises(AudioError, match="has 2 channels, and channel 3 is asked"):
        read(source)
    for wrong in ("middle", "0", "-1", ""):
        with pytest.raises(ss.UserError, match="expected mean, left, right, each or a number"):
            open_corpus(tmp_path, channel=wrong)


# --- B6: values ---


@pytest.mark.parametrize(("peak", "bits"), [(13_183, 16), (8_000_000, 24), (2e9, 32)])
def test_floats_in_the_range_of_integers_are_scaled(tmp_path, peak, bits):
    x = noise(16_000)
    x *= peak / np.abs(x).max()
    utterance = read(source_of(write(tmp_path / "x.wav", x, subtype="FLOAT")))
    np.testing.assert_allclose(utterance.samples, x / 2 ** (bits - 1), rtol=1e-6)
    assert utterance.notes == (f"values up to {bits} bits, scaled",)


def test_floats_a_little_above_one_stay_and_absurd_ones_are_refused(tmp_path):
    x = noise(16_000)
    loud = read(source_of(write(tmp_path / "x.wav", 20 * x, subtype="FLOAT")))
    assert loud.notes == () and np.abs(loud.samples).max() > 1
    with pytest.raises(AudioError, match=r"has values up to .*; expected -1 to 1"):
        read(source_of(write(tmp_path / "y.wav", 1e20 * x, subtype="FLOAT")))
    array = Source("a", samples=1000 * x)
    assert read(array).notes == ("values up to 16 bits, scaled",)


# --- B7: cut off ---


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("wav", {}), ("wav", {"subtype": "FLOAT"}), ("wav", {"format": "WAVEX"}),
        ("wav", {"subtype": "GSM610"}), ("wav", {"endian": "BIG"}), ("rf64", {"format": "RF64"}),
        ("w64", {"format": "W64"}), ("caf", {"format": "CAF"}),
        ("caf", {"format": "CAF", "subtype": "ALAC_16"}), ("aiff", {"format": "AIFF"}),
        ("au", {"format": "AU"}), ("sph", {"format": "NIST"}), ("flac", {}), ("ogg", {}),
        ("opus", {"format": "OGG", "subtype": "OPUS"}), ("mp3", {"format": "MP3"}),
        ("mp3", {"format": "MP3", "bitrate_mode": "VARIABLE"}),
    ],
)  # fmt: skip
def test_a_file_that_was_cut_off_is_damaged(tmp_path, suffix, options):
    path = write(tmp_path / f"x.{suffix}", noise(48_000), **options)
    read(source_of(path))
    data = path.read_bytes()
    sizes = [int(share * len(data)) for share in (0.1, 0.35, 0.6, 0.97)]
    for size in (*sizes, len(data) - 16):
        path.write_bytes(data[:size])
        with pytest.raises(AudioError, match=r"is damaged: |cannot be decoded"):
            read(source_of(path))


def test_mp3_of_fraunhofer_and_tags(tmp_path):
    """Its header lies 32 bytes into the first frame; tags around the frames do not count."""
    path = write(tmp_path / "x.mp3", noise(48_000), format="MP3", bitrate_mode="CONSTANT")
    data = path.read_bytes()
    at = data.index(b"Info" if b"Info" in data[:200] else b"Xing")
    length = struct.unpack(">I", data[at + 12 : at + 16])[0]
    assert length == len(data)
    frame = data[:4] + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 50, length, 84)
    data = frame + data[len(frame) :]
    before = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 2]) + bytes(130)
    for start, end in ((b"", b""), (before, b""), (before, b"TAG" + bytes(125))):
        path.write_bytes(start + data + end)
        assert len(read(source_of(path)).samples) > 40_000
        path.write_bytes(start + data[:-500])
        with pytest.raises(AudioError, match=f"is damaged: .* of {len(start) + length} bytes"):
            read(source_of(path))


def _with(data: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    at = data.index(mark) + offset
    return data[:at] + new + data[at + len(new) :]


def _loud_at_the_end(path: Path, rate_hz: int, **options) -> bytes:
    """Ten seconds of which the first half needs few bits: an estimate by it is far off."""
    x = np.concatenate([0.001 * noise(5 * rate_hz), 3 * noise(5 * rate_hz, 1)])
    return write(path, x, rate_hz, format="MP3", **options).read_bytes()


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("as_bytes", [False, True])
def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path, rate_hz, as_bytes):
    """libsndfile estimates the length by the first frame: half of the samples were lost."""
    path = tmp_path / "x.mp3"
    data = _loud_at_the_end(path, rate_hz, bitrate_mode="VARIABLE", compression_level=0.3)
    second = data.index(data[:2], 64)
    marked = data.index(b"Xing")
    wiped = data[:marked] + bytes(4) + data[marked + 4 :]
    tagged = b"ID3\x04\x00\x00" + bytes([0, 0, 1, 2]) + bytes(130) + data[second:]
    for content in (data[second:], wiped, tagged, data[second:] + bytes(50)):
        path.write_bytes(content)
        source = source_of(path)
        if as_bytes:
            source = Source("x", row=SimpleNamespace(key="k", encoded=lambda c=content: c))
        assert 160_000 <= len(read(source).samples) < 164_000
        assert 10 <= (with_durations(Corpus("x", (source,))).sources[0].seconds or 0) < 10.3


def test_an_mp3_that_is_damaged_in_the_middle_is_not_half_read(tmp_path):
    path = tmp_path / "x.mp3"
    data = _loud_at_the_end(path, 16_000)
    half = len(data) // 2
    for lost in (2000, 10_000):  # the decoder passes over the shorter stretch
        path.write_bytes(data[:half] + bytes(lost) + data[half + lost :])
        with pytest.raises(AudioError, match=r"is damaged: .* samples decode|cannot be decoded"):
            read(source_of(path))


def test_joined_recordings_are_read_whole_or_skipped(tmp_path):
    """Of files joined by `cat` libsndfile reads the first."""
    for suffix, subtype in (("mp3", None), ("ogg", "VORBIS"), ("opus", "OPUS")):
        kind = {"format": "MP3"} if subtype is None else {"format": "OGG", "subtype": subtype}
        path = tmp_path / f"x.{suffix}"
        parts = [write(path, noise(n, n), **kind).read_bytes() for n in (32_000, 48_000)]
        path.write_bytes(b"".join(parts))
        if suffix == "mp3":
            assert 80_000 <= len(read(source_of(path)).samples) < 85_000
        else:
            with pytest.raises(AudioError, match="holds several recordings"):
                read(source_of(path))


@pytest.mark.parametrize(
    ("suffix", "options", "mark", "offset", "new"),
    [
        ("caf", {"format": "CAF"}, b"data", 4, b"\xff" * 8),
        ("rf64", {"format": "RF64"}, b"ds64", 16, bytes(8)),
        ("rf64", {"format": "RF64"}, b"ds64", 16, b"\xff" * 8),
        ("au", {"format": "AU"}, b".snd", 8, b"\xff" * 4),
        ("sph", {"format": "NIST"}, b"sample_count", 0, b"sample_kount"),
        ("wav", {}, b"data", 4, struct.pack("<I", 0x7FFFFFFF)),
    ],
)
def test_what_states_no_length_is_read_to_its_end(tmp_path, suffix, options, mark, offset, new):
    path = write(tmp_path / f"x.{suffix}", noise(16_000), **options)
    path.write_bytes(_with(path.read_bytes(), mark, offset, new)[:-2000])
    try:
        assert len(read(source_of(path)).samples) >= 14_900
    except AudioError as error:  # libsndfile itself may refuse such a header
        assert "damaged" not in str(error)


def test_what_lies_behind_the_samples_is_not_needed(tmp_path):
    path = write(tmp_path / "x.wav", noise(16_000))
    data = path.read_bytes()
    path.write_bytes(data + b"LIST" + struct.pack("<I", 5000) + b"INFO")
    assert len(read(source_of(path)).samples) == 16_000
    path = write(tmp_path / "x.ogg", noise(16_000))
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    assert len(read(source_of(path)).samples) == 16_000


def test_a_file_of_zeros_is_judged_at_once(tmp_path):
    """Zeros read as empty chunks; walking over 12 million of them took 7 s."""
    path = write(tmp_path / "x.wav", noise(100))
    with path.open("r+b") as file:
        file.truncate(12)
        file.truncate(100_000_000)
    started = time.perf_counter()
    with pytest.raises(AudioError):
        read(source_of(path))
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 0x80000000, 0])
def test_sizes_of_streams_are_not_judged(tmp_path, size):
    """A program that writes to a pipe does not know the length."""
    path = write(tmp_path / "x.wav", noise(16_000))
    data = bytearray(path.read_bytes())
    at = data.find(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    if size:
        assert len(read(source_of(path)).samples) == 16_000


def test_bytes_of_a_dataset_are_judged_like_files(tmp_path):
    data = write(tmp_path / "x.wav", noise(16_000)).read_bytes()

    class Row:
        key = "k"

        def encoded(self) -> bytes:
            return data[:20_000]

    with pytest.raises(AudioError, match=r"is damaged: the file has 20000 of 32044 bytes"):
        read(Source("row", row=Row()))
    assert io.BytesIO(data).getvalue() == data


# --- what was guessed is in the result ---


def test_notes_and_duplicates_are_counted(tmp_path, caplog):
    x = noise(16_000)
    write(tmp_path / "a.wav", np.stack([x, noise(16_000, 1)], 1))
    write(tmp_path / "b.wav", np.stack([x, -x], 1))
    write(tmp_path / "c.wav", noise(16_000, 2))
    write(tmp_path / "d.wav", noise(16_000, 2))
    with caplog.at_level("INFO"):
        result = ss.compare(
            [DATA / "parity" / "wav2vec2-base"], str(tmp_path), "lincka", progress=False
        )
    assert result.attributes["reading"] == {
        "channels averaged": 1, "channels cancel each other, one was taken": 1,
    }  # fmt: skip
    assert result.attributes["duplicates"] == 1
    assert "1 utterance: channels averaged" in caplog.text
    assert (
        "1 utterance with the same samples as another, for example c.wav and d.wav" in caplog.text
    )
    assert result.attributes["corpus"]["speaker_unknown"] == 4
    assert replace(Source("x"), channel=1).channel == 1

"""Corpora: what is listed, what is read, and what is refused in one line."""

import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import soxr

from speechsim_jax.audio.corpus import AudioError, Corpus, Source, read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.errors import UserError, printable
from tests.support.sound_files import SPEECH, ids, manifest, needs_speech, noise, source_of, write

# ---------------------------------------------------------------- opening


def test_folder_is_recursive_sorted_and_keeps_to_visible_audio(tmp_path):
    for name in ["b/x.WAV", "a.flac", "b/c/y.ogg", "m.mp3", ".hidden.wav", ".git/z.wav"]:
        write(tmp_path / name, noise(800), format="WAV")
    (tmp_path / "notes.txt").write_text("no audio")
    corpus = open_corpus(tmp_path)
    assert ids(corpus) == ["a.flac", "b/c/y.ogg", "b/x.WAV", "m.mp3"]
    assert [source.speaker for source in corpus.sources] == ["", "", "", ""]  # folders say nothing
    assert all(source.seconds is None for source in corpus.sources)
    assert corpus.origin == str(tmp_path)
    assert open_corpus(str(tmp_path)) == corpus
    assert open_corpus(corpus) is corpus


def test_folder_follows_links_once(tmp_path):
    write(tmp_path / "real/a.wav", noise(800))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/linked").symlink_to(tmp_path / "real")
    (tmp_path / "real/loop").symlink_to(tmp_path / "root")
    assert ids(open_corpus(tmp_path / "root")) == ["linked/a.wav"]


def test_librispeech_layout_gives_speaker_and_transcript(tmp_path):
    chapter = tmp_path / "test-clean/84/121123"
    for number in range(2):
        write(chapter / f"84-121123-000{number}.flac", noise(800))
    write(chapter / "85-121123-0000.flac", noise(800))
    manifest(chapter / "84-121123.trans.txt", "84-121123-0000 GO DO YOU HEAR", "84-121123-0001 BUT")
    sources = open_corpus(tmp_path).sources
    assert [source.speaker for source in sources] == ["84", "84", "85"]
    assert [source.transcript for source in sources] == ["GO DO YOU HEAR", "BUT", ""]
    # The speaker is in the path itself, so it is known from any root and in any container.
    assert open_corpus(chapter).sources[0].speaker == "84"
    assert open_corpus([chapter / "84-121123-0000.flac"]).sources[0].speaker == "84"


def test_tsv_manifest_is_unquoted_and_relative_to_itself(tmp_path):
    path = manifest(
        tmp_path / "m.TSV",
        "\ufeffpath\tid\tseconds\tspeaker\ttranscript",
        'sub/a.wav\tfirst\t1.5\tann\the said "no, never',
        "sub/b.wav\t\t\t\t",
    )
    first, second = open_corpus(path).sources
    assert first == Source("first", tmp_path / "sub/a.wav", 1.5, "ann", 'he said "no, never')
    # The manifest has a speaker column, so an empty cell is an unknown speaker, not a folder.
    assert second == Source("sub/b.wav", tmp_path / "sub/b.wav", None, "", "")


def test_manifest_without_speakers_takes_them_from_the_paths(tmp_path):
    path = manifest(tmp_path / "m.tsv", "path", "ann/a.wav", "84-121123-0000.flac", "../c/d.wav")
    assert [source.speaker for source in open_corpus(path).sources] == ["", "84", ""]
    corpus = open_corpus(path, speaker_from="^(?:../)?([a-z]+)/")
    assert [source.speaker for source in corpus.sources] == ["ann", "", "c"]


def test_csv_manifest_is_quoted(tmp_path):
    path = manifest(tmp_path / "m.csv", "path,transcript", 'a.wav,"yes, ""sir"""')
    assert open_corpus(path).sources[0].transcript == 'yes, "sir"'


def test_list_skips_comments_and_blank_lines(tmp_path):
    outside = tmp_path / "elsewhere.wav"
    path = tmp_path / "lists/l.txt"
    path.parent.mkdir()
    manifest(path, "# mine", "b/x.wav", "", "  a.wav  ", str(outside), str(path.parent / "c.wav"))
    corpus = open_corpus(path)
    assert ids(corpus) == ["b/x.wav", "a.wav", outside.as_posix(), "c.wav"]
    assert corpus.sources[0].path == path.parent / "b/x.wav"
    assert corpus.sources[2].path == outside
    assert [source.speaker for source in corpus.sources] == [""] * 4


def test_single_file_and_sequence_of_paths(tmp_path):
    path = write(tmp_path / "d/a.wav", noise(800))
    assert open_corpus(path).sources == (Source("a.wav", path),)
    corpus = open_corpus([str(path), tmp_path / "b.wav"])
    assert ids(corpus) == [path.as_posix(), (tmp_path / "b.wav").as_posix()]


def test_arrays_float_and_int16():
    pcm = np.array([0, -32768, 32767, 5] * 200, np.int16)
    corpus = open_corpus({"floats": noise(800).astype(np.float64), "pcm": pcm})
    floats, ints = (read(source) for source in corpus.sources)
    np.testing.assert_array_equal(floats.samples, noise(800))
    np.testing.assert_array_equal(ints.samples, pcm / 32768)
    assert ints.samples.dtype == np.float32
    assert ints.seconds == corpus.sources[1].seconds == 0.05
    many = open_corpus([noise(400, seed) for seed in range(11)])
    assert ids(many)[:2] == ["00", "01"] and ids(many)[-1] == "10"


def test_read_does_not_alias_the_array_of_the_caller():
    mine = noise(800)
    utterance = read(open_corpus([mine]).sources[0])
    mine[:] = 0
    assert utterance.samples.any()


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((2, 800), np.float32), r"'x'.*\(2, 800\).*1-D"),
        (np.zeros(800, np.int32), "'x'.*int32.*float or int16"),
        (np.zeros(800, np.complex64), "'x'.*complex64"),
        ([0.0, 1.0], "'x'.*list"),
    ],
)
def test_bad_arrays_are_refused(array, message):
    with pytest.raises(UserError, match=message):
        open_corpus({"x": array})


def test_duplicate_ids_are_refused(tmp_path):
    path = manifest(tmp_path / "m.tsv", "path\tid", "a.wav\tsame", "b.wav\tsame")
    with pytest.raises(UserError, match=r"'same' appears 2 times"):
        open_corpus(path)
    with pytest.raises(UserError, match=r"'a\.wav' appears 2 times"):
        open_corpus(["a.wav", "./a.wav"])


@pytest.mark.parametrize(
    "name, lines, message",
    [
        ("m.tsv", ["sound\tseconds", "a.wav\t1"], r"m\.tsv has no column 'path'"),
        ("m.tsv", [], "has no column 'path'"),
        ("m.tsv", ["path\tseconds", "a.wav\t1", "b.wav\tlong"], r"line 3: seconds='long'"),
        ("m.tsv", ["path\tseconds", "a.wav\tinf"], "seconds='inf'"),
        ("m.tsv", ["path\tseconds", "a.wav\t-2"], "seconds='-2'"),
        ("m.tsv", ["path\tseconds", "\t1"], "line 2: 'path' is empty"),
        ("m.csv", ["path,transcript", "a.wav,yes, sir"], "line 2: more fields"),
        ("m.tsv", ["path"], "names no audio"),
        ("l.txt", ["# nothing"], "names no audio"),
        ("x.pdf", ["?"], r"x\.pdf has an unknown suffix.*\.flac"),
    ],
)
def test_bad_manifests_are_refused_in_one_line(tmp_path, name, lines, message):
    path = manifest(tmp_path / name, *lines)
    with pytest.raises(UserError, match=message) as caught:
        open_corpus(path)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_inputs_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_corpus(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=r"no audio below .*\.flac"):
        open_corpus(tmp_path)
    for empty in ([], {}):
        with pytest.raises(UserError, match="names no audio"):
            open_corpus(empty)
    with pytest.raises(UserError, match="is a folder"):
        open_corpus([tmp_path])
    (tmp_path / "latin.tsv").write_bytes(b"path\n\xe9.wav\n")
    with pytest.raises(UserError, match=r"latin\.tsv as UTF-8"):
        open_corpus(tmp_path / "latin.tsv")


def test_missing_file_of_a_manifest_fails_only_when_read(tmp_path):
    write(tmp_path / "a.wav", noise(800))
    corpus = open_corpus(manifest(tmp_path / "m.tsv", "path", "a.wav", "gone.wav"))
    assert len(read(corpus.sources[0]).samples) == 800
    with pytest.raises(AudioError, match=r"is not a file: .*gone\.wav"):
        read(corpus.sources[1])


# ---------------------------------------------------------------- fingerprint


def test_fingerprint_follows_content_not_order_or_time(tmp_path):
    path = write(tmp_path / "a.wav", noise(800))
    write(tmp_path / "b.wav", noise(900))
    corpus = open_corpus(tmp_path)
    before = corpus.fingerprint()
    os.utime(path, (1, 1))
    assert Corpus("elsewhere", corpus.sources[::-1]).fingerprint() == before
    assert replace(corpus, sources=corpus.sources[:1]).fingerprint() != before
    write(path, noise(801))
    assert corpus.fingerprint() != before
    path.unlink()
    assert open_corpus([path, tmp_path / "b.wav"]).fingerprint() != before


def test_fingerprint_of_arrays_sees_every_byte():
    first, second = noise(800), noise(800)
    second[799] += 1e-3
    prints = {open_corpus({"a": x}).fingerprint() for x in (first, first.copy(), second)}
    assert len(prints) == 2


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_integer_pcm_is_exact(tmp_path, suffix):
    pcm = np.random.default_rng(1).integers(-32768, 32768, 1000).astype(np.int16)
    source = replace(source_of(write(tmp_path / f"a.{suffix}", pcm)), speaker="s", transcript="t")
    utterance = read(source)
    np.testing.assert_array_equal(utterance.samples, pcm.astype(np.float64) / 32768)
    assert (utterance.id, utterance.speaker, utterance.transcript) == (source.id, "s", "t")
    assert utterance.samples.flags.c_contiguous


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_mix_and_resample(tmp_path, rate_hz, channels):
    samples = noise(rate_hz // 4 * channels).reshape(-1, channels)
    path = write(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    got = read(source_of(path)).samples
    expected = soxr.resample(samples.mean(axis=1), rate_hz, 16_000, "HQ")
    np.testing.assert_array_equal(got, expected)
    assert abs(len(got) - 4000) <= 1


def test_resampling_keeps_a_tsource_of(tmp_path):
    seconds = np.arange(44_100) / 44_100
    path = write(tmp_path / "a.wav", np.sin(2 * np.pi * 440 * seconds), 44_100, subtype="FLOAT")
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    got = read(source_of(path)).samples
    np.testing.assert_allclose(got[200:-200], expected[200:-200], atol=1e-3)


@pytest.mark.parametrize(
    "suffix, options",
    [("mp3", {}), ("ogg", {}), ("oga", {"format": "OGG"}), ("opus", {"format": "OGG"})],
)
def test_lossy_formats_decode_completely(tmp_path, suffix, options):
    if suffix == "opus":
        options = {**options, "subtype": "OPUS"}
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000)
    utterance = read(source_of(write(tmp_path / f"a.{suffix}", tone, **options)))
    assert len(utterance.samples) == 16_000
    assert np.corrcoef(utterance.samples, tone)[0, 1] > 0.99


def spoiled(value: float) -> np.ndarray:
    samples = noise(800)
    samples[[123, 456]] = value
    return samples


@pytest.mark.parametrize(
    "samples, reason",
    [
        (noise(0), "is empty"),
        (spoiled(np.nan), "has NaN at sample 123"),
        (spoiled(np.inf), "has inf at sample 123"),
        (np.zeros(800, np.float32), "is silent: every sample is 0"),
        (np.full(800, 0.25, np.float32), "is silent: every sample is 0.25"),
        (noise(160), "is too short: 10 ms; at least 25 ms are needed"),
        (noise(399), "is too short: 24.9 ms; at least 25 ms are needed"),
        (noise(1), "is too short: 0 ms; at least 25 ms are needed"),
    ],
)
def test_unusable_audio_is_refused_with_the_reason(tmp_path, samples, reason):
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(AudioError) as from_file:
        read(source_of(path), 400)
    with pytest.raises(AudioError) as from_array:
        read(open_corpus([samples]).sources[0], 400)
    assert str(from_file.value) == str(from_array.value) == reason


def test_one_frame_is_long_enough_and_length_counts_after_resampling(tmp_path):
    assert len(read(open_corpus([noise(400)]).sources[0], 400).samples) == 400
    assert len(read(source_of(write(tmp_path / "a.wav", noise(200), 8_000)), 400).samples) == 400
    with pytest.raises(AudioError, match="too short"):
        read(source_of(write(tmp_path / "b.wav", noise(1000), 44_100)), 400)
    with pytest.raises(AudioError, match="too short: 0 ms"):
        read(source_of(write(tmp_path / "c.wav", noise(1), 44_100)))


def test_overflow_is_caught(tmp_path):
    huge = np.full((800, 2), 3e38, np.float32)
    with pytest.raises(AudioError, match="has inf at sample 0"):
        read(source_of(write(tmp_path / "b.wav", huge, subtype="FLOAT")))
    with pytest.raises(AudioError, match="has inf at sample 0"):
        read(open_corpus([np.full(800, 1e300)]).sources[0])


def test_unreadable_files_are_refused(tmp_path):
    for name, content in [
        ("text.wav", b"hello" * 99),
        ("page.mp3", b"<html>" * 99),
        ("words.ogg", b"ab" * 99),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError) as error:
            read(source_of(tmp_path / name))
        assert str(error.value) == "cannot be decoded: Format not recognised."
    (tmp_path / "a.raw").write_bytes(b"ab" * 99)
    with pytest.raises(AudioError, match="cannot be decoded: samplerate must be specified"):
        read(source_of(tmp_path / "a.raw"))
    (tmp_path / "zero.flac").touch()
    with pytest.raises(AudioError, match="is empty: it has 0 bytes"):
        read(source_of(tmp_path / "zero.flac"))
    with pytest.raises(AudioError, match="not a file"):
        read(source_of(tmp_path))
    flac = write(tmp_path / "a.flac", noise(16_000)).read_bytes()
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    with pytest.raises(AudioError, match="cannot be decoded"):
        read(source_of(tmp_path / "cut.flac"))
    # 36 bits of STREAMINFO hold the number of samples: here, 240 GiB of them.
    (tmp_path / "liar.flac").write_bytes(flac[:21] + bytes([flac[21] | 0x0F]) + flac[22:])
    assert len(read(source_of(tmp_path / "liar.flac")).samples) == 16_000


def test_messages_are_one_line_whatever_the_name(tmp_path):
    for name in ("new\nline", "\r", "\x1b[2J", "\u2028"):
        path = tmp_path / f"{name}.wav"
        with pytest.raises(AudioError) as missing:
            read(source_of(path))
        with pytest.raises(UserError) as unknown:
            open_corpus(path)
        for message in (str(missing.value), str(unknown.value)):
            assert len(message.splitlines()) == 1 and name not in message
            assert printable(name) in message


def test_a_damaged_ogg_is_not_half_read(tmp_path):
    path = write(tmp_path / "a.ogg", noise(48_000))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"is damaged: .* of 48000 samples decode"):
        read(source_of(path))


# ---------------------------------------------------------------- real speech


@needs_speech
@pytest.mark.parametrize("suffix, rate_hz, channels", [("wav", 8_000, 1), ("mp3", 44_100, 2)])
def test_real_speech_is_resampled_from_its_mono_mix(suffix, rate_hz, channels):
    source = next(s for s in open_corpus(str(SPEECH)).sources if s.id.endswith(suffix))
    assert source.path
    samples, rate = soundfile.read(source.path, dtype="float32", always_2d=True)
    assert (rate, samples.shape[1]) == (rate_hz, channels)
    expected = soxr.resample(samples.mean(axis=1), rate_hz, 16_000, "HQ")
    np.testing.assert_array_equal(read(source).samples, expected)

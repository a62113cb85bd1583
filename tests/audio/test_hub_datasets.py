"""Datasets as audio: rows of Parquet files in a folder, and on a hub served from 127.0.0.1."""

import functools
import io
import sys
import time
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

import speechsim_jax as ss
from speechsim_jax.audio import batching, hub_datasets
from speechsim_jax.audio.corpus import AudioError, read
from speechsim_jax.audio.open_corpus import open_corpus, with_durations
from speechsim_jax.audio.selection import select
from speechsim_jax.errors import UserError
from tests.support.hub_server import FIRST, Hub, serving
from tests.support.paths import DATA
from tests.support.sound_files import ids, noise

README = """---
configs:
- config_name: clean
  data_files:
  - split: validation
    path: clean/validation/*.parquet
---
"""
SOUND = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """Separate cache folders for each test."""
    assets = functools.partial(huggingface_hub.cached_assets_path, assets_dir=tmp_path / "assets")
    monkeypatch.setattr(huggingface_hub, "cached_assets_path", assets)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "assets"


def encoded(samples: np.ndarray, rate_hz: int = 16_000, format: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=format)
    return file.getvalue()


def rows(count: int, samples: int = 8_000, first: int = 0) -> dict[str, pa.Array]:
    """The columns of LibriSpeech on the hub: three speakers, one utterance a row."""
    numbers = range(first, first + count)
    sound = [
        {"bytes": encoded(noise(samples, number)), "path": f"{number}.flac"} for number in numbers
    ]
    return {
        "file": pa.array([f"{number}.flac" for number in numbers]),
        "audio": pa.array(sound, SOUND),
        "text": pa.array([f"WORD {number}" for number in numbers]),
        "speaker_id": pa.array([1000 + number % 3 for number in numbers]),
        "id": pa.array([f"utterance-{number:02d}" for number in numbers]),
    }


def written(columns: dict[str, pa.Array], group: int = 2) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, row_group_size=group)
    return file.getvalue()


def files_of(*parts: dict[str, pa.Array]) -> dict[str, bytes]:
    named = {f"clean/validation/{n:04d}.parquet": written(part) for n, part in enumerate(parts)}
    return {"README.md": README.encode(), **named}


def folder_of(folder: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return f"hf:{folder}/clean/validation"


def cached_groups(cache: Path) -> list[str]:
    """The row groups that have been fetched."""
    return sorted(path.name for path in cache.rglob("*.arrow"))


# ---------------------------------------------------------------- listing


def test_rows_are_listed_in_order_and_nothing_is_fetched(tmp_path, cache):
    address = folder_of(tmp_path / "d", files_of(rows(5), rows(2, first=5)))
    corpus = open_corpus(address)
    assert corpus.origin == address
    assert ids(corpus) == [f"utterance-{number:02d}" for number in range(7)]
    assert [source.speaker for source in corpus.sources[:4]] == ["1000", "1001", "1002", "1000"]
    assert [source.transcript for source in corpus.sources[5:]] == ["WORD 5", "WORD 6"]
    assert all(source.seconds is None for source in corpus.sources)
    assert cached_groups(cache) == []
    for number, source in enumerate(corpus.sources):
        np.testing.assert_allclose(read(source).samples, noise(8_000, number), atol=2**-15)
    assert cached_groups(cache) == ["0.arrow", "0.arrow", "1.arrow", "2.arrow"]
    assert open_corpus(address) == corpus


def test_a_dataset_without_configurations(tmp_path):
    folder_of(tmp_path / "d", {"data/train-00000-of-00001.parquet": written(rows(2))})
    assert len(open_corpus(f"hf:{tmp_path}/d/default/train").sources) == 2


def test_ids_come_from_a_column_of_unique_values(tmp_path):
    columns = rows(3)
    columns["id"] = pa.array([7, 7, 8])
    columns["file"] = pa.array(["x", None, "z"])
    address = folder_of(tmp_path / "a", files_of(columns))
    assert ids(open_corpus(address)) == ["0.flac", "1.flac", "2.flac"]
    columns["audio"] = pa.array([{"bytes": b"", "path": "same.flac"}] * 2 + [None], SOUND)
    address = folder_of(tmp_path / "b", files_of(columns, {**columns, "id": columns["id"]}))
    assert ids(open_corpus(address)) == ["0", "1", "2", "3", "4", "5"]


def test_speakers_and_transcripts_may_be_missing_in_part(tmp_path):
    columns = rows(2)
    del columns["text"]
    columns["client_id"] = pa.array([None, "ann"])
    del columns["speaker_id"]
    sources = open_corpus(folder_of(tmp_path / "d", files_of(columns))).sources
    assert [(source.speaker, source.transcript) for source in sources] == [("", ""), ("ann", "")]


def test_other_columns_are_kept_with_the_names_of_classes(tmp_path, monkeypatch):
    """Labels as names, numbers, truth values; long texts are not even read."""
    read_columns: list[str] = []
    original = parquet.ParquetFile.read

    def reading(self, columns, **options):
        read_columns.extend(columns)
        return original(self, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read", reading)
    described = README.replace(
        "---\nconfigs",
        "---\ndataset_info:\n  config_name: clean\n  features:\n"
        "  - name: emotion\n    dtype:\n      class_label:\n        names:\n"
        "          '0': calm\n          '1': angry\n"
        "configs",
    )
    rng = np.random.default_rng(0)
    columns = rows(4) | {
        "emotion": pa.array([0, 1, -1, None]),
        "age": pa.array([30, 31, 32, 33]),
        "native": pa.array([True, False, None, True]),
        "sex": pa.array(["F", "male", "", None]),
        "story": pa.array([rng.bytes(4000).hex() for _ in range(4)]),
        "embedding": pa.array([[0.1, 0.2]] * 4),
    }
    files = files_of(columns) | {"README.md": described.encode()}
    corpus = open_corpus(folder_of(tmp_path, files))
    assert [dict(source.columns) for source in corpus.sources] == [
        {"emotion": "calm", "age": "30", "native": "true", "gender": "female"},
        {"emotion": "angry", "age": "31", "native": "false", "gender": "male"},
        {"age": "32"},
        {"age": "33", "native": "true"},
    ]
    assert [source.speaker for source in corpus.sources] == ["1000", "1001", "1002", "1000"]
    assert {"emotion", "text"} <= set(read_columns)
    assert not {"story", "embedding"} & set(read_columns)


def test_the_audio_column_is_recognised_by_its_type(tmp_path):
    columns = rows(2)
    picture = pa.array([{"bytes": b"picture", "path": "p.png"}] * 2, SOUND)
    features = datasets.Features({"picture": datasets.Image(), "speech": datasets.Audio()})
    table = pa.table({"picture": picture, "speech": columns["audio"]})
    typed = table.cast(features.arrow_schema)  # with the metadata that `datasets` adds
    file = io.BytesIO()
    parquet.write_table(typed, file)
    content = {"clean/validation/0.parquet": file.getvalue(), "README.md": README.encode()}
    corpus = open_corpus(folder_of(tmp_path / "d", content))
    assert ids(corpus) == ["0.flac", "1.flac"]
    np.testing.assert_allclose(read(corpus.sources[1]).samples, noise(8_000, 1), atol=2**-15)


# ---------------------------------------------------------------- the same as files


@pytest.fixture
def both(tmp_path) -> tuple[str, Path]:
    """The same audio files as rows of a dataset, and in a folder."""
    sounds = {
        "a.flac": encoded(noise(20_000, 0)),
        "b.wav": encoded(noise(7_111, 1), 8_000, "WAV"),
        "c.ogg": encoded(0.2 * np.sin(np.arange(60_000).reshape(-1, 2) / 9), 44_100, "OGG"),
        "d.mp3": encoded(noise(40_000, 3), 22_050, "MP3"),
        "e.flac": encoded(noise(20_000, 4)),
        "f.flac": encoded(noise(7_111, 5)),
    }
    audio = [{"bytes": content, "path": name} for name, content in sounds.items()]
    columns = {"audio": pa.array(audio, SOUND), "id": pa.array(list(sounds))}
    address = folder_of(tmp_path / "dataset", files_of(columns))
    for name, content in sounds.items():
        (tmp_path / "files" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    return address, tmp_path / "files"


def test_bits_and_durations_are_those_of_files(both):
    dataset, files = (with_durations(open_corpus(str(audio))) for audio in both)
    assert ids(dataset) == ids(files)
    for row, file in zip(dataset.sources, files.sources):
        assert row.seconds == file.seconds
        assert np.array_equal(read(row).samples, read(file).samples)


@pytest.mark.slow
def test_a_comparison_gives_the_bits_that_files_give(both):
    encoder = ss.load_encoder(DATA / "parity" / "wav2vec2-base")
    settings = {"batch_seconds": 3, "buckets": 1, "rows_per_update": 100, "progress": False}
    dataset, files = (ss.compare([encoder], str(audio), **settings) for audio in both)
    assert dataset.attributes["corpus"]["origin"] == both[0]
    assert dataset.attributes["frames"] == files.attributes["frames"] > 0
    assert dataset.measures == files.measures
    for name in dataset.measures:
        assert np.array_equal(dataset.matrix(name).values, files.matrix(name).values), name


def test_a_stream_of_batches_resumes(tmp_path):
    corpus = with_durations(open_corpus(folder_of(tmp_path / "d", files_of(rows(9)))))
    buckets = [batching.Bucket(2, 8_080)]
    full = list(batching.batches(corpus, buckets, min_samples=400, on_skip=print))
    again = with_durations(open_corpus(corpus.origin))
    rest = list(
        batching.batches(again, buckets, min_samples=400, on_skip=print, start=full[1].after)
    )
    assert [batch.ids for batch in rest] == [batch.ids for batch in full[2:]]
    for batch, same in zip(rest, full[2:]):
        assert np.array_equal(batch.samples, same.samples)


# ---------------------------------------------------------------- minutes, and what is fetched


def test_minutes_are_chosen_in_turn_and_the_rest_is_not_fetched(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("speechsim_jax.audio.selection._ROWS_AT_A_TIME", 3)
    address = folder_of(tmp_path / "d", files_of(rows(60)))
    chosen = select(open_corpus(address), 3.2 / 60, seed=2)  # six rows of half a second fit
    assert len(chosen.sources) == 6 and ids(chosen) == sorted(ids(chosen))
    assert sorted(s.speaker for s in chosen.sources) == sorted(["1000", "1001", "1002"] * 2)
    fetched = cached_groups(cache)
    assert len(fetched) <= 9 < 30
    # The choice does not depend on what is cached.
    with_durations(open_corpus(address))
    assert len(cached_groups(cache)) == 30
    assert select(open_corpus(address), 3.2 / 60, seed=2) == chosen
    assert ids(select(open_corpus(address), 3.2 / 60, seed=3)) != ids(chosen)
    assert (
        select(open_corpus(address), 10, seed=2).sources
        == with_durations(open_corpus(address)).sources
    )


def test_an_utterance_too_long_for_the_minutes_is_taken_alone(tmp_path):
    corpus = open_corpus(folder_of(tmp_path / "d", files_of(rows(4))))
    assert len(select(corpus, 0.1 / 60, seed=0).sources) == 1


def test_nothing_is_fetched_twice(tmp_path, monkeypatch):
    address = folder_of(tmp_path / "d", files_of(rows(5)))
    fetched: list[tuple[int, str]] = []
    audio_of = hub_datasets._audio_of

    def recording(url, group, column):
        fetched.append((group, column))
        time.sleep(0.01)
        return audio_of(url, group, column)

    monkeypatch.setattr(hub_datasets, "_audio_of", recording)
    for _ in range(2):
        corpus = with_durations(open_corpus(address), workers=8)
        bucket = batching.Bucket(2, 8_080)
        list(batching.batches(corpus, [bucket], min_samples=400, workers=4, on_skip=print))
    assert sorted(fetched) == [(0, "audio"), (1, "audio"), (2, "audio")]


def test_a_changed_file_is_another_one(tmp_path):
    folder = tmp_path / "d"
    address = folder_of(folder, files_of(rows(2)))
    first = open_corpus(address)
    before = read(first.sources[0]).samples
    fingerprint = first.fingerprint()
    assert with_durations(first).fingerprint() == fingerprint
    folder_of(folder, files_of(rows(2, samples=9_000)))
    second = open_corpus(address)
    assert len(read(second.sources[0]).samples) == 9_000 > len(before)
    assert second.fingerprint() != fingerprint
    # A copy elsewhere is the same audio.
    other = open_corpus(folder_of(tmp_path / "copy", files_of(rows(2))))
    assert other.fingerprint() == fingerprint


# ---------------------------------------------------------------- what cannot be used


def test_unusable_rows_are_skipped_and_reported(tmp_path):
    audio = [
        None,
        {"bytes": None, "path": "elsewhere.flac"},
        {"bytes": b"no sound", "path": "x.flac"},
        {"bytes": encoded(noise(200)), "path": "short.flac"},
        {"bytes": encoded(noise(8_000)), "path": "good.flac"},
    ]
    columns = {"audio": pa.array(audio, SOUND)}
    corpus = with_durations(open_corpus(folder_of(tmp_path / "d", files_of(columns))))
    assert ids(corpus) == ["0", "1", "2", "3", "4"]
    assert [source.seconds for source in corpus.sources] == [None, None, None, 0.0125, 0.5]
    skipped = []
    stream = functools.partial(
        batching.batches, corpus, [batching.Bucket(1, 8_080)], min_samples=400
    )
    assert [batch.ids for batch in stream(on_skip=skipped.append)] == [("4",)]
    reasons = ["no audio in its row", "no audio in its row", "cannot be decoded", "short"]
    assert [source.id for source in skipped] == ["0", "1", "2", "3"]
    for source, reason in zip(skipped, reasons):
        assert reason in source.reason
    with pytest.raises(UserError, match="0 has no audio in its row"):
        list(stream(strict=True, on_skip=print))
    with pytest.raises(AudioError, match="no audio"):
        read(corpus.sources[0])


def refusal(audio) -> str:
    with pytest.raises(UserError) as caught:
        open_corpus(audio)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    "address", ["hf:", "hf:clean/validation", "hf:org/speech//test", "hf:/a/b", "hf:a/b/c/d@"]
)
def test_incomplete_addresses(address):
    assert "expected hf:NAME/CONFIG/SPLIT, e.g. hf:openslr/" in refusal(address)


def test_the_parts_of_an_address(tmp_path, monkeypatch):
    of = hub_datasets.Address.of
    assert of("hf:owner/name/config/split") == ("owner/name", "config", "split", None)
    assert of("hf:name/config/split") == ("name", "config", "split", None)
    address = of("hf:owner/name/config/split@refs/pr/1")
    assert address == ("owner/name", "config", "split", "refs/pr/1")
    assert str(address) == "hf:owner/name/config/split@refs/pr/1"
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert of("hf:~/mine/default/train").name == str(tmp_path / "mine")


def test_missing_configurations_splits_and_revisions(tmp_path):
    address = folder_of(tmp_path / "d", files_of(rows(1)))
    assert refusal(address.replace("clean", "other")).startswith(
        f"audio: hf:{tmp_path}/d/other/validation: BuilderConfig 'other' not found. Available: "
    )
    assert "no split 'train'; it has validation" in refusal(address.replace("validation", "train"))
    assert "is a folder, and a folder has no revision" in refusal(f"{address}@main")
    (tmp_path / "empty").mkdir()
    assert "expected hf:NAME/CONFIG/SPLIT" in refusal(f"hf:{tmp_path}/empty/default/train")
    assert "is a dataset" in refusal([address])


def test_files_that_are_not_parquet_or_hold_no_audio(tmp_path):
    folder_of(tmp_path / "a", {"train/a.wav": encoded(noise(800), format="WAV")})
    message = refusal(f"hf:{tmp_path}/a/default/train")
    assert "a.wav" in message and "only Parquet is read" in message
    columns = {"text": pa.array(["x"]), "audio": pa.array(["a.wav"])}
    address = folder_of(tmp_path / "b", files_of(columns))
    assert "no column of audio, only text, audio" in refusal(address)
    files = files_of(rows(2))
    broken = {name: c[: len(c) // 2] if "clean" in name else c for name, c in files.items()}
    assert "cannot be listed" in refusal(folder_of(tmp_path / "c", broken))


def test_without_the_library_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal("hf:a/b/c")


# ---------------------------------------------------------------- the hub


REPO = "org/speech"
HUB = f"hf:{REPO}/clean/validation"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub(f"datasets/{REPO}", files_of(rows(12, samples=48_000), rows(4, first=12)))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    files = server.url + "/datasets/{repo_id}/resolve/{revision}/{path}"
    monkeypatch.setattr(datasets.config, "HUB_DATASETS_URL", files)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "USE_PARQUET_EXPORT", False)  # asks another server
    with serving(server, monkeypatch, tmp_path):
        yield server


@pytest.mark.parametrize("revision", ["", "@main", f"@{FIRST}"])
def test_a_dataset_of_the_hub_is_pinned_and_listed_without_its_audio(hub, revision, cache):
    corpus = open_corpus(HUB + revision)
    assert corpus.origin == f"{HUB}@{FIRST}"
    assert ids(corpus) == [f"utterance-{number:02d}" for number in range(16)]
    file = "clean/validation/0000.parquet"
    size, before = len(hub.commits[FIRST][file]), hub.sent[file]
    assert before < 0.1 * size
    np.testing.assert_allclose(read(corpus.sources[3]).samples, noise(48_000, 3), atol=2**-15)
    assert cached_groups(cache) == ["1.arrow"]
    assert 0.1 < (hub.sent[file] - before) / size < 0.25  # one group of six
    assert open_corpus(HUB).fingerprint() == corpus.fingerprint()


def test_an_error_of_the_hub_is_one_line_and_costs_nothing_that_is_cached(hub, cache):
    corpus = open_corpus(HUB)
    read(corpus.sources[0])
    hub.error = (500, "")
    assert len(read(corpus.sources[1]).samples) == 48_000  # of the same row group
    with pytest.raises(UserError, match=r"row group 1 cannot be fetched .* start again") as caught:
        with_durations(corpus)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(cache.rglob("*.tmp"))
    hub.error = None
    assert all(source.seconds for source in with_durations(corpus).sources)


def test_what_the_hub_does_not_have(hub):
    assert "expected hf:NAME/CONFIG/SPLIT" in refusal("hf:org/other/clean/validation")
    assert "'no-such'" in refusal(f"{HUB}@no-such")
    assert "it has validation" in refusal(f"hf:{REPO}/clean/train")
    hub.error = (500, "")
    assert "connection to the hub" in refusal("hf:org/third/clean/validation")

"""What a run logs: before it computes, while it does, and when there is nothing to do."""

import contextlib
import json
import logging
import os
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from absl import flags

import speechsim_jax as ss
from speechsim_jax.audio import corpus, open_corpus
from speechsim_jax.commands import compare, entry, merge
from speechsim_jax.commands.log import log_to
from speechsim_jax.errors import UserError
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.pipeline import accumulators, one_pass, run
from tests.support.paths import ROOT

BASE = ROOT / "tests" / "data" / "parity" / "wav2vec2-base"
QUICK: dict[str, Any] = {"measures": "lincka", "layers": (0, -1), "batch_seconds": 1, "buckets": 1}


@pytest.fixture(scope="module")
def encoder() -> SpeechEncoder:
    return ss.load_encoder(BASE)


@pytest.fixture
def names(tmp_path) -> dict[str, Path]:
    """A list and a manifest of files that are not there, and words that are called a sound."""
    places = {name: tmp_path / name for name in ("list.txt", "manifest.tsv", "words.wav")}
    places["list.txt"].write_text("gone0.wav\ngone1.wav\n")
    places["manifest.tsv"].write_text("path\ngone0.wav\n")
    places["words.wav"].write_text("not a sound at all")
    return places


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.1 * rng.standard_normal(round(16_000 * seconds)).astype(np.float32)


@pytest.mark.parametrize("name", ["list.txt", "manifest.tsv"])
def test_lists_of_nothing_are_refused_before_anything_is_loaded(name, names, monkeypatch, capsys):
    monkeypatch.setattr(
        "speechsim_jax.comparison.prepared.load_encoder", lambda *_, **__: pytest.fail("loaded")
    )
    with pytest.raises(UserError) as error:
        ss.compare([BASE], names[name])
    number = "2 files" if name == "list.txt" else "1 file"
    assert str(error.value) == (
        f"{names[name]}: no usable audio ({number} skipped, the first: gone0.wav is not a file: "
        f"{names[name].with_name('gone0.wav')}; paths in a list count from its own folder)"
    )
    assert capsys.readouterr().err == ""


def test_no_known_length_is_no_traceback(encoder, names, capsys):
    with pytest.raises(UserError, match=r"no usable audio \(1 file skipped, .* cannot be decoded"):
        ss.compare([encoder], names["words.wav"], **QUICK)
    assert "audio:   0%" in capsys.readouterr().err  # there was a bar


HOSTILE = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eb\udcff.wav"
SHOWN = r"a\u001b[2J\u001b]0;title\u0007\u009b31m\u202eb\udcff.wav"


def test_names_of_files_move_no_cursor(tmp_path, capsys):
    """On the terminal and in the file; the record itself keeps the name."""
    log = logging.getLogger("speechsim_jax.somewhere")
    with log_to(tmp_path):
        log.warning("%s cannot be read\nsecond line", HOSTILE)
    assert capsys.readouterr().err == f"{SHOWN} cannot be read\nsecond line\n"
    (line,) = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert line.isprintable()
    assert json.loads(line)["message"] == f"{HOSTILE} cannot be read\nsecond line"


def test_skipped_files_are_shown_wherever_logs_go(encoder, caplog):
    """Without a command's handlers, too: an id and a reason with what a terminal obeys."""
    waves = {HOSTILE: np.zeros(16_000, np.float32), "b": noise(1)}
    with caplog.at_level(logging.WARNING, "speechsim_jax"):
        result = ss.compare([encoder], waves, progress=False, **QUICK)
    (said,) = [line for line in caplog.messages if "skipped" in line]
    assert SHOWN in said and said.isprintable()
    assert result.attributes["skipped"][0]["id"] == HOSTILE


def test_what_a_command_prints_moves_no_cursor(capsys):
    """Its table, and the line that ends it."""

    def main(values):
        print(f"model {HOSTILE}", end="\n\n")
        raise UserError(f"{HOSTILE} is missing")

    command = types.ModuleType("command")
    vars(command).update(main=main, define_flags=flags.FlagValues)
    with pytest.raises(SystemExit):
        entry.run_module(command, [], program=False)
    said = capsys.readouterr()
    assert said.out == f"model {SHOWN}\n\n" and said.err == f"error: {SHOWN} is missing\n"
    assert str(UserError(HOSTILE)) == SHOWN  # a notebook shows it without a command


@pytest.mark.slow
def test_more_audio_than_a_manifest_promises(encoder, tmp_path, capsys):
    """Its seconds are believed for the plan only."""
    soundfile.write(tmp_path / "one.wav", noise(3), 16_000)
    (tmp_path / "m.tsv").write_text("path\tseconds\none.wav\t1\n")
    assert ss.compare([encoder], tmp_path / "m.tsv", **QUICK).attributes["seconds"] == 3
    assert "3/? audio-seconds" in capsys.readouterr().err


def test_missing_files_of_a_list_say_where_they_are_looked_for(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"gone.wav\n{tmp_path}/absolute.wav\n")
    said = []
    for source in open_corpus.open_corpus(listed).sources:
        with pytest.raises(corpus.AudioError) as error:
            corpus.read(source)
        said.append(str(error.value))
    assert said == [
        f"is not a file: {tmp_path}/gone.wav; paths in a list count from its own folder",
        f"is not a file: {tmp_path}/absolute.wav",
    ]


@pytest.mark.slow
def test_skipped_audio_counts_as_done(encoder, capsys):
    """The bar ends at its total, in whole seconds of audio."""
    waves = {"a": noise(1), "silent": np.zeros(80_000, np.float32), "b": noise(1, 1)}
    ss.compare([encoder], waves, **QUICK)
    bars = capsys.readouterr().err.replace("\r", "\n").splitlines()
    last = [line for line in bars if line.startswith("audio:")][-1]
    assert last.startswith("audio: 100%|") and "| 7/7 audio-seconds" in last


def test_what_is_said_at_the_start(encoder, caplog):
    """On the terminal (INFO) before anything is slow; figures of the plan are for the file."""
    with caplog.at_level(logging.DEBUG, "speechsim_jax"):
        ss.compare([encoder], {"a": noise(1), "b": noise(1, 1)}, **QUICK)
    lines = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
    assert "1 model" in lines[0] and "2 audio files" in lines[0]
    assert lines[1].startswith("no standard errors: ")
    assert lines[2].startswith("2 layers, 2 files, 2.0 s of audio, ")
    assert lines[2].endswith(" GB, under a minute and compiling")
    assert lines[3].startswith("compiling 1 program ")
    assert lines[4].startswith("read 2 utterances, 2.0 s of audio, ")
    for figure in ("one pass, data", "workspace", "FLOPs"):
        assert not any(figure in line for line in lines) and figure in caplog.text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((3, 1), "under a minute"), ((61, 0), "about 1.0 min"), ((589, 1), "about 9.8 min"),
        ((60, 60), "about 2.0 min, 1.0 of them scoring,"), ((3720, 3), "about 62 min"),
    ],
)  # fmt: skip
def test_estimates_say_that_compiling_is_not_in_them(seconds, said):
    assert run._duration(*seconds) == f"{said} and compiling"


@pytest.mark.slow
def test_several_passes_are_announced(encoder, caplog):
    given: dict[str, Any] = QUICK | {"progress": False}
    with pytest.raises(UserError, match="give at least") as error:
        ss.compare([encoder], {"a": noise(1)}, device_memory_gb=1e-9, **given)
    least = int(str(error.value).split("give at least ")[1].split()[0])
    with caplog.at_level(logging.INFO, "speechsim_jax"):
        result = ss.compare([encoder], {"a": noise(1)}, device_memory_gb=least / 1e9, **given)
    count = result.attributes["passes"]
    assert count > 1 and f"1 file, 1.0 s of audio, read {count} times, " in caplog.text


def test_a_resumed_run_counts_what_it_has_heard_itself(encoder, tmp_path, monkeypatch, caplog):
    """In the closing line and in the bar's rate; the result counts all."""
    waves = {f"u{k}": noise(1, k) for k in range(5)}
    given: dict[str, Any] = QUICK | {"statistics_dir": tmp_path / "c", "checkpoint_every": 0}
    append, batches = accumulators.Accumulators.append, []

    def dies(self, *args):
        batches.append(args)
        if len(batches) > 3:
            raise KeyboardInterrupt
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(accumulators.Accumulators, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            ss.compare([encoder], waves, progress=False, **given)
    bars = []
    make = one_pass.tqdm.auto.tqdm
    monkeypatch.setattr(
        one_pass.tqdm.auto, "tqdm", lambda **kwargs: bars.append(make(**kwargs)) or bars[-1]
    )
    with caplog.at_level(logging.INFO, "speechsim_jax"):
        result = ss.compare([encoder], waves, **given)
    assert result.attributes["utterances"] == 5
    assert "read 2 utterances, 2.0 s of audio, 98 frames in " in caplog.text
    assert bars[0].initial == 3 and bars[0].n == bars[0].total == 5


def test_an_unfinished_first_checkpoint_is_none(encoder, tmp_path, caplog):
    """A run that was killed while it wrote its first starts from the beginning."""
    folder = tmp_path / "c" / "shard-1-of-1" / "pass-1.batch-000001.20000101T000000000000-00000000"
    (folder / "moments").mkdir(parents=True)
    (folder / "moments" / "state.0.npy").write_bytes(b"half")
    ss.compare([encoder], {"a": noise(1)}, statistics_dir=tmp_path / "c", progress=False, **QUICK)
    assert "resuming" not in caplog.text


def test_merging_what_was_not_kept(tmp_path):
    job = tmp_path / "first"
    job.mkdir()
    (job / "result.nc").touch()
    with pytest.raises(UserError) as error:
        merge.run(merge.Config(str(tmp_path / "both"), (str(job),)))
    assert str(job) in str(error.value) and "--keep_statistics" in str(error.value)


def test_a_model_without_preprocessor_says_what_is_assumed(tmp_path, caplog):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(BASE / name, folder)
    loaded = ss.load_encoder(folder)
    assert loaded.config.do_normalize and loaded.provenance["notes"] == []
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: no preprocessor_config.json, so samples are normalised (do_normalize=True)"
    ]
    caplog.clear()
    ss.load_encoder(BASE)
    assert not caplog.records


def test_the_log_keeps_the_plan(encoder, tmp_path, capsys):
    """Through the script: short lines on the terminal, all in log.jsonl."""
    soundfile.write(tmp_path / "one.wav", noise(1), 16_000)
    config = compare.Config(
        (str(BASE),), str(tmp_path / "one.wav"), str(tmp_path / "out"), measures="lincka",
        settings=ss.Settings(layers=(0, -1)),
    )  # fmt: skip
    compare.run(config)
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    entries = {entry["message"]: entry["level"] for entry in map(json.loads, lines)}
    (plan,) = [said for said in entries if said.startswith("one pass, data 1 x feature 1 devices")]
    assert entries[plan] == "debug" and plan not in capsys.readouterr().err


def test_log_survives_what_is_not_text(tmp_path, capsys):
    """A file name may not be UTF-8; the library's logging is as before afterwards."""
    logger = logging.getLogger("speechsim_jax")
    before = logger.level, logger.propagate, list(logger.handlers)
    with contextlib.suppress(ss.UserError), log_to(tmp_path):
        logging.getLogger("speechsim_jax.audio.corpus").warning(
            "skipped %s", os.fsdecode(b"caf\xe9.wav")
        )
        logging.getLogger("speechsim_jax.audio.corpus").debug("fine\nprint")
        raise ss.UserError("the end")
    assert (logger.level, logger.propagate, logger.handlers) == before
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(entry["level"], entry["message"]) for entry in entries] == [
        ("warning", "skipped caf\udce9.wav"),
        ("debug", "fine\nprint"),
        ("error", "the end"),
    ]
    assert entries[-1]["logger"] == "speechsim_jax.commands.log"
    assert capsys.readouterr().err.splitlines() == ["skipped caf\\udce9.wav"]


def test_without_progress_only_errors_are_shown(tmp_path, capsys):
    with log_to(tmp_path, progress=False):
        logging.getLogger("speechsim_jax").warning("skipped a.wav")
        logging.getLogger("speechsim_jax").error("out of paper")
    assert capsys.readouterr().err.splitlines() == ["out of paper"]
    assert "skipped a.wav" in (tmp_path / "log.jsonl").read_text()

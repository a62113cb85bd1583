"""The probe as a user meets it: which frames it reads, what it writes, what it says when wrong."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.analyses.probing import features
from speechsim_jax.audio.alignments import read_alignments
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.commands import probe
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.training import records
from speechsim_jax.training.data.clusters import mfcc
from speechsim_jax.training.data.splits import open_split
from speechsim_jax.training.recipe import Audio
from tests.support.commands import assert_mistake, call
from tests.support.tiny_encoders import CONFIG

pytestmark = pytest.mark.slow

TONES = {"AA": 300, "IY": 900, "S": 2700}
SPEAKERS = ("ann", "bob", "cyd", "dan")
SECONDS = 2.0


@pytest.fixture(scope="module")
def speech_like(tmp_path_factory) -> Path:
    """Four speakers, two utterances each: a tone for each phone, silences, noise over all."""
    folder = tmp_path_factory.mktemp("speech_like")
    rng = np.random.default_rng(0)
    manifest, lines = ["path\tspeaker"], ["path\ttier\tstart\tend\tlabel"]
    for speaker in SPEAKERS:
        for number in range(2):
            name = f"{speaker}{number}.wav"
            wave = 0.02 * rng.standard_normal(int(16_000 * SECONDS))
            time = np.arange(len(wave)) / 16_000
            start = 0.0
            for label in ("SIL", *rng.permutation(list(TONES) * 2), "SIL"):
                end = start + SECONDS / 8
                if label in TONES:
                    inside = (time >= start) & (time < end)
                    pitch = TONES[label] * rng.uniform(0.9, 1.1)
                    wave[inside] += 0.1 * np.sin(2 * np.pi * pitch * time[inside])
                lines.append(f"{name}\tphone\t{start:g}\t{end:g}\t{label}")
                start = end
            lines.append(f"{name}\tword\t0\t{SECONDS:g}\tWORD")
            soundfile.write(folder / name, wave, 16_000)
            manifest.append(f"{name}\t{speaker}")
    (folder / "manifest.tsv").write_text("\n".join(manifest))
    (folder / "alignments.tsv").write_text("\n".join(lines))
    return folder


def model_folder(path: Path, seed: int, **changes) -> Path:
    config = dataclasses.replace(CONFIG, **changes)
    return save_folder(path, config, random_tensors(config, seed))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Two encoders of one architecture and a wider one, as trainings leave them."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "first": model_folder(folder / "first" / "model", 1),
        "second": model_folder(folder / "second", 2),
        "wide": model_folder(folder / "wide", 3, hidden_size=32),
        "slow": model_folder(folder / "slow", 4, conv_stride=(5, 2, 2, 2, 2, 2, 4)),
    }


def trained_on(model: Path, speech_like: Path, held_out: tuple[str, ...]) -> None:
    """training.json as a pretraining writes it."""
    audio = Audio(held_out=held_out, held_out_share=0.0)
    split = open_split([speech_like / "manifest.tsv"], audio)
    saved = {"recipe": {"audio": dataclasses.asdict(audio)}, "audio": split.fingerprint()}
    (model / "training.json").write_text(json.dumps(saved))


def config_of(speech_like: Path, models: list[Path], workdir: Path, **changes) -> probe.Config:
    given: dict = dict(
        models=tuple(map(str, models)),
        audio=str(speech_like / "manifest.tsv"),
        alignments=str(speech_like / "alignments.tsv"),
        workdir=str(workdir),
        folds=2,
        max_frames=400,
        test_speakers=("all",),
    )
    return probe.Config(**given | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, speech_like, models):
    workdir = tmp_path_factory.mktemp("runs") / "probe"
    config = config_of(speech_like, [models["first"], models["second"]], workdir)
    return config, probe.run(config), json.loads((workdir / "probe.json").read_text())


# --- which frames ---


def chosen_frames(speech_like: Path, most: int = 10_000, seed: int = 0) -> features.PhoneFrames:
    alignments = read_alignments(speech_like / "alignments.tsv", "phone")
    corpus = open_corpus(speech_like / "manifest.tsv")
    return features.choose_frames(corpus, alignments, CONFIG, ("SIL",), most, seed)


def test_a_frame_has_the_phone_that_its_centre_lies_in(speech_like):
    chosen = chosen_frames(speech_like)
    rows = [
        line.split("\t") for line in (speech_like / "alignments.tsv").read_text().splitlines()[1:]
    ]
    count = CONFIG.frames(int(16_000 * SECONDS))
    for source in chosen.corpus.sources:
        expected = {}
        for frame in range(count):
            centre = (320 * frame + 200) / 16_000
            for name, tier, start, end, label in rows:
                inside = float(start) <= centre < float(end)
                if (name, tier) == (source.id, "phone") and inside and label != "SIL":
                    expected[frame] = label
        assert dict(zip(chosen.frames[source.id].tolist(), chosen.phones[source.id])) == expected


def test_fewer_frames_are_balanced_and_seeded(speech_like):
    whole, some, again, other = (
        chosen_frames(speech_like, most, seed)
        for most, seed in ((10_000, 0), (101, 0), (101, 0), (101, 1))
    )
    counts = {speaker: 0 for speaker in SPEAKERS}
    for source in some.corpus.sources:
        places = some.frames[source.id]
        counts[source.speaker] += len(places)
        known = dict(zip(whole.frames[source.id].tolist(), whole.phones[source.id]))
        assert [known[place] for place in places.tolist()] == list(some.phones[source.id])
        assert (np.diff(places) > 0).all()
        assert places.tolist() == again.frames[source.id].tolist()
    assert counts == {speaker: 25 for speaker in SPEAKERS}
    assert any(some.frames[name].tolist() != other.frames[name].tolist() for name in some.frames)


@pytest.mark.parametrize(
    "totals, most, quota",
    [([5, 5, 5], 9, 3), ([1, 10, 10], 11, 5), ([2, 3, 30], 1000, 30), ([4, 4], 1, 0)],
)
def test_quota(totals, most, quota):
    assert features._quota(totals, most) == quota


def test_cepstra_are_those_of_the_frames_and_of_their_neighbours(speech_like):
    chosen, rows = features.mfcc_features(chosen_frames(speech_like, 60), CONFIG)
    first = chosen.corpus.sources[0]
    places = chosen.frames[first.id]
    whole = mfcc(read(first).samples, CONFIG)
    assert len(rows["mfcc"]) == len(rows["mfcc_stacked"]) == 60
    np.testing.assert_array_equal(rows["mfcc"][: len(places)], whole[places])
    stacked = rows["mfcc_stacked"][: len(places)].reshape(len(places), 11, 39)
    for at, place in enumerate(places):
        for step in range(-5, 6):
            near = min(max(place + step, 0), len(whole) - 1)
            np.testing.assert_array_equal(stacked[at, step + 5], whole[near])


def test_states_are_those_of_the_utterance_alone(speech_like, models):
    chosen = chosen_frames(speech_like, 60)
    encoder = ss.load_encoder(models["second"])
    seconds = []
    rows = features.layer_features(encoder, chosen, 5.0, seconds.append)
    assert list(rows) == ["second/0", "second/1", "second/2"]
    assert sum(seconds) == pytest.approx(8 * SECONDS)
    start = 0
    for source in chosen.corpus.sources[:3]:
        places = chosen.frames[source.id]
        alone = np.asarray(encoder([read(source).samples]).hidden_states)[:, 0]
        for layer, kind in enumerate(rows):
            found = rows[kind][start : start + len(places)]
            np.testing.assert_allclose(found, alone[layer, places], atol=1e-5)
        start += len(places)


def test_files_that_cannot_be_read_are_left_out(speech_like, tmp_path, caplog):
    for path in speech_like.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = chosen_frames(tmp_path)
    (tmp_path / "bob0.wav").write_bytes((tmp_path / "bob0.wav").read_bytes()[:44])
    with caplog.at_level(logging.WARNING):
        after, rows = features.mfcc_features(before, CONFIG)
    assert "bob0.wav" in caplog.text
    assert set(before.frames) - set(after.frames) == {"bob0.wav"}
    kept = sum(len(before.frames[name]) for name in after.frames)
    assert len(rows["mfcc"]) == kept == sum(map(len, after.phones.values()))


@pytest.mark.parametrize("emptied", [1, 3])
def test_an_utterance_without_chosen_frames_counts_nothing(speech_like, models, emptied):
    """As with few --max_frames, or thousands of short utterances."""
    chosen = chosen_frames(speech_like, 60)
    empty = {source.id for source in chosen.corpus.sources[:emptied]}
    fewer = chosen.select(
        {s.id: np.full(len(chosen.frames[s.id]), s.id not in empty) for s in chosen.corpus.sources}
    )
    _, rows = features.mfcc_features(fewer, CONFIG)
    left = sum(map(len, fewer.frames.values()))
    assert len(rows["mfcc"]) == len(rows["mfcc_stacked"]) == left < 60
    states = features.layer_features(ss.load_encoder(models["second"]), fewer, 5.0, lambda _: None)
    assert all(len(layer) == left for layer in states.values())


@pytest.mark.parametrize("tier", ["phones", "phn"])
def test_phones_are_found_under_the_names_of_aligners(speech_like, models, tmp_path, tier):
    """The Montreal Forced Aligner says phones, TIMIT phn."""
    renamed = tmp_path / "renamed.tsv"
    text = (speech_like / "alignments.tsv").read_text()
    renamed.write_text(text.replace("\tphone\t", f"\t{tier}\t"))
    workdir = tmp_path / "probe"
    probe.run(config_of(speech_like, [models["first"]], workdir, alignments=str(renamed)))
    assert json.loads((workdir / "probe.json").read_text())["alignments"]["tier"] == tier


# --- what is written ---


def test_everything_is_written(finished):
    config, found, saved = finished
    workdir = Path(config.workdir)
    names = sorted(path.relative_to(workdir).as_posix() for path in workdir.rglob("*.*"))
    assert names == ["figures/probe.pdf", "figures/probe.png", "log.jsonl", "probe.json"]
    assert saved["phones"] == sorted(TONES)
    assert saved["dropped"] == ["SIL"]
    assert saved["frames"] == sum(each["frames"] for each in saved["speakers"].values()) == 400
    assert sorted(saved["speakers"]) == list(SPEAKERS)
    assert saved["alignments"]["tier"] == "phone"
    assert list(saved["models"]) == ["first", "random:first", "second", "random:second"]
    assert saved["models"]["random:first"]["seed"] == 0
    assert saved["versions"]["speechsim_jax"] == ss.__version__
    assert "multinomial logistic regression" in saved["method"]
    assert [encoder.name for encoder in found.encoders] == list(saved["encoders"])


def test_what_tones_give(finished):
    """MFCCs tell three tones apart; random representations hear something of them, too."""
    _, found, saved = finished
    assert found.baselines["mfcc"].value > 0.9
    assert found.baselines["commonest phone"].value < 0.45
    for encoder in found.encoders:
        assert len(encoder.layers) == 3
        assert encoder.best.value > found.baselines["commonest phone"].value
    gains = saved["encoders"]["first"]["gains"]
    assert list(gains) == ["mfcc", "mfcc_stacked", "random:first"]
    best = saved["encoders"]["first"]["best"]["value"]
    other = saved["encoders"]["random:first"]["best"]["value"]
    assert gains["random:first"]["value"] == pytest.approx(best - other)
    assert gains["mfcc"]["value"] == pytest.approx(best - found.baselines["mfcc"].value)


def test_given_weights_in_place_of_drawn_ones(speech_like, models, tmp_path):
    config = config_of(
        speech_like, [models["second"]], tmp_path, untrained_weights=(str(models["first"]),),
        test_speakers=("bob",), max_frames=120,
    )  # fmt: skip
    found = probe.run(config)
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert saved["models"]["random:second"]["source"] == str(models["first"])
    assert list(saved["speakers"]) == ["bob"]
    assert found.encoders[0].chosen == tuple(saved["encoders"]["second"]["chosen_layers"])
    with pytest.raises(ss.UserError, match=r"probe.json exists; choose another --workdir"):
        probe.run(config)


# --- speakers that were not heard ---


def test_speakers_that_no_model_heard(speech_like, models, tmp_path):
    trained_on(models["first"], speech_like, ("ann", "bob"))
    trained_on(models["second"], speech_like, ("bob", "cyd"))
    both = [models["first"], models["second"]]
    config = config_of(speech_like, both, tmp_path, test_speakers=("unheard",))
    assert probe._tested(config, set(SPEAKERS)) == {"bob"}
    one = dataclasses.replace(config, models=config.models[:1])
    assert probe._tested(one, set(SPEAKERS)) == {"ann", "bob"}
    with pytest.raises(ss.UserError, match="all 1 aligned speakers"):
        probe._tested(one, {"dan"})


def test_other_audio_than_the_training_had(speech_like, models, tmp_path):
    trained_on(models["first"], speech_like, ("ann",))
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, np.full(8000, 0.1), 16_000)
    (tmp_path / "manifest.tsv").write_text("path\tspeaker\na.wav\tann\nb.wav\teve\n")
    with pytest.raises(ss.UserError, match="was trained on other audio than"):
        records.training_speakers(models["first"], str(tmp_path / "manifest.tsv"))


def test_audio_json_is_believed_first(speech_like, models, tmp_path):
    parts = [{"speakers": ["ann"]}, {"speakers": ["bob", "eve"]}]
    records.write_audio(tmp_path / "audio.json", {"training": parts, "held_out": []})
    assert records.training_speakers(tmp_path, "no such audio") == {"ann", "bob", "eve"}
    (tmp_path / "audio.json").unlink()
    (tmp_path / "training.json").write_text('{"pretrained": "ab", "recipe": {}}')
    with pytest.raises(ss.UserError, match=r"was fine-tuned, and audio.json"):
        records.training_speakers(tmp_path, "no such audio")


# --- the command line ---


def flags_of(speech_like: Path, workdir: Path, **given: str) -> list[str]:
    values = {
        "audio": speech_like / "manifest.tsv", "alignments": speech_like / "alignments.tsv",
        "workdir": workdir, "test_speakers": "all", "folds": 2, "max_frames": 120,
    } | given  # fmt: skip
    return [f"--{name}={value}" for name, value in values.items() if value != ""]


def test_command_line(speech_like, models, tmp_path, capsys):
    arguments = flags_of(speech_like, tmp_path / "probe")
    ended = call(capsys, "probe", f"--models={models['first']}", *arguments)
    assert ended.code == 0, ended.err
    assert "best, chosen on others" in ended.out and "less mfcc_stacked" in ended.out
    assert "4 speakers tested, 120 frames" in ended.out
    assert f"{tmp_path}/probe/probe.json" in ended.out


@pytest.mark.parametrize(
    "given, words",
    [
        ({"alignments": ""}, "--alignments is required"),
        ({"models": ""}, "--models is required"),
        ({"test_speakers": "eve"}, "'eve' has no aligned speech; there are ann, bob, cyd, dan"),
        ({"test_speakers": "all,ann"}, "expected unheard, all, or names"),
        ({"test_speakers": "unheard"}, "has no training.json"),
        ({"untrained_weights": "a,b"}, "--untrained_weights=a,b: expected one for each of 1"),
        ({"untrained_weights": "{wide}"}, "has another architecture than first"),
        ({"models": "{first},{slow}"}, "slow: its frames are not those of first"),
        ({"models": "{slow}"}, "need frames of 400 samples every 320"),
        ({"drop_labels": "noise"}, "drop_labels: 'noise'"),
        ({"alignment_tier": "phones"}, "has no tier 'phones'"),
        ({"max_frames": "3"}, "max_frames=3: expected one or more for each of 4 speakers"),
        ({"levels": "neuron"}, "'levels'"),
    ],
)
def test_mistakes(given, words, speech_like, models, tmp_path, capsys):
    for path in models.values():
        (path / "training.json").unlink(missing_ok=True)
    values = {"models": "{first}"} | given
    values = {name: value.format(**models) for name, value in values.items()}
    ended = call(capsys, "probe", *flags_of(speech_like, tmp_path, **values))
    assert_mistake(ended, words)


def anonymous(speech_like: Path, folder: Path, known: int = 0) -> Path:
    """A manifest of the same audio in which only some utterances have a speaker."""
    rows = [row.split("\t") for row in (speech_like / "manifest.tsv").read_text().splitlines()[1:]]
    lines = [
        f"{speech_like / name}\t{name}\t{speaker if k < known else ''}\n"
        for k, (name, speaker, *_) in enumerate(rows)
    ]
    (folder / "m.tsv").write_text("path\tid\tspeaker\n" + "".join(lines))
    return folder / "m.tsv"


@pytest.mark.parametrize(
    ("known", "units", "tested"),
    [(0, "utterances", 8), (4, "speakers and utterances of unknown speaker", 6)],
)
def test_audio_without_speakers(known, units, tested, speech_like, models, tmp_path, caplog):
    """Folds of utterances, which the log, the table, the record and the figure say."""
    manifest = anonymous(speech_like, tmp_path, known)
    config = config_of(speech_like, [models["first"]], tmp_path / "run", audio=str(manifest))
    with caplog.at_level(logging.INFO):
        found = probe.run(config)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert f"speaker of {8 - known} utterances is not known: the split of probes" in log
    saved = json.loads((tmp_path / "run" / "probe.json").read_text())
    assert saved["units"] == found.units == units
    assert f"{tested} {units} tested" in found.table() and "not all speakers" in found.table()
    readings = found.accuracies
    assert len(readings.speakers) == tested == len(saved["speakers"])
    assert 390 < readings.frames.sum() == saved["frames"] <= 400
    assert sorted(set(readings.fold.tolist())) == [0, 1]
    assert found.baselines["mfcc"].value > 0.9


def test_known_speakers_are_not_called_utterances(finished):
    _, found, saved = finished
    assert saved["units"] == "speakers" and "utterances" not in found.table()


def test_what_a_model_was_trained_on_is_not_guessed(speech_like, models, tmp_path, capsys):
    """Of utterances of unknown speaker: those of its training by id, or nothing is known."""
    manifest = anonymous(speech_like, tmp_path)
    names = {f"{name}{k}.wav" for name in SPEAKERS for k in range(2)}
    config = config_of(
        speech_like, [models["first"]], tmp_path, audio=str(manifest), test_speakers=("unheard",)
    )
    record = models["first"] / "audio.json"
    try:
        for trained, left in (
            (["ann0.wav", "bob0.wav"], names - {"ann0.wav", "bob0.wav"}),
            ([], None),
        ):
            parts = [{"speakers": trained or ["ann", "bob"]}]
            records.write_audio(record, {"training": parts, "held_out": []})
            if left is not None:
                assert probe._tested(config, names, names) == left
                continue
            arguments = flags_of(
                speech_like, tmp_path, audio=str(manifest), test_speakers="unheard"
            )
            ended = call(capsys, "probe", f"--models={models['first']}", *arguments)
            assert_mistake(ended, "not known on whose speech", "--test_speakers=all")
    finally:
        record.unlink()
    arguments = flags_of(speech_like, tmp_path, audio=str(manifest), test_speakers="ann")
    ended = call(capsys, "probe", f"--models={models['first']}", *arguments)
    assert_mistake(ended, "'ann' has no aligned speech")

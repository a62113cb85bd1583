"""The scripts that train, as a user meets them: what they write, and what they say when wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

import speechsim_jax as ss
from speechsim_jax.audio.corpus import read
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.commands import finetune, flags, pretrain, synthesise, training
from speechsim_jax.training.recipe import Audio, read_recipe
from tests.support.commands import assert_mistake, call
from tests.support.objectives import quick_compiles
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

quick = pytest.fixture(scope="module", autouse=True)(quick_compiles)

PREDICTIVE = """
objective = "predictive"
steps = 8
evaluate_every = 5
log_every = 2
[audio]
held_out = ["me"]
held_out_share = 0.0
[encoder]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 24
conv_dim = [8]
conv_kernel = [400]
conv_stride = [320]
num_conv_pos_embeddings = 4
num_conv_pos_embedding_groups = 2
[head]
units = 4
final_dim = 6
[crops]
rows = 2
frames = 30
"""
CTC = """
objective = "ctc"
steps = 4
evaluate_every = 4
[audio]
exclude = ["silent*"]
held_out = ["me"]
[utterances]
batch_seconds = 3.0
buckets = 1
[optimiser]
peak_learning_rate = 0.01
[dropout]
hidden_dropout = 0.0
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A manifest of noise with transcripts, two speakers, and two recipes."""
    path = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    rows = ["path\tspeaker\ttranscript"]
    for number in range(8):
        wave = 0.1 * rng.standard_normal(rng.integers(11_000, 15_000))
        soundfile.write(path / f"{number}.wav", wave, 16_000)
        rows.append(
            f"{number}.wav\t{'me' if number < 2 else 'you'}\t{'' if number == 7 else 'ab c'}"
        )
    (path / "manifest.tsv").write_text("\n".join(rows))
    (path / "predictive.toml").write_text(PREDICTIVE)
    (path / "ctc.toml").write_text(CTC)
    return path


def config(folder: Path, workdir: Path, **more) -> pretrain.Config:
    run = training.Run((str(folder / "manifest.tsv"),), str(workdir), mesh="data:1", **more)
    recipe = read_recipe(folder / "predictive.toml")
    return pretrain.Config(recipe, run, progress=False)


@pytest.fixture(scope="module")
def pretrained(folder) -> Path:
    workdir = folder / "whole"
    assert pretrain.run(config(folder, workdir)).finished
    assert not (workdir / "checkpoints").exists()
    return workdir


def metrics(workdir: Path) -> list[dict]:
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name != "seconds"} for line in found]


def test_what_pretraining_writes(folder, pretrained):
    found = metrics(pretrained)
    assert [(line["of"], line["step"]) for line in found] == [
        ("held_out", 0), ("training", 2), ("training", 4), ("held_out", 5), ("training", 6),
        ("training", 8), ("held_out", 8),
    ]  # fmt: skip
    last = found[-1]
    assert last["chance"] == 0.25 and 0 < last["unigram_accuracy"] < 1
    assert last["unigram_loss"] == pytest.approx(np.log(4), abs=0.5)
    assert set(json.loads((pretrained / "held_out.json").read_text())["speakers"]) == {"me"}
    model = pretrained / "model"
    assert ss.load_encoder(model).provenance["notes"] == []
    assert json.loads((model / "config.json").read_text())["architectures"] == ["HubertModel"]
    head = load_file(model / "pretraining_head.safetensors")
    assert head["label_embs_concat"].shape == (4, 6)
    assert np.load(model / "units.npz")["centres"].shape == (4, 39)


def test_the_second_iteration(folder, pretrained):
    again = config(folder, folder / "second")
    values = {"units_from": str(pretrained / "model"), "units_layer": 1}
    second = pretrain.Config(again.recipe, again.run, progress=False, **values)
    assert pretrain.run(second).finished
    assert np.load(folder / "second" / "model" / "units.npz")["centres"].shape == (4, 16)
    record = json.loads((folder / "second" / "model" / "training.json").read_text())
    assert record["units"]["of"]["layer"] == 1


def test_fine_tuning(folder, pretrained, caplog):
    workdir = folder / "ctc"
    run = training.Run((str(folder / "manifest.tsv"),), str(workdir), mesh="data:1")
    recipe = read_recipe(folder / "ctc.toml")
    outcome = finetune.run(finetune.Config(recipe, str(pretrained / "model"), run, progress=False))
    assert outcome.finished and outcome.metrics["cer"] > 0
    assert "left out 1 utterances without a transcript" in (workdir / "log.jsonl").read_text()
    before, after = (
        load_file(each / "model" / "model.safetensors") for each in (pretrained, workdir)
    )
    moved = {n for n in before if not np.array_equal(before[n], after[f"hubert.{n}"])}
    assert moved and not any(name.startswith("feature_extractor") for name in moved)
    recognizer = ss.load_recognizer(workdir / "model")
    held_out = json.loads((workdir / "held_out.json").read_text())["transcripts"]
    assert [each["id"] for each in held_out] == ["0.wav", "1.wav"]
    waves = [soundfile.read(folder / each["id"], dtype="float32")[0] for each in held_out]
    assert recognizer.transcribe(waves) == [each["hypothesis"] for each in held_out]
    assert recognizer.tokenizer.convert_tokens_to_ids(list("ABC|")) == [5, 6, 7, 4]
    spoken = recognizer.tokenizer.decode([5, 6, 4, 7], group_tokens=False)
    assert spoken == held_out[0]["reference"].upper() == "AB C"


def test_synthetic_speech(folder, tmp_path):
    """What the speaker held out has said is read by the voice held out, and by no other."""
    lines = ["path\tspeaker\ttranscript"]
    lines += [f"{n}.wav\t{who}\t{text}" for n, (who, text) in enumerate(
        [("me", "one two three"), ("you", "four five six seven"), ("her", "")])]  # fmt: skip
    (folder / "read.tsv").write_text("\n".join(lines))
    audio = Audio(held_out=("me",), held_out_share=0.0)
    config = synthesise.Config(
        (str(folder / "read.tsv"),), str(tmp_path), audio, sentences=2, write_alignments=True
    )
    manifest = synthesise.run(config)
    lines = (tmp_path / "alignments.tsv").read_text().splitlines()
    words = {line.split("\t")[4] for line in lines if "\tword\t" in line}
    assert (
        {"five", "six", "three"} <= words <= {"one", "two", "three", "four", "five", "six", "seven"}
    )
    with pytest.raises(ss.UserError, match=r"manifest.tsv exists; choose another"):
        synthesise.run(config)
    found = open_corpus(manifest)
    assert len(found.sources) == 12 and all(source.seconds > 0.3 for source in found.sources)
    for source in found.sources:
        of_others = {"one", "two", "three"}.isdisjoint(source.transcript.split())
        assert of_others == (source.speaker != synthesise.HELD_OUT_VOICE)
        assert read(source).seconds == pytest.approx(source.seconds, abs=1e-3)


# --- a user's mistakes ----------------------------------------------------------------------------


def test_mistakes(folder, pretrained, capsys):
    predictive, ctc = (f"--config={folder / name}.toml" for name in ("predictive", "ctc"))
    corpus, new = f"--corpus={folder / 'manifest.tsv'}", f"--workdir={folder / 'new'}"
    model = f"--pretrained={pretrained / 'model'}"
    for name, arguments, message in (
        ("pretrain", [corpus, new], "expected --config=FILE, or --objective alone"),
        ("pretrain", [predictive, new], "--corpus is required"),
        ("pretrain", [predictive, corpus], "--workdir is required"),
        ("pretrain", [ctc, corpus, new], "ctc.toml: is for speechsim finetune (ctc)"),
        ("pretrain", [predictive, corpus, new, "--pool=utterance"], "'pool'"),
        ("pretrain", [predictive, corpus, new, "--units_layer=1"], "units_from and units_layer go"),
        ("pretrain", [predictive, corpus, new, "--held_out=her"], "held_out names 'her'"),
        ("pretrain", [predictive, corpus, new, "--include=z*"], "no utterance is left"),
        ("pretrain", [predictive, corpus, new, "--steps=0"], "steps=0"),
        ("pretrain", [predictive, corpus, f"--workdir={pretrained}"], "/model exists; choose"),
        ("pretrain", [predictive, corpus, new, "--mesh=data:64"], "needs 64 devices"),
        ("finetune", [ctc, corpus, new], "--pretrained is required"),
        ("finetune", [predictive, corpus, new, model], "is for speechsim pretrain (predictive)"),
        ("finetune", [ctc, corpus, new, "--pretrained=./none"], "there is no such folder"),
        ("finetune", [ctc, corpus, new, model, "--include=7*", "--held_out=0"], "no utterance to"),
    ):  # fmt: skip
        assert_mistake(call(capsys, name, *arguments), message)


def test_flags_change_the_recipe():
    recipe = read_recipe(ROOT / "experiments" / "zoo" / "contrastive_s.toml")

    def changed(*arguments: str):
        values = pretrain.define_flags()
        values(["speechsim", *arguments])
        return training.changed(recipe, flags.from_flags(values, training.Changes))

    found = changed("--steps=900", "--seed=3", "--include=a/*,b/*", "--exclude=", "--held_out=0.2")
    assert (found.steps, found.seed) == (900, 3)
    assert found.snapshots == tuple(step for step in recipe.snapshots if step <= 900)
    assert found.audio.include == ("a/*", "b/*") and found.audio.exclude == ()
    assert (found.audio.held_out, found.audio.held_out_share) == ((), 0.2)
    for names in (("a", "b"), ("1688",)):
        audio = changed(f"--held_out={','.join(names)}").audio
        assert (audio.held_out, audio.held_out_share) == (names, 0)
    assert changed() == recipe

"""The models that come with the package: whole, small enough, as their recipes say, and trained."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import speechsim_jax as ss
from speechsim_jax.analyses.probing import features
from speechsim_jax.analyses.replication import presets
from speechsim_jax.audio.alignments import read_alignments
from speechsim_jax.audio.open_corpus import open_corpus
from speechsim_jax.commands import transcribe
from speechsim_jax.models import zoo
from speechsim_jax.models.filterbank import cepstrum
from speechsim_jax.training import records
from speechsim_jax.training.recipe import read_recipe
from tests.support.paths import ROOT

RECIPES = {path.stem: path for path in (ROOT / "experiments" / "zoo").glob("*.toml")}
RECOGNIZERS = [name for name in zoo.names() if name.endswith("_ctc")]
PRETRAINED = [name for name in zoo.names() if not name.endswith("_ctc")]
HELD_OUT = ("libri-1688", "libri-533")  # of all trainings


def training_record(name: str) -> dict:
    return json.loads((zoo.folder(name) / "training.json").read_text())


def test_it_is_all_there_and_small():
    assert set(zoo.names()) == set(RECIPES)
    files = [path for path in Path(zoo.__file__).parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    preset = presets.load_preset("zoo", None)
    assert len(preset.models) == 4 and len(preset.finetuned) == 2 and len(preset.seeds) == 1


@pytest.mark.parametrize("name", zoo.names())
def test_it_was_made_by_its_recipe(name):
    found = training_record(name)
    assert found["recipe"] == json.loads(json.dumps(read_recipe(RECIPES[name]).as_dict()))
    assert found["step"] == found["recipe"]["steps"]


@pytest.mark.parametrize("name", zoo.names())
def test_whose_speech_it_heard(name):
    """No ShareAlike audio; none of the speakers held out; every corpus has a licence."""
    audio = json.loads((zoo.folder(name) / records.AUDIO_FILE).read_text())
    for part in audio["training"]:
        assert part["licence"] and not re.search("-SA|share.?alike", part["licence"], re.I)
        assert not set(HELD_OUT) & set(part["speakers"])
        assert part["corpus"].split()[0] in (zoo.folder(name) / "README.md").read_text()


@pytest.mark.parametrize("name", zoo.names())
def test_its_files_name_no_place(name):
    for path in zoo.folder(name).glob("*"):
        if path.suffix in (".json", ".md"):
            assert not re.search(r"(?<![\w.:/])/(home|work|tmp|root|Users)/", path.read_text())


@pytest.mark.parametrize("name", PRETRAINED)
def test_it_learned_its_objective(name):
    """On speakers held out: better than at step 0, than guessing, and than the commonest unit."""
    found = training_record(name)["held_out"]
    if name.startswith("contrastive"):
        assert found["accuracy"] > 2 * found["chance"]
        assert found["contrastive_loss"] < -np.log(found["chance"])
    else:
        assert found["masked_accuracy"] > max(found["chance"], found["unigram_accuracy"])
        assert found["masked_loss"] < found["unigram_loss"]


@pytest.mark.parametrize("name", [name for name in zoo.names() if name.startswith("contrastive")])
def test_contrastive_convolutions_are_still_a_cepstrum(name):
    """Also through fine-tuning."""
    encoder = ss.load_encoder(f"zoo:{name}")
    tensors = load_file(zoo.folder(name) / "model.safetensors")
    started = cepstrum(encoder.config.conv_dim, encoder.config.conv_kernel)
    for number, (kernel, bias) in enumerate(started):
        conv = f"wav2vec2.feature_extractor.conv_layers.{number}.conv"
        np.testing.assert_array_equal(tensors[f"{conv}.weight"], kernel.astype(np.float16))
        np.testing.assert_array_equal(tensors[f"{conv}.bias"], bias.astype(np.float16))


@pytest.mark.parametrize("name", PRETRAINED)
def test_its_card_says_that_it_reads_phones_better(name):
    """Than MFCCs and than untrained, by more than the interval over speakers."""
    card = (zoo.folder(name) / "README.md").read_text()
    for other in ("mfcc", f"random:{name}"):
        low = re.search(rf"best layer less {other} \| \+[\d.]+ % \[([+-][\d.]+), ", card)
        assert low and float(low[1]) > 0, other


# --- on real speech ---


@pytest.fixture(scope="module")
def chosen(speech) -> features.PhoneFrames:
    """Frames with a phone, of ten speakers that are in no pretraining."""
    alignments = read_alignments(speech / "alignments_pocketsphinx.tsv", "phone")
    config = ss.load_encoder(f"zoo:{PRETRAINED[0]}").config
    corpus = open_corpus(speech / "manifest.tsv")
    dropped = [label for label in alignments.labels if label in features.SILENCES]
    return features.choose_frames(corpus, alignments, config, dropped, max_frames=8000, seed=0)


def phone_accuracy(encoder: ss.SpeechEncoder, chosen: features.PhoneFrames) -> float:
    """Of the best layer; half of the speakers teach a linear discriminant, the others test it."""
    rows = features.layer_features(encoder, chosen, 40.0, lambda _: None)
    known = features.labelled_frames(chosen, rows)
    taught = known.speakers % 2 == 0
    return max(
        LinearDiscriminantAnalysis()
        .fit(layer[taught], known.phones[taught])
        .score(layer[~taught], known.phones[~taught])
        for layer in known.features.values()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PRETRAINED)
def test_it_knows_more_of_phones_than_untrained(name, chosen):
    encoder = ss.load_encoder(f"zoo:{name}")
    assert phone_accuracy(encoder, chosen) > phone_accuracy(ss.random_like(encoder, 0), chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECOGNIZERS)
def test_it_spells_as_its_card_says(name, speech, tmp_path):
    """Character errors on the real speakers held out, as they were counted in training."""
    with (speech / "manifest.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["speaker"] in HELD_OUT]
    longest = training_record(name)["recipe"]["utterances"]["max_seconds"]
    rows = [row for row in rows if float(row["seconds"]) <= longest]
    manifest = tmp_path / "manifest.tsv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "speaker", "transcript"], delimiter="\t")
        writer.writeheader()
        for row in rows:
            path = speech / row["path"]
            writer.writerow({"path": path, **{k: row[k] for k in ("speaker", "transcript")}})
    outcome = transcribe.run(transcribe.Config(models=(f"zoo:{name}",), audio=str(manifest)))
    ((rates, count),) = outcome.rates().values()
    stated = training_record(name)["held_out"]["cer_speech"]
    assert count > 10 and stated < 0.9
    assert abs(rates.cer - stated) < 0.01

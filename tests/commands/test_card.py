"""Model cards: what they say, whom they thank, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speechsim_jax as ss
from speechsim_jax.commands import card
from speechsim_jax.models.checkpoint_files import open_checkpoint
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.training import recipe, records
from speechsim_jax.training.data.splits import open_split, transcribed
from speechsim_jax.training.optimiser import AdamW
from tests.support.commands import assert_mistake, call
from tests.support.tiny_encoders import CONFIG

LICENCE = "CC BY 4.0 (Talks, (c) 2001 A. Speaker)"
SAVED = {
    "step": 40,
    "seconds": 90.0,
    "versions": {"python": "3.11.7", "jax": "0.10.1"},
    "device": {"platform": "cpu", "kind": "cpu", "count": 1, "machine": "x86_64"},
    "created": "2026-11-23T09:00:00+00:00",
}
MARKS = {
    "contrastive": dict(loss=3.0, contrastive_loss=2.9, accuracy=0.31, chance=0.02,
                        code_perplexity=50.25),
    "predictive": dict(loss=3.0, masked_loss=2.5, masked_accuracy=0.4, unmasked_loss=2.0,
                       unmasked_accuracy=0.5, chance=0.01, unigram_accuracy=0.06,
                       unigram_loss=4.4),
    "ctc": dict(loss=9.0, loss_per_label=1.5, cer=0.42, wer=0.9, cer_speech=0.61, wer_speech=0.95,
                cer_synthetic=0.22, wer_synthetic=0.7),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    """A licensed corpus of two kinds beside its licences, and one whose manifest says nothing."""
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(0)
    rows = ["path\tspeaker\tcorpus\ttranscript\tlicence\tsource_repo\tsource_commit"]
    for corpus, speaker, licence in (
        ("Talks 2001", "ann", LICENCE), ("Talks 2001", "bob", LICENCE),
        ("Songs", "cyd", "Public domain"), ("Digits", "dan", "CC BY-SA 4.0"),
    ):  # fmt: skip
        for number in range(2):
            name = f"{corpus.split()[0].lower()}/{speaker}{number}.wav"
            (folder / "speech" / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "speech" / name, 0.1 * rng.standard_normal(16_000), 16_000)
            rows.append(f"{name}\t{speaker}\t{corpus}\tab\t{licence}\tgithub:a/talks\tabc")
    (folder / "speech" / "manifest.tsv").write_text("\n".join(rows))
    licences = folder / "speech" / "licences"
    licences.mkdir()
    (licences / "Talks-LICENSE.TXT").write_text("Talks (c) 2001\n\nSee <http://by/4.0/>.\n")
    (licences / "Songs.txt").write_text("Songs are in the public domain.\n")
    (licences / "Digits.txt").write_text("Share alike.\n")
    (licences / "Talks-SPEAKERS.TXT").write_text("40 | F | somebody\n")
    (folder / "made").mkdir()
    soundfile.write(folder / "made" / "x.wav", 0.1 * rng.standard_normal(16_000), 16_000)
    (folder / "made" / "manifest.tsv").write_text("path\tspeaker\ttranscript\nx.wav\teve\tab\n")
    return folder


RECIPES = {
    "contrastive": recipe.ContrastiveRecipe,
    "predictive": recipe.PredictiveRecipe,
    "ctc": recipe.CTCRecipe,
}


def training(
    folder: Path, objective: str, corpora: list[Path], exclude: tuple[str, ...] = ("digits/*",),
    **more,
) -> Path:  # fmt: skip
    """The workdir of a finished training, as far as a card reads it."""
    model = folder / "model"
    save_folder(model, CONFIG, random_tensors(CONFIG, 0), "float16")
    audio = recipe.Audio(exclude=exclude, held_out=("bob",), held_out_share=0.0)
    split = open_split(corpora, audio)
    options = dict(audio=audio, steps=40, dtype="float16")
    chosen = RECIPES[objective](optimiser=AdamW(peak_learning_rate=2e-3), **options)
    saved = {"recipe": chosen.as_dict(), "audio": split.fingerprint(), **SAVED, **more}
    marks = MARKS[objective]
    (model / "training.json").write_text(json.dumps(saved | {"held_out": marks}))
    first = {name: value / 2 for name, value in marks.items()}
    lines = [
        {"of": "held_out", "step": 0, **first},
        {"of": "training", "step": 20, "loss": 5.0},
        {"of": "held_out", "step": 40, **marks},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if objective != "ctc":
        speakers = {
            f"s{n}": {name: value + 0.01 * n * (name != "chance") for name, value in marks.items()}
            for n in (-1, 0, 1)
        }
        (folder / "held_out.json").write_text(json.dumps({"speakers": speakers}))
    return folder


@pytest.fixture
def contrastive(tmp_path, corpora) -> card.Config:
    folder = training(tmp_path / "run", "contrastive", [corpora / "speech" / "manifest.tsv"])
    return card.Config(
        str(folder), (str(corpora / "speech" / "manifest.tsv"),), str(tmp_path / "zoo" / "tiny")
    )


def test_folder_is_whole(contrastive):
    path = card.run(contrastive)
    assert path == Path(contrastive.workdir) / "README.md"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "README.md", "audio.json", "config.json", "model.safetensors", "preprocessor_config.json",
        "training.json",
    ]  # fmt: skip
    model = Path(contrastive.trained) / "model"
    for name in ("config.json", "model.safetensors", "training.json"):
        given, found = model / name, path.parent / name
        assert name == "training.json" or given.read_bytes() == found.read_bytes()
        assert name != "training.json" or json.loads(given.read_text()) == json.loads(
            found.read_text()
        )
        assert found.stat().st_mode & 0o444 == 0o444  # of safetensors only its owner may read
    assert ss.load_encoder(path.parent).name == "tiny"
    with pytest.raises(ss.UserError, match=r"README.md exists; choose another"):
        card.run(contrastive)
    assert card.run(dataclasses.replace(contrastive, overwrite=True)) == path


def test_card_says_what_convolutions_were(tmp_path, corpora):
    manifest = corpora / "speech" / "manifest.tsv"
    folder = training(tmp_path / "run", "contrastive", [manifest])
    settings = folder / "model" / "config.json"
    known = json.loads(settings.read_text())
    settings.write_text(json.dumps(known | {"convolutions": "gabor"}))
    saved = json.loads((folder / "model" / "training.json").read_text())
    saved["recipe"]["feature_grad_mult"] = 0.0
    (folder / "model" / "training.json").write_text(json.dumps(saved))
    made = card.run(card.Config(str(folder), (str(manifest),), str(tmp_path / "tiny")))
    words = "at first they were drawn at random, but for the first, a filterbank, and its training"
    assert f"{words} left them as they were." in made.read_text()


def test_card_says_what_is_known(contrastive):
    text = card.run(contrastive).read_text()
    head, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    assert head.splitlines() == [
        "license: apache-2.0", "library_name: transformers", "pipeline_tag: feature-extraction",
        "language: en", "tags:", "- speechsim_jax", "- speech", "- wav2vec2", "- contrastive",
        "- tiny",
    ]  # fmt: skip
    assert "at first they were drawn at random.\n" in body
    size = sum(tensor.size for tensor in random_tensors(CONFIG, 0).values())
    assert f"{size:,} parameters" in body and "float16" in body
    assert "| the true code among the distractors | 31.0% | 15.5% | 2.0% |" in body
    assert "- accuracy less chance: +0.2900 [+0.2800, +0.3000]" in body
    assert "| 0 | 1.450 | 0.155 |\n| 40 | 2.900 | 0.310 |" in body
    assert "40 steps, seed 0" in body and "learning rate\nup to 0.002" in body
    assert "python 3.11.7, jax 0.10.1" in body
    assert "--config=experiments/zoo/tiny.toml" in body
    assert "nan" not in body


def test_card_thanks_whom_it_should(contrastive):
    text = card.run(contrastive).read_text()
    assert "| Songs | Public domain | github:a/talks@abc | 2 | 0.03 | 1 |" in text
    assert f"| Talks 2001 | {LICENCE} | github:a/talks@abc | 2 | 0.03 | 1 |" in text
    assert "> Talks (c) 2001\n>\n> See \\<http://by/4.0/\\>." in text
    assert "> Songs are in the public domain." in text
    assert "Digits" not in text and "Share alike" not in text and "somebody" not in text
    assert "Held out: bob." in text


def test_audio_json_names_everybody(contrastive):
    folder = card.run(contrastive).parent
    audio = json.loads((folder / "audio.json").read_text())
    assert [(part["corpus"], part["speakers"]) for part in audio["training"]] == [
        ("Songs", ["cyd"]), ("Talks 2001", ["ann"]),
    ]  # fmt: skip
    assert [part["speakers"] for part in audio["held_out"]] == [["bob"]]
    assert audio["training"][0] == {
        "corpus": "Songs", "licence": "Public domain", "source": "github:a/talks@abc",
        "utterances": 2, "minutes": 0.03, "speakers": ["cyd"],
    }  # fmt: skip
    assert records.training_speakers(folder, "not asked") == {"ann", "cyd"}


def test_share_alike_is_refused(tmp_path, corpora):
    manifest = corpora / "speech" / "manifest.tsv"
    folder = training(tmp_path / "run", "contrastive", [manifest], exclude=())
    config = card.Config(str(folder), (str(manifest),), str(tmp_path / "zoo" / "tiny"))
    with pytest.raises(ss.UserError, match=r"was trained on Digits \(CC BY-SA 4.0\); weights of"):
        card.run(config)
    assert not (tmp_path / "zoo").exists()


def test_predictive_card(tmp_path, corpora):
    manifest = corpora / "speech" / "manifest.tsv"
    units = {"of": {"layer": 2, "source": "/somewhere/runs/teacher/model"}, "sha256": "ab"}
    folder = training(tmp_path / "run", "predictive", [manifest], units=units)
    path = card.run(card.Config(str(folder), (str(manifest),), str(tmp_path / "second")))
    text = path.read_text()
    assert (
        "| cluster of a masked frame | 40.0% | 20.0% | 6.0% (commonest cluster), 1.0% (guess"
        in text
    )
    assert "| loss on masked frames | 2.500 | 1.250 | 4.400 (frequencies) |" in text
    assert "less that of the commonest cluster: +0.3400 [+0.3400, +0.3400]" in text
    assert "--units_from=runs/zoo/teacher/model" in text and "--units_layer=2" in text
    written = (path.parent / "training.json").read_text()
    assert "somewhere" not in written + text
    assert json.loads(written)["units"]["of"] == {"layer": 2, "source": "teacher"}


def test_fine_tuned_card_thanks_for_both_trainings(contrastive, tmp_path, corpora):
    before = card.run(contrastive).parent
    manifests = [corpora / "speech" / "manifest.tsv", corpora / "made" / "manifest.tsv"]
    folder = training(
        tmp_path / "tuned", "ctc", manifests, ("digits/*", "songs/*"),
        pretrained=open_checkpoint(before).digest(),
    )  # fmt: skip
    config = card.Config(
        str(folder), tuple(map(str, manifests)), str(tmp_path / "zoo" / "tiny_ctc"),
        began_with=str(before), licences={"made": "Apache-2.0 (a machine)"},
    )  # fmt: skip
    text = card.run(config).read_text()
    assert "pipeline_tag: automatic-speech-recognition" in text
    assert "| character error rate, speech | 61.0% | 30.5% |  |" in text
    assert "| character error rate, synthetic | 22.0% | 11.0% |  |" in text
    for row in (
        f"| Talks 2001 | {LICENCE} | github:a/talks@abc | 2 | 0.03 | 1 | pretraining |",
        f"| Talks 2001 | {LICENCE} | github:a/talks@abc | 2 | 0.03 | 1 | fine-tuning |",
        "| Songs | Public domain | github:a/talks@abc | 2 | 0.03 | 1 | pretraining |",
        "| made | Apache-2.0 (a machine) |  | 1 | 0.02 | 1 | fine-tuning |",
    ):
        assert row in text
    assert "--pretrained=runs/zoo/tiny/model" in text
    assert records.training_speakers(tmp_path / "zoo" / "tiny_ctc", "") == {"ann", "cyd", "eve"}
    with pytest.raises(ss.UserError, match=r"x.wav has no licence.*--licence=made=\.\.\."):
        card.run(dataclasses.replace(config, licences={}, overwrite=True))
    with pytest.raises(ss.UserError, match="was fine-tuned; --began_with names"):
        card.run(dataclasses.replace(config, began_with=None, overwrite=True))
    other = save_folder(tmp_path / "other", CONFIG, random_tensors(CONFIG, 1), "float16")
    with pytest.raises(ss.UserError, match=r"is not the model that .* was fine-tuned from"):
        card.run(dataclasses.replace(config, began_with=str(other), overwrite=True))


def test_what_fine_tuning_leaves_out_is_not_thanked_for(corpora):
    """The split is that of the training: with transcripts, and short enough."""
    manifest = corpora / "speech" / "manifest.tsv"
    split = open_split([manifest], recipe.Audio(held_out=("bob",), held_out_share=0.0))
    source = dataclasses.replace(split.training[0], seconds=30.0)
    mute = dataclasses.replace(split.training[1], transcript=" ")
    assert transcribed((source, mute, split.training[2]), 17.5) == (split.training[2],)


def test_probed_card(contrastive, tmp_path):
    ends = {"value": 0.5, "low": 0.45, "high": 0.55}
    gain = {"value": 0.1, "low": 0.05, "high": 0.15}
    alone = {"value": 0.1, "low": None, "high": None}
    saved = {
        "baselines": {"commonest phone": alone, "mfcc": ends},
        "encoders": {
            "tiny": {"layers": [ends, ends], "best": ends, "chosen_layers": [1],
                     "gains": {"mfcc": gain, "random:tiny": gain}},
        },
        "speakers": {"ann": {"frames": 100}, "bob": {"frames": 50}},
        "phones": ["A", "B"],
    }  # fmt: skip
    (tmp_path / "probe.json").write_text(json.dumps(saved))
    text = card.run(
        dataclasses.replace(contrastive, probe=str(tmp_path / "probe.json"))
    ).read_text()
    assert "over 2 speakers that it was not trained on (150 frames, 2 phones" in text
    assert "This model was trained on 1 of these speakers." in text
    assert "| commonest phone | 10.0 % |" in text
    assert "| **best layer** | 50.0 % [45.0, 55.0] |" in text
    assert "| best layer less random:tiny | +10.0 % [+5.0, +15.0] |" in text


# --- the command line ---


def test_command_line(contrastive, capsys):
    ended = call(
        capsys, "card", f"--trained={contrastive.trained}", f"--corpus={contrastive.corpus[0]}",
        f"--workdir={contrastive.workdir}",
    )  # fmt: skip
    assert ended == (0, f"written: {contrastive.workdir}/README.md\n", [])


@pytest.mark.parametrize(
    "given, words",
    [
        ({"trained": ""}, "--trained is required"),
        ({"trained": "{tmp}"}, "has no training.json; expected the model of a finished training"),
        ({"licence": "made"}, "--licence=made: expected CORPUS=LICENCE"),
        ({"began_with": "{tmp}"}, "was not fine-tuned; --began_with names"),
        ({"steps": "3"}, "'steps'"),
        ({"levels": "neuron"}, "'levels'"),
        ({"corpus": "{made}"}, "bob"),
        ({"probe": "{tmp}/no.json"}, "no.json: cannot be read"),
    ],
)
def test_mistakes(given, words, contrastive, corpora, tmp_path, capsys):
    values = {
        "trained": contrastive.trained, "corpus": contrastive.corpus[0],
        "workdir": contrastive.workdir, **given,
    }  # fmt: skip
    places = {"tmp": tmp_path, "made": corpora / "made" / "manifest.tsv"}
    arguments = [f"--{name}={value.format(**places)}" for name, value in values.items() if value]
    assert_mistake(call(capsys, "card", *arguments), words)

"""Checkpoints with adapters and heads for several languages, laid out as those of MMS."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

import speechsim_jax as ss
from speechsim_jax.commands.inputs import check_models
from speechsim_jax.models import weight_names
from speechsim_jax.models.checkpoint_files import open_checkpoint
from speechsim_jax.models.inspection import inspect_checkpoint
from tests.support.fairseq_writer import torch_file
from tests.support.hub_server import FIRST, Hub, serving
from tests.support.parity import fixture
from tests.support.paths import DATA

LAYOUT = DATA / "parity" / "mms"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "|"]
# "deu" has more tokens than "eng", whose weights are in the main file too.
TOKENS = {"eng": [*SPECIAL, *"abc"], "deu": [*SPECIAL, *"abcäö"], "cmn-script_simplified": SPECIAL}
VOCABULARIES = {
    language: {token: number for number, token in enumerate(tokens)}
    for language, tokens in TOKENS.items()
}


@functools.cache
def encoder_tensors() -> dict[str, np.ndarray]:
    """Of the parity fixture, with the prefix that a model with a head has."""
    tensors = load_file(LAYOUT / "model.safetensors")
    return {f"wav2vec2.{name}": t for name, t in tensors.items() if name != "masked_spec_embed"}


@functools.cache
def weights_of(language: str) -> dict[str, np.ndarray]:
    """Adapters and head of a language; the adapters of English are those of the fixture."""
    rng = np.random.default_rng([*language.encode()])
    own = {
        name: tensor if language == "eng" else rng.standard_normal(tensor.shape).astype(np.float32)
        for name, tensor in encoder_tensors().items()
        if "adapter_layer" in name
    }
    assert len(own) == 18
    shapes = {
        "lm_head.weight": (len(TOKENS[language]), 32),
        "lm_head.bias": (len(TOKENS[language]),),
    }
    return own | {n: rng.standard_normal(shape, np.float32) for n, shape in shapes.items()}


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    return save(tensors, metadata={"format": "pt"})


def files(**changes: bytes) -> dict[str, bytes]:
    """A checkpoint with three languages, one of them as a torch file; `changes` by stem."""
    config = json.loads((LAYOUT / "config.json").read_text())
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "target_lang": "eng"}
    content = {
        "config.json": json.dumps(config | {"vocab_size": len(TOKENS["eng"])}).encode(),
        "preprocessor_config.json": (LAYOUT / "preprocessor_config.json").read_bytes(),
        "model.safetensors": safetensors(encoder_tensors() | weights_of("eng")),
        "vocab.json": json.dumps(VOCABULARIES).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "adapter.eng.safetensors": safetensors(weights_of("eng")),
        "adapter.deu.safetensors": safetensors(weights_of("deu")),
        "adapter.cmn-script_simplified.bin": torch_file(weights_of("cmn-script_simplified")),
    }
    return content | changes


@pytest.fixture
def folder(tmp_path) -> Path:
    path = tmp_path / "mms"
    path.mkdir()
    for name, content in files().items():
        (path / name).write_bytes(content)
    return path


def tensors_of(encoder: ss.SpeechEncoder) -> dict[str, np.ndarray]:
    return weight_names.export(encoder.config, encoder.parameters)


def check_adapters(encoder: ss.SpeechEncoder, language: str) -> None:
    """The adapters are those of the language, and all else is as in the main file."""
    own = weights_of(language)
    for name, tensor in tensors_of(encoder).items():
        expected = encoder_tensors() | own
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            name = name.replace(f".{old}", f".parametrizations.weight.{new}")
        assert np.array_equal(tensor, expected[f"wav2vec2.{name}"]), name


@pytest.mark.parametrize("language", TOKENS)
def test_the_weights_of_a_language(folder, language):
    encoder = ss.load_encoder(f"{folder}#{language}")
    check_adapters(encoder, language)
    assert encoder.name == f"mms#{language}"
    assert encoder.provenance["source"] == f"{folder}#{language}"
    assert encoder.provenance["language"] == language
    check_models([f"{folder}#{language}"])


@pytest.mark.parametrize("language", TOKENS)
def test_a_language_is_inspected(folder, language):
    found = inspect_checkpoint(f"{folder}#{language}")
    assert found.loads, found.reason
    assert found.ctc_tokens == found.vocabulary == len(TOKENS[language])
    assert any(name.startswith(f"adapter.{language}.") for name in found.files)
    loaded = ss.load_encoder(f"{folder}#{language}")
    assert found.parameters == sum(tensor.size for tensor in tensors_of(loaded).values())
    found = inspect_checkpoint(folder)
    assert found.loads and (found.ctc_tokens, found.vocabulary) == (len(TOKENS["eng"]), None)
    assert inspect_checkpoint(f"{folder}#fra").loads is False


def test_without_a_language_the_main_file_counts(folder):
    encoder = ss.load_encoder(folder)
    check_adapters(encoder, "eng")
    assert "language" not in encoder.provenance and encoder.name == "mms"
    wave = fixture("mms").waves[1]
    found, expected = (e([wave]).hidden_states for e in (encoder, fixture("mms").encoder))
    assert np.array_equal(found, expected)
    other = ss.load_encoder(f"{folder}#deu")([wave]).hidden_states
    assert np.array_equal(found[0], other[0]) and np.abs(found - other)[1:].max() > 0.1


def test_the_digest_covers_the_weights_of_the_language(folder):
    def digest(source: str) -> str:
        return open_checkpoint(source).digest()

    first = {language: digest(f"{folder}#{language}") for language in TOKENS}
    first["none"] = digest(str(folder))
    assert len(set(first.values())) == 4
    changed = weights_of("deu") | {"lm_head.bias": np.ones(len(TOKENS["deu"]), np.float32)}
    (folder / "adapter.deu.safetensors").write_bytes(safetensors(changed))
    assert digest(f"{folder}#deu") != first["deu"] and digest(f"{folder}#eng") == first["eng"]
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
    assert digest(f"{folder}#eng") != first["eng"]


def test_a_main_file_without_a_head_or_a_prefix(folder):
    """As saved from the encoder alone."""
    tensors = {name.removeprefix("wav2vec2."): t for name, t in encoder_tensors().items()}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    check_adapters(ss.load_encoder(f"{folder}#deu"), "deu")
    assert ss.load_recognizer(f"{folder}#deu").head.bias.shape == (10,)
    # and without any adapter, as a pretrained model to which adapters were added
    tensors = {name: t for name, t in tensors.items() if "adapter_layer" not in name}
    (folder / "model.safetensors").write_bytes(safetensors(tensors))
    check_adapters(ss.load_encoder(f"{folder}#deu"), "deu")
    with pytest.raises(ss.UserError, match="18 missing"):
        ss.load_encoder(folder)


@pytest.mark.parametrize("language", [None, "eng", "deu", "cmn-script_simplified"])
def test_recognizers_have_the_head_and_the_tokens_of_the_language(folder, language):
    found = ss.load_recognizer(folder if language is None else f"{folder}#{language}")
    language = language or "eng"
    assert np.array_equal(found.head.weight, weights_of(language)["lm_head.weight"])
    tokens = TOKENS[language]
    logits = np.zeros((1, len(tokens), len(tokens)), np.float32)
    logits[0, range(len(tokens)), range(len(tokens))] = 1
    text = "".join(t for t in tokens if t not in SPECIAL)
    assert (
        found.decode(logits, np.array([len(tokens)]))[0].replace("<s></s><unk>", "").strip() == text
    )


def test_a_saved_recognizer_is_that_of_its_language(folder, tmp_path):
    found = ss.load_recognizer(f"{folder}#deu")
    again = ss.load_recognizer(found.save(tmp_path / "saved"))
    check_adapters(again.encoder, "deu")
    assert np.array_equal(again.head.bias, found.head.bias)
    assert again.tokenizer.get_vocab() == found.tokenizer.get_vocab()
    assert "ä" in again.tokenizer.get_vocab()


def test_a_folder_whose_own_name_has_a_number_sign(folder):
    renamed = folder.rename(folder.with_name("mms#deu"))
    encoder = ss.load_encoder(renamed)
    check_adapters(encoder, "eng")
    assert "language" not in encoder.provenance
    check_adapters(ss.load_encoder(f"{renamed}#deu"), "deu")


def test_random_weights_have_no_language(folder):
    for load in (ss.load_encoder, ss.load_recognizer, lambda source: check_models([source])):
        with pytest.raises(ss.UserError, match=f"have no language; use random:{folder}$"):
            load(f"random:{folder}#deu")
    with pytest.raises(ss.UserError, match="have no language"):
        ss.random_like(f"{folder}#deu")
    baseline = ss.random_like(ss.load_encoder(f"{folder}#deu"))
    drawn = tensors_of(baseline)
    own = {name: tensor for name, tensor in drawn.items() if "adapter_layer" in name}
    assert len(own) == 18
    for name, tensor in own.items():
        if "linear" in name and name.endswith("weight"):
            assert abs(tensor.std() / 0.02 - 1) < 0.3
        else:
            assert (tensor == name.endswith("norm.weight")).all()


def refusal(source, load=ss.load_encoder) -> str:
    with pytest.raises(ss.UserError) as caught:
        load(source)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    return line


def test_languages_that_are_not_there(folder):
    line = refusal(f"{folder}#deo")
    assert "no language 'deo', only cmn-script_simplified, deu, eng" in line
    assert refusal(f"{folder}#deo", lambda source: check_models([source])) == line
    assert "has no weights of languages" in refusal(f"{DATA / 'parity' / 'mms'}#deu")
    assert "has no weights of languages" in refusal("zoo:contrastive_s#deu")
    assert "there is no such folder" in refusal(f"{folder}x#deu")


def test_of_many_languages_the_likeliest_are_named(folder):
    for language in ("deb", "xeu", *(f"a{a}{b}" for a in "abcde" for b in "fghij")):
        (folder / f"adapter.{language}.safetensors").touch()
    line = refusal(f"{folder}#deo")
    assert "of its 30" in line
    assert {"deu", "deb"} <= set(line.rpartition(": ")[2].split(", "))


def test_wrong_weights_of_a_language(folder):
    def put(tensors: dict[str, np.ndarray]) -> None:
        (folder / "adapter.deu.safetensors").write_bytes(safetensors(tensors))

    name = "wav2vec2.encoder.layers.1.adapter_layer.linear_1.bias"
    put({n: t for n, t in weights_of("deu").items() if n != name})
    assert "1 missing: encoder.layers.1.adapter_layer.linear_1.bias" in refusal(f"{folder}#deu")
    put(weights_of("deu") | {name: np.ones(7, np.float32)})
    assert "1 of another shape" in refusal(f"{folder}#deu")
    put(weights_of("deu") | {name.replace("1", "9"): np.ones(6, np.float32)})
    assert "1 unexpected" in refusal(f"{folder}#deu")
    put(weights_of("deu") | {"wav2vec2.encoder.layer_norm.bias": np.ones(32, np.float32)})
    line = refusal(f"{folder}#deu")
    assert "encoder.layer_norm.bias" in line and "adapter.deu.safetensors" in line
    put({n: t for n, t in weights_of("deu").items() if not n.startswith("lm_head")})
    check_adapters(ss.load_encoder(f"{folder}#deu"), "deu")
    assert "has no lm_head.weight" in refusal(f"{folder}#deu", ss.load_recognizer)


def test_wrong_vocabularies_of_a_language(folder):
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({"eng": VOCABULARIES["eng"]}))
    line = refusal(f"{folder}#deu", ss.load_recognizer)
    assert "vocabularies for 1 languages (eng) and none for 'deu'" in line
    vocabulary.write_text(json.dumps(VOCABULARIES | {"deu": VOCABULARIES["eng"]}))
    assert "lm_head has 10 tokens" in refusal(f"{folder}#deu", ss.load_recognizer)
    vocabulary.write_text(json.dumps(VOCABULARIES["eng"]))
    assert "one vocabulary" in refusal(f"{folder}#deu", ss.load_recognizer)
    vocabulary.write_text(json.dumps(VOCABULARIES))
    (folder / "tokenizer_config.json").write_text("{}")
    assert "choose one as in ID#" in refusal(folder, ss.load_recognizer)
    assert ss.load_recognizer(f"{folder}#deu").head.bias.shape == (10,)


def test_of_an_adapter_or_a_training_checkpoint(folder, tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    settings["base_model_name_or_path"] = str(folder)
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    (lora / "adapter_model.safetensors").write_bytes(b"")
    assert "of a folder or hub model of MMS only" in refusal(f"{lora}#deu")


def test_of_a_hub_model(monkeypatch, tmp_path):
    with serving(Hub("org/mms", files()), monkeypatch, tmp_path) as hub:
        line = refusal("org/mms#deo")
        assert "no language 'deo', only cmn-script_simplified, deu, eng" in line
        assert "model.safetensors" not in hub.fetched()
        recognizer = ss.load_recognizer("org/mms#deu")
        check_adapters(recognizer.encoder, "deu")
        assert recognizer.encoder.provenance["revision"] == FIRST
        assert recognizer.name == "mms#deu" and recognizer.head.bias.shape == (10,)
        assert hub.fetched() == [
            "config.json",
            "preprocessor_config.json",
            "adapter.deu.safetensors",
            "vocab.json",
            "tokenizer_config.json",
            "model.safetensors",
        ]
        check_adapters(ss.load_encoder("org/mms#cmn-script_simplified"), "cmn-script_simplified")
        hub.error = (503, "")
        offline = dict(local_files_only=True, revision=FIRST)
        check_adapters(ss.load_encoder("org/mms#deu", **offline), "deu")
        with pytest.raises(
            ss.UserError, match="no language 'eng', only cmn-script_simplified, deu"
        ):
            ss.load_encoder("org/mms#eng", **offline)

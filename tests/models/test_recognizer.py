"""Fine-tuned checkpoints: the logits of torch, the text of transformers' tokenizer, clear refusals.

tests/data/ctc holds tiny redrawn ...ForCTC models with their tokenizers (make_parity_fixtures.py).
"""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import speechsim_jax as ss
from speechsim_jax.models import recognizer as ctc
from speechsim_jax.models.recognizer import best_path, load_recognizer
from tests.support import tolerances
from tests.support.paths import DATA

FOLDER = DATA / "ctc"
LAYOUTS = sorted(path.name for path in FOLDER.iterdir())
STABLE = "hubert-large"
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@functools.cache
def recognizer(layout: str) -> ss.Recognizer:
    return load_recognizer(FOLDER / layout)


@functools.cache
def expected(layout: str) -> dict[str, list]:
    arrays = np.load(FOLDER / layout / "expected.npz")
    return {name: [arrays[f"{name}_{i}"] for i in range(3)] for name in ("wave", "logits", "text")}


def padded(waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The waveforms and a filler row as one batch."""
    lengths = np.array([*map(len, waves), 0], np.int32)
    samples = np.zeros((len(lengths), lengths.max()), np.float32)
    for row, wave in zip(samples, waves):
        row[: len(wave)] = wave
    return samples, lengths


# --- what torch computed --------------------------------------------------------------------------


@pytest.mark.slow
@each_layout
def test_logits_and_text_are_those_of_transformers(layout):
    found, theirs = recognizer(layout), expected(layout)
    samples, lengths = padded(theirs["wave"])
    logits = found.logits(samples, lengths)
    assert logits.shape == (4, 15, 11) and logits.dtype == np.float32
    for row, values in enumerate(theirs["logits"]):
        ours = np.asarray(logits[row, : len(values)])
        error = np.abs(ours - values).max()
        print(f"{layout}: {error:.1e}")
        assert error <= tolerances.PARITY
        assert (ours.argmax(-1) == values.argmax(-1)).all()
    texts = found.decode(logits, found.encoder.config.logit_frames(lengths))
    assert texts == [*map(str, theirs["text"]), ""]


@pytest.mark.slow
def test_an_utterance_alone_is_transcribed_as_in_a_batch():
    found, theirs = recognizer(STABLE), expected(STABLE)
    texts = found.transcribe(theirs["wave"])
    assert texts == [str(text) for text in theirs["text"]]
    assert [found.transcribe([wave])[0] for wave in theirs["wave"][1:]] == texts[1:]


@pytest.mark.slow
def test_the_head_reads_the_normed_state():
    found, wave = recognizer(STABLE), expected(STABLE)["wave"][1]
    states = {
        reading: np.asarray(found.encoder([wave], layers=[2], last_layer=reading).hidden_states[0])
        for reading in ("normed", "raw")
    }
    head = [np.asarray(part, np.float64) for part in found.head]
    logits = {name: x.astype(np.float64) @ head[0].T + head[1] for name, x in states.items()}
    theirs = expected(STABLE)["logits"][1]
    assert np.abs(logits["normed"][0] - theirs).max() <= tolerances.PARITY
    assert np.abs(logits["raw"][0] - theirs).max() > 0.1


def test_frames_beyond_an_utterance_say_nothing():
    """Text is read from an utterance's own frames, whatever the others hold."""
    found, theirs = recognizer(STABLE), expected(STABLE)
    logits = np.full((1, 15, 11), np.nan, np.float32)
    logits[0, :5] = theirs["logits"][1]
    assert found.decode(logits, np.array([5])) == [str(theirs["text"][1])]
    with pytest.raises(ss.UserError, match="hubert-large: logits are NaN or inf"):
        found.decode(logits, np.array([6]))


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "labels"),
    [
        ([], []),
        ([0], []),
        ([3], [3]),
        ([3, 3, 3], [3]),
        ([0, 3, 3, 0, 3, 0, 0], [3, 3]),
        ([1, 2, 2, 1, 0, 1], [1, 2, 1, 1]),
        ([0, 0, 4], [4]),
    ],
)
def test_best_path_by_hand(tokens, labels):
    assert best_path(np.array(tokens, np.int64), blank=0) == labels


@each_layout
def test_text_is_that_of_the_tokenizer(layout):
    """transformers groups and drops blanks by itself; words, case and doubled letters agree."""
    found = recognizer(layout)
    rng = np.random.default_rng(3)
    tokens = rng.choice(11, (200, 30), p=[0.2] + [0.05] * 3 + [0.2] + [0.05] * 5 + [0.2])
    tokens = np.repeat(tokens, rng.integers(1, 4, 30), axis=1)
    logits = 5 * np.eye(11, dtype=np.float32)[tokens]
    texts = found.decode(logits, np.full(200, tokens.shape[1]))
    assert texts == found.tokenizer.batch_decode(tokens)
    for row, text in zip(tokens, texts):
        labels = [token for token, _ in itertools.groupby(row.tolist()) if token != found.blank]
        words = "".join(found.tokenizer.convert_ids_to_tokens(labels)).replace("|", " ").strip()
        assert text == (words.lower() if layout == STABLE else words)
    assert any("NN" in text.upper() for text in texts) and any(" " in text for text in texts)


def test_the_blank_is_that_of_the_configuration():
    assert [recognizer(layout).blank for layout in ("wav2vec2-base", "wavlm-base")] == [0, 10]


# --- loading --------------------------------------------------------------------------------------


@each_layout
def test_the_encoder_is_that_of_load_encoder(layout):
    found, encoder = recognizer(layout), ss.load_encoder(FOLDER / layout)
    assert found.name == encoder.name == layout and found.encoder.config == encoder.config
    for a, b in zip(*map(jax.tree.leaves, (found.encoder.parameters, encoder.parameters))):
        assert np.array_equal(a, b)
    for key in ("source", "revision", "sha256"):
        assert found.encoder.provenance[key] == encoder.provenance[key]
    # What the one leaves out is what the other is about.
    assert found.encoder.provenance["notes"] == []
    (note,) = encoder.provenance["notes"]
    assert "left out lm_head.bias, lm_head.weight" in note
    tensors = load_file(FOLDER / layout / "model.safetensors")
    assert np.array_equal(found.head.weight, tensors["lm_head.weight"])
    assert np.array_equal(found.head.bias, tensors["lm_head.bias"])


def test_the_weights_are_read_once(monkeypatch):
    reads = []
    read = ctc.WeightFiles.tensors
    monkeypatch.setattr(ctc.WeightFiles, "tensors", lambda c: (reads.append(c), read(c))[1])
    assert load_recognizer(FOLDER / STABLE, name="mine").name == "mine"
    assert len(reads) == 1


def test_half_precision(tmp_path):
    folder = spoilt(tmp_path, lambda tensors: None)
    tensors = load_file(folder / "model.safetensors")
    half = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors", {"format": "pt"})
    found = load_recognizer(folder)
    assert found.head.weight.dtype == jnp.float32
    assert np.array_equal(found.head.weight, half["lm_head.weight"].astype(np.float32))


@each_layout
def test_saved_and_loaded_again(layout, tmp_path):
    first = recognizer(layout)
    folder = first.save(tmp_path / "deep" / layout)
    for name in ("vocab.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (FOLDER / layout / name).read_bytes()
    second = load_recognizer(folder)
    assert (second.encoder.config, second.blank) == (first.encoder.config, first.blank)
    for a, b in zip(*(jax.tree.leaves((x.encoder.parameters, x.head)) for x in (first, second))):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    config = json.loads((folder / "config.json").read_text())
    (architecture,) = config["architectures"]
    theirs = json.loads((FOLDER / layout / "config.json").read_text())
    assert [architecture] == theirs["architectures"]
    for name in ("vocab_size", "pad_token_id", *dataclasses.asdict(first.encoder.config)):
        if name in theirs:
            assert config[name] == theirs[name], name
    # Onto itself: the tokenizer stays where it is.
    second.save(folder)
    assert load_recognizer(folder).tokenizer.get_vocab() == first.tokenizer.get_vocab()


def test_a_tokenizer_that_is_gone_cannot_be_saved(tmp_path):
    found = load_recognizer(spoilt(tmp_path, lambda tensors: None))
    (tmp_path / "model" / "vocab.json").unlink()
    with pytest.raises(ss.UserError, match="the tokenizer cannot be copied"):
        found.save(tmp_path / "copy")


# --- refusals -------------------------------------------------------------------------------------


def spoilt(tmp_path: Path, change) -> Path:
    """A copy of a fixture whose tensors went through `change`."""
    folder = tmp_path / "model"
    shutil.copytree(FOLDER / "wav2vec2-base", folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def rewrite(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "gone"}))


def refusal(folder: Path) -> str:
    with pytest.raises(ss.UserError) as caught:
        load_recognizer(folder)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(folder))
    return line


def test_without_a_head(tmp_path):
    folder = spoilt(tmp_path, lambda tensors: tensors.pop("lm_head.bias"))
    assert "has no lm_head.bias; expected a checkpoint fine-tuned with CTC" in refusal(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "has no lm_head.weight and no lm_head.bias" in refusal(folder)


def test_without_a_tokenizer():
    folder = FOLDER.parent / "parity" / "wav2vec2-base"
    assert "there is no tokenizer (vocab.json); expected a checkpoint" in refusal(folder)


def test_a_head_that_does_not_fit(tmp_path):
    def shorten(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:, :20]

    line = refusal(spoilt(tmp_path, shorten))
    assert "has the shapes [11, 20] and [11]" in line and "expected [11, 24] and [11]" in line
    rewrite(tmp_path / "model", "config.json", vocab_size="gone")
    assert "expected [32, 24] and [32]" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "size"), [({"N": "gone"}, 10), ({"X": 11}, 12), ({"N": 12}, 11)]
)
def test_a_vocabulary_of_another_model(tmp_path, changes, size):
    folder = spoilt(tmp_path, lambda tensors: None)
    rewrite(folder, "vocab.json", **changes)
    line = refusal(folder)
    assert f"lm_head has 11 tokens, vocab.json has {size}; they belong to different models" in line


def test_tokenizer_may_have_tokens_without_a_logit(tmp_path):
    """Many vocabularies lack <s> and </s>, which the tokenizer then adds behind them."""
    folder = spoilt(tmp_path, lambda tensors: None)
    (folder / "added_tokens.json").write_text(json.dumps({"<mask>": 11}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"]["11"] = settings["added_tokens_decoder"]["1"] | {
        "content": "<mask>"
    }
    rewrite(folder, "tokenizer_config.json", **settings)
    found = load_recognizer(folder)
    assert len(found.tokenizer) == 12 and len(found.head.bias) == 11


@pytest.mark.parametrize("blank", [-1, 11, None, "<pad>"])
def test_a_blank_that_is_no_token(tmp_path, blank):
    folder = spoilt(tmp_path, lambda tensors: None)
    rewrite(folder, "config.json", pad_token_id=blank)
    assert f"config.json has pad_token_id={blank!r}" in refusal(folder)


def test_a_blank_that_the_tokenizer_does_not_know(tmp_path, caplog):
    folder = spoilt(tmp_path, lambda tensors: None)
    rewrite(folder, "config.json", pad_token_id=10)
    found = load_recognizer(folder)
    assert "the blank is token 10 in config.json, 0 in the tokenizer" in caplog.text
    logits = np.eye(11, dtype=np.float32)[np.array([[8, 10, 8, 10, 9]])]
    assert found.decode(logits, np.array([5])) == ["AAO"]


def test_other_tokenizers(tmp_path):
    folder = spoilt(tmp_path, lambda tensors: None)
    rewrite(folder, "tokenizer_config.json", tokenizer_class="Wav2Vec2PhonemeCTCTokenizer")
    assert "its tokenizer is a Wav2Vec2PhonemeCTCTokenizer; only" in refusal(folder)
    rewrite(folder, "tokenizer_config.json", tokenizer_class="gone")
    assert load_recognizer(folder).blank == 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocab.json", "", "vocab.json: is not JSON"),
        ("vocab.json", "[1]", "vocab.json: is not a JSON object but a list"),
        ("vocab.json", '{"a": {"b": 1}, "c": 1}', "its tokenizer cannot be read (unhashable"),
        (
            "vocab.json",
            '{"a": {"b": 1}}',
            "vocabularies for 1 languages (a); choose one as in ID#a",
        ),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is not JSON"),
        ("tokenizer_config.json", '{"pad_token": 3}', "its tokenizer cannot be read ("),
    ],
)
def test_broken_tokenizers(tmp_path, name, content, words):
    folder = spoilt(tmp_path, lambda tensors: None)
    (folder / name).write_text(content)
    assert words in refusal(folder)


def test_random_baselines_have_no_head():
    with pytest.raises(ss.UserError, match=r"^random:x: a random baseline has no CTC head"):
        load_recognizer("random:x")

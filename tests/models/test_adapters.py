"""LoRA adapters of PEFT: merged into their base, or refused in one line."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import speechsim_jax as ss
from speechsim_jax.models.checkpoint_files import open_checkpoint
from tests.support.checkpoint_folders import fill
from tests.support.hub_server import FIRST, Hub, serving
from tests.support.parity import assert_same_network
from tests.support.paths import DATA
from tests.support.torch_writer import members, state_dict, storage, tensor, zip_file

MODEL = DATA / "parity" / "wav2vec2-base"
RNG = np.random.default_rng(0)
QUERY = "encoder.layers.0.attention.q_proj"
VALUE = "encoder.layers.1.attention.v_proj"
CONV = "feature_extractor.conv_layers.1.conv"
POSITIONS = "encoder.pos_conv_embed.conv"
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


A, B = draw(2, 32), draw(32, 2)


def lora(module: str, a: np.ndarray = A, b: np.ndarray = B, prefix: str = "") -> dict:
    start = f"base_model.model.{prefix}{module}"
    return {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}


def save(folder: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> None:
    plain = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(plain, folder / name, metadata={"format": "pt"})


def adapter(folder: Path, tensors: dict[str, np.ndarray], base: Any = MODEL, **fields) -> Path:
    """An adapter's folder, as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    config = LORA | {"base_model_name_or_path": None if base is None else str(base)} | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save(folder, tensors, "adapter_model.safetensors")
    return folder


def weights() -> dict[str, np.ndarray]:
    """The base's tensors, without a prefix."""
    tensors = load_file(MODEL / "model.safetensors")
    return {name.removeprefix("wav2vec2."): value for name, value in tensors.items()}


def plain(folder: Path, **changed: np.ndarray) -> Path:
    """The base's folder with changed tensors; dots are given as __."""
    shutil.copytree(MODEL, folder)
    changes = {name.replace("__", "."): value for name, value in changed.items()}
    tensors = weights()
    assert changes.keys() <= tensors.keys()
    save(folder, tensors | changes)
    return folder


def key(module: str, part: str = "weight") -> str:
    return f"{module}.{part}".replace(".", "__")


def plus(module: str, change: np.ndarray, part: str = "weight") -> dict[str, np.ndarray]:
    """The base's tensor and a change, by the argument of `plain`."""
    total = weights()[f"{module}.{part}"].astype(np.float64) + change
    return {key(module, part): total.astype(np.float32)}


PRODUCT = B.astype(np.float64) @ A
A3, B3 = draw(3, 32), draw(32, 3)
CONV_A, CONV_B = draw(2, 24, 3), draw(24, 2, 1)
MAGNITUDE = np.abs(draw(32))


def dora() -> np.ndarray:
    total = weights()[f"{QUERY}.weight"].astype(np.float64) + 3 * PRODUCT
    norms = np.sqrt((total**2).sum(axis=1))
    return (MAGNITUDE / norms)[:, None] * total - weights()[f"{QUERY}.weight"]


MERGED = {
    "alpha / r": (lora(QUERY), {}, plus(QUERY, 3 * PRODUCT)),
    "alpha / sqrt(r)": (
        lora(QUERY), {"use_rslora": True}, plus(QUERY, 6 / math.sqrt(2) * PRODUCT),
    ),
    "two modules": (
        lora(QUERY) | lora(VALUE), {}, plus(QUERY, 3 * PRODUCT) | plus(VALUE, 3 * PRODUCT),
    ),
    "ranks and alphas of their own": (
        lora(QUERY) | lora(VALUE, A3, B3),
        {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {r"layers\.[1-9]\.attention\..*": 12}},
        plus(QUERY, 3 * PRODUCT) | plus(VALUE, 4 * B3.astype(np.float64) @ A3),
    ),
    "a pattern from the start": (
        lora(QUERY), {"alpha_pattern": {f"^{QUERY}": 2, "q_proj": 4}}, plus(QUERY, PRODUCT),
    ),
    # PEFT takes it back for linear maps, which these all are.
    "fan_in_fan_out": (lora(QUERY), {"fan_in_fan_out": True}, plus(QUERY, 3 * PRODUCT)),
    "a convolution": (
        lora(CONV, CONV_A, CONV_B), {},
        plus(CONV, 3 * np.einsum("ora,rik->oik", CONV_B.astype(np.float64), CONV_A)),
    ),
    "biases of LoRA": (
        lora(QUERY) | {f"base_model.model.{QUERY}.lora_B.bias": A[0]}, {"lora_bias": True},
        plus(QUERY, 3 * PRODUCT) | plus(QUERY, 3 * A[0].astype(np.float64), "bias"),
    ),
    "trained biases": (
        lora(QUERY) | {f"base_model.model.{QUERY}.base_layer.bias": A[0]}, {"bias": "lora_only"},
        plus(QUERY, 3 * PRODUCT) | {key(QUERY, "bias"): A[0]},
    ),
    "a whole module": (
        lora(QUERY) | {"base_model.model.feature_projection.projection.bias": A[1]},
        {"modules_to_save": ["feature_projection"]},
        plus(QUERY, 3 * PRODUCT) | {key("feature_projection.projection", "bias"): A[1]},
    ),
    "DoRA": (
        lora(QUERY) | {f"base_model.model.{QUERY}.lora_magnitude_vector": MAGNITUDE},
        {"use_dora": True}, plus(QUERY, dora()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_merged(tmp_path, case):
    tensors, fields, changed = MERGED[case]
    encoder = ss.load_encoder(adapter(tmp_path / "adapter", tensors, **fields))
    assert_same_network(encoder, ss.load_encoder(plain(tmp_path / "merged", **changed)))
    notes = " ".join(encoder.provenance["notes"])
    assert f"is a LoRA adapter, merged into {MODEL}" in notes


@pytest.mark.parametrize("case", MERGED)
def test_merged_in_one_file(tmp_path, case):
    """The state dict of the adapted model, with adapter_config.json beside it."""
    tensors, fields, changed = MERGED[case]
    adapted = {name.split(".lora_")[0] for name in tensors if ".lora_" in name}
    one = {}
    for name, value in weights().items():
        module, _, part = f"base_model.model.{name}".rpartition(".")
        one[f"{module}.base_layer.{part}" if module in adapted else f"{module}.{part}"] = value
    for name, value in tensors.items():
        if ".lora_" in name:
            front, _, last = name.partition(".lora_")
            part, _, leaf = last.partition(".")
            one[f"{front}.lora_{part}.default.{leaf or 'weight'}"] = value
        elif "feature_projection" in name:
            front, last = name.split("projection.", 1)
            one[f"{front}projection.original_module.{last}"] = one.pop(name)
            one[f"{front}projection.modules_to_save.default.{last}"] = value
        else:
            one[name] = value
    folder = Path(shutil.copytree(MODEL, tmp_path / "one"))
    save(folder, one)
    with pytest.raises(ss.UserError, match=r"no adapter_config\.json .*merge_and_unload"):
        ss.load_encoder(folder)
    (folder / "adapter_config.json").write_text(json.dumps(LORA | fields))
    expected = ss.load_encoder(plain(tmp_path / "merged", **changed))
    assert_same_network(ss.load_encoder(folder), expected)
    before = open_checkpoint(folder).digest()
    (folder / "adapter_config.json").write_text(json.dumps(LORA | fields | {"lora_alpha": 7}))
    assert open_checkpoint(folder).digest() != before


@pytest.mark.parametrize(("of_base", "of_adapter"), [("", "wav2vec2."), ("wav2vec2.", ""),
                                                    ("wav2vec2.", "wav2vec2.")])  # fmt: skip
def test_prefixes_of_base_and_adapter_may_differ(tmp_path, of_base, of_adapter):
    base = Path(shutil.copytree(MODEL, tmp_path / "base"))
    save(base, {f"{of_base}{name}": value for name, value in weights().items()})
    found = adapter(tmp_path / "adapter", lora(QUERY, prefix=of_adapter), base)
    expected = ss.load_encoder(plain(tmp_path / "merged", **plus(QUERY, 3 * PRODUCT)))
    assert_same_network(ss.load_encoder(found), expected)


def test_an_embedding(tmp_path):
    """WavLM's relative positions; an embedding's weight is the transpose of the product."""
    model = DATA / "parity" / "wavlm-base"
    module = "encoder.layers.0.attention.rel_attn_embed"
    a, b = draw(2, 320), draw(4, 2)
    start = f"base_model.model.{module}"
    tensors = {f"{start}.lora_embedding_A": a, f"{start}.lora_embedding_B": b}
    found = ss.load_encoder(adapter(tmp_path / "adapter", tensors, model))
    folder = Path(shutil.copytree(model, tmp_path / "merged"))
    merged = load_file(folder / "model.safetensors")
    total = merged[f"{module}.weight"] + 3 * (b.astype(np.float64) @ a).T
    save(folder, merged | {f"{module}.weight": total.astype(np.float32)})
    assert_same_network(found, ss.load_encoder(folder))


def test_the_binary_form(tmp_path):
    values = lora(QUERY)
    pickled = {
        name: tensor(storage("FloatStorage", str(i), value.size), value.shape, (value.shape[1], 1))
        for i, (name, value) in enumerate(values.items())
    }
    blocks = {str(i): value.tobytes() for i, value in enumerate(values.values())}
    found = adapter(tmp_path / "adapter", values)
    expected = ss.load_encoder(found)
    (found / "adapter_model.safetensors").unlink()
    (found / "adapter_model.bin").write_bytes(zip_file(members(state_dict(pickled), blocks)))
    assert_same_network(ss.load_encoder(found), expected)


def test_provenance_and_baselines(tmp_path):
    """The digest is that of both; a baseline has the base's architecture."""
    base = plain(tmp_path / "base")
    found = adapter(tmp_path / "adapter", lora(QUERY), base)
    encoder = ss.load_encoder(found)
    random = ss.load_encoder(f"random:{found}@3")
    assert_same_network(random, ss.load_encoder(f"random:{MODEL}@3"))
    digests = {encoder.provenance["sha256"]}
    adapter(found, lora(QUERY, 2 * A), base)
    digests.add(ss.load_encoder(found).provenance["sha256"])
    adapter(found, lora(QUERY, 2 * A), base, lora_alpha=7)
    digests.add(ss.load_encoder(found).provenance["sha256"])
    save(base, weights() | {f"{VALUE}.weight": draw(32, 32)})
    digests.add(ss.load_encoder(found).provenance["sha256"])
    assert len(digests) == 4


def test_a_recognizer(tmp_path):
    """The head comes from the adapter where it was trained, the tokenizer from the base."""
    base = DATA / "ctc" / "wav2vec2-base"
    before = ss.load_recognizer(base)
    size = len(before.head.bias)
    bias = draw(size)
    tensors = lora(QUERY, prefix="wav2vec2.") | {"base_model.model.lm_head.bias": bias}
    width = before.encoder.config.hidden_size
    tensors = {n: (v if v.ndim == 1 else draw(*[width if s == 32 else s for s in v.shape]))
               for n, v in tensors.items()}  # fmt: skip
    found = ss.load_recognizer(adapter(tmp_path / "adapter", tensors, base))
    np.testing.assert_array_equal(found.head.bias, bias)
    np.testing.assert_array_equal(found.head.weight, before.head.weight)
    assert found.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_a_head_that_the_base_lacks_is_left_out(tmp_path, caplog):
    head = lora("lm_head", A, draw(5, 2)) | {"base_model.model.classifier.weight": draw(3, 32)}
    found = ss.load_encoder(adapter(tmp_path / "adapter", lora(QUERY) | head))
    expected = ss.load_encoder(plain(tmp_path / "merged", **plus(QUERY, 3 * PRODUCT)))
    assert_same_network(found, expected)
    assert "changes lm_head" in caplog.text and "left out classifier.weight" in caplog.text


REFUSED = {
    "IA3": (lora(QUERY), {"peft_type": "IA3"}, "type 'IA3', not LORA; merge it"),
    "AdaLoRA": (lora(QUERY), {"peft_type": "ADALORA"}, "type 'ADALORA'"),
    "prefix tuning": (lora(QUERY), {"peft_type": "PREFIX_TUNING"}, "type 'PREFIX_TUNING'"),
    "no type": (lora(QUERY), {"peft_type": None}, "type None"),
    "QALoRA": (lora(QUERY), {"use_qalora": True}, "has use_qalora; merge it"),
    "parameters": (lora(QUERY), {"target_parameters": ["x"]}, "has target_parameters"),
    "PiSSA": (lora(QUERY), {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa"),
    "no rank": (lora(QUERY), {"r": None}, "r=None"),
    "a rank that is text": (lora(QUERY), {"r": "2"}, "r='2'"),
    "no alpha": (lora(QUERY), {"lora_alpha": None}, "lora_alpha=None"),
    "an infinite alpha": (lora(QUERY), {"lora_alpha": math.inf}, "lora_alpha=inf"),
    "another rank": (lora(QUERY), {"r": 3}, r"lora_A \[2, 32\] and lora_B \[32, 2\] .* rank 3"),
    "another shape": (
        lora(QUERY, draw(2, 16)), {}, r"lora_A \[2, 16\] .* weight \[32, 32\]",
    ),
    "a pattern that takes years": (
        lora(QUERY), {"alpha_pattern": {"(a+)+b": 2}}, "has the pattern",
    ),
    "many choices": (lora(QUERY), {"rank_pattern": {"(a|a)" * 20: 2}}, "has the pattern"),
    "optional letters": (lora(QUERY), {"rank_pattern": {"a?" * 30: 2}}, "has the pattern"),
    "a broken pattern": (lora(QUERY), {"alpha_pattern": {"(": 2}}, "has the pattern"),
    "a list of patterns": (lora(QUERY), {"alpha_pattern": ["q_proj"]}, "has the pattern"),
    "a pattern of text": (lora(QUERY), {"alpha_pattern": {"q_proj": "x"}}, "lora_alpha='x'"),
    "half an adapter": (
        {f"base_model.model.{QUERY}.lora_A.weight": A}, {}, "lacks its lora_A or lora_B",
    ),
    "the positional convolution": (
        lora(POSITIONS, draw(4, 8, 16), draw(32, 1, 1)), {}, "groups and weight norm",
    ),
    "an unknown layer": (lora("encoder.layers.9.fc"), {}, r"layers\.9\.fc, which the base lacks"),
    "an unknown part": (
        lora(QUERY) | {f"base_model.model.{QUERY}.lora_E": A}, {}, "lora_E, which is not known",
    ),
    "DoRA without its norms": (lora(QUERY), {"use_dora": True}, "contradict"),
    "norms without DoRA": (
        lora(QUERY) | {f"base_model.model.{QUERY}.lora_magnitude_vector": MAGNITUDE}, {},
        "contradict",
    ),
    "DoRA of a convolution": (
        lora(CONV, CONV_A, CONV_B)
        | {f"base_model.model.{CONV}.lora_magnitude_vector": draw(1, 24, 1)},
        {"use_dora": True}, "linear maps",
    ),
    "a bias where there is none": (
        lora(CONV, CONV_A, CONV_B) | {f"base_model.model.{CONV}.lora_B.bias": draw(24)}, {},
        "has none in the base",
    ),
    "no base": (lora(QUERY), {"base_model_name_or_path": ""}, "no base_model_name_or_path"),
    "a base of another machine": (
        lora(QUERY), {"base_model_name_or_path": "/home/x/model"}, "'/home/x/model', is not here",
    ),
    "a share": (
        lora(QUERY), {"base_model_name_or_path": "\\\\host\\share"}, "is not here",
    ),
    "a line end": (lora(QUERY), {"base_model_name_or_path": "a\nb"}, "no base_model_name"),
    "a random base": (lora(QUERY), {"base_model_name_or_path": "random:zoo:x"}, "is not here"),
    "a number": (lora(QUERY), {"base_model_name_or_path": 3}, "no base_model_name_or_path"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path, case):
    tensors, fields, words = REFUSED[case]
    with pytest.raises(ss.UserError, match=words) as caught:
        ss.load_encoder(adapter(tmp_path / "adapter", tensors, **fields))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_several_adapters_in_one_file(tmp_path):
    folder = Path(shutil.copytree(MODEL, tmp_path / "one"))
    start = f"base_model.model.{QUERY}"
    both = {f"{start}.lora_A.{name}.weight": A for name in ("default", "second")}
    save(folder, weights() | both)
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    with pytest.raises(ss.UserError, match=r"several adapters \('default', 'second'\)"):
        ss.load_encoder(folder)


def test_an_adapter_without_weights(tmp_path):
    found = adapter(tmp_path / "adapter", lora(QUERY))
    (found / "adapter_model.safetensors").unlink()
    with pytest.raises(ss.UserError, match=r"but no adapter_model\.safetensors or"):
        ss.load_encoder(found)


def test_an_adapter_of_an_adapter(tmp_path):
    first = adapter(tmp_path / "first", lora(QUERY))
    second = adapter(tmp_path / "second", lora(QUERY), first)
    with pytest.raises(ss.UserError, match=r"its base, .* is not here"):
        ss.load_encoder(second)


def test_the_base_may_be_the_folder_itself_or_relative_to_it(tmp_path, monkeypatch):
    expected = ss.load_encoder(plain(tmp_path / "merged", **plus(QUERY, 3 * PRODUCT)))
    for name, place in ((".", "model"), ("../model", "beside"), ("../", "model/checkpoint-5")):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        plain(tmp_path / "model")
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        found = adapter(tmp_path / place, lora(QUERY), name)
        assert_same_network(ss.load_encoder(found), expected)


# --- on the hub ---


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(Hub("org/model", files_of(MODEL)), monkeypatch, tmp_path) as server:
        yield server


def test_the_base_is_fetched_from_the_hub(hub, tmp_path, monkeypatch):
    """At the revision of adapter_config.json, and then from the cache without the network."""
    hub.refs |= {"main": "none", "v2": FIRST}
    found = adapter(tmp_path / "adapter", lora(QUERY), "org/model", revision="v2")
    encoder = ss.load_encoder(found)
    expected = ss.load_encoder(plain(tmp_path / "merged", **plus(QUERY, 3 * PRODUCT)))
    assert_same_network(encoder, expected)
    notes = " ".join(encoder.provenance["notes"])
    assert f"merged into org/model at commit {FIRST}" in notes
    hub.error = (503, "")
    again = ss.load_encoder(found, local_files_only=True)
    assert again.provenance["sha256"] == encoder.provenance["sha256"]
    with pytest.raises(ss.UserError, match=r"its base cannot be opened: .*503"):
        ss.load_encoder(found, cache_dir=tmp_path / "empty")


def test_an_adapter_on_the_hub_opens_no_folder(hub, tmp_path):
    for base in (str(MODEL), "../model", "./model", "model/../x"):
        files = files_of(adapter(tmp_path / "adapter", lora(QUERY), base))
        hub.commits[FIRST] = files
        with pytest.raises(ss.UserError, match="is not here; put the base's folder or hub id"):
            ss.load_encoder("org/model", cache_dir=tmp_path / base.replace("/", "_"))


def test_an_adapter_on_the_hub(hub, tmp_path):
    """Its base is another revision of the same repository; a folder of that name is not it."""
    second = "2" * 40
    fill(tmp_path / "org", {})
    fill(tmp_path / "org" / "model", {"config.json": b"{}"})
    hub.commits[second] = files_of(MODEL)
    hub.commits[FIRST] = files_of(
        adapter(tmp_path / "adapter", lora(QUERY), "org/model", revision=second)
    )
    shutil.rmtree(tmp_path / "org")
    encoder = ss.load_encoder("org/model")
    assert encoder.provenance["revision"] == FIRST
    random = ss.load_encoder("random:org/model")
    assert random.config == encoder.config
    expected = ss.load_encoder(plain(tmp_path / "merged", **plus(QUERY, 3 * PRODUCT)))
    assert_same_network(encoder, expected)

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
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


A, B = draw(2, 32), draw(32, 2)


def lora(module: str, a: np.ndarray = A, b: np.ndarray = B, prefix: str = "") -> dict:
    start = f"base_model.model.{prefix}{module}"
    return {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}


def save(folder: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> None:
    plain = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(plain, folder / name, metadata={"format": "pt"})


def targets(tensors: dict[str, np.ndarray]) -> dict[str, list[str]]:
    modules = {name.split(".lora_")[0] for name in tensors if ".lora_" in name}
    return {"target_modules": sorted(name.removeprefix("base_model.model.") for name in modules)}


def adapter(folder: Path, tensors: dict[str, np.ndarray], base: Any = MODEL, **fields) -> Path:
    """An adapter's folder, as PEFT saves it; its modules are those of the tensors."""
    folder.mkdir(exist_ok=True)
    place = {"base_model_name_or_path": None if base is None else str(base)}
    config = LORA | targets(tensors) | place | fields
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
PROJECTION = weights()["feature_projection.projection.weight"] + 1
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
        lora(QUERY) | {"base_model.model.feature_projection.projection.bias": A[1],
                       "base_model.model.feature_projection.projection.weight": PROJECTION},
        {"modules_to_save": ["projection"]},
        plus(QUERY, 3 * PRODUCT) | {key("feature_projection.projection", "bias"): A[1],
                                    key("feature_projection.projection"): PROJECTION},
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
            front, _, last = name.rpartition(".")
            one[f"{front}.original_module.{last}"] = one.pop(name)
            one[f"{front}.modules_to_save.default.{last}"] = value
        else:
            one[name] = value
    folder = Path(shutil.copytree(MODEL, tmp_path / "one"))
    save(folder, one)
    with pytest.raises(ss.UserError, match=r"no adapter_config\.json .*merge_and_unload"):
        ss.load_encoder(folder)
    config = LORA | targets(tensors) | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    expected = ss.load_encoder(plain(tmp_path / "merged", **changed))
    assert_same_network(ss.load_encoder(folder), expected)
    before = open_checkpoint(folder).digest()
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 7}))
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
        {f"base_model.model.{QUERY}.lora_A.weight": A}, {}, "lacks its lora_B",
    ),
    "the other half": (
        lora(VALUE) | {f"base_model.model.{QUERY}.lora_B.weight": B}, {}, "lacks its lora_A",
    ),
    "a bias that is missing": (lora(QUERY), {"lora_bias": True}, "lora_bias .* contradict"),
    "a bias too many": (
        lora(QUERY) | {f"base_model.model.{QUERY}.lora_B.bias": A[0]}, {},
        "lora_bias .* contradict",
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
        lora(CONV, CONV_A, CONV_B) | {f"base_model.model.{CONV}.lora_B.bias": draw(24)},
        {"lora_bias": True}, "has none in the base",
    ),
    "no base": (lora(QUERY), {"base_model_name_or_path": ""}, "no base_model_name_or_path"),
    "a base of another machine": (
        lora(QUERY), {"base_model_name_or_path": "/home/x/model"}, "'/home/x/model', is not here",
    ),
    "a share": (
        lora(QUERY), {"base_model_name_or_path": "\\\\host\\share"}, "is not here",
    ),
    "a line end": (lora(QUERY), {"base_model_name_or_path": "a\nb"}, "no base_model_name"),
    "a random base": (lora(QUERY), {"base_model_name_or_path": "random:zoo:x"}, "is a random"),
    "an unknown zoo model": (
        lora(QUERY), {"base_model_name_or_path": "zoo:x"}, "its base cannot be opened: zoo:x",
    ),
    "no modules": (lora(QUERY), {"target_modules": None}, "has no target_modules"),
    "numbers for modules": (lora(QUERY), {"target_modules": [3]}, r"target_modules=\[3\]"),
    "a slow pattern of modules": (
        lora(QUERY), {"target_modules": "(a+)+b"}, "has the pattern",
    ),
    "a slow pattern of layers": (
        lora(QUERY), {"layers_to_transform": [0], "layers_pattern": "(a+)+b"}, "has the pattern",
    ),
    "layers by name": (
        lora(QUERY), {"layers_to_transform": ["0"]}, r"layers_to_transform=\['0'\]",
    ),
    "a number": (lora(QUERY), {"base_model_name_or_path": 3}, "no base_model_name_or_path"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(tmp_path, case):
    tensors, fields, words = REFUSED[case]
    with pytest.raises(ss.UserError, match=words) as caught:
        ss.load_encoder(adapter(tmp_path / "adapter", tensors, **fields))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


ATTENTION = [f"encoder.layers.{layer}.attention.{part}_proj"
             for layer in (0, 1, 2) for part in ("q", "v")]  # fmt: skip
FIRST_LAYER, SECOND_LAYER = ATTENTION[:2], ATTENTION[2:4]
ENDS = ["q_proj", "v_proj"]
LINEAR = [name.removesuffix(".weight") for name, value in weights().items()
          if name.endswith(".weight") and value.ndim == 2]  # fmt: skip


def several(modules: list[str], prefix: str = "") -> dict[str, np.ndarray]:
    """LoRA of many modules, which are linear maps of any shape."""
    result = {}
    for module in modules:
        rows, columns = weights()[f"{module}.weight"].shape
        a, b = np.resize(A, (2, columns)), np.resize(B, (rows, 2))
        result |= lora(module, a, b, prefix)
    return result


# What adapter_config.json says, and the modules that it means.
MEANT = {
    "ends of names": ({"target_modules": ENDS}, ATTENTION),
    "a layer": ({"target_modules": ENDS, "layers_to_transform": [0]}, FIRST_LAYER),
    "a layer's index": ({"target_modules": ENDS, "layers_to_transform": 1}, SECOND_LAYER),
    "no layers in particular": ({"target_modules": ENDS, "layers_to_transform": []}, ATTENTION),
    "a layer of a list": (
        {"target_modules": ENDS, "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
        SECOND_LAYER,
    ),
    "whole names in every layer": (
        {"target_modules": [ATTENTION[0], "v_proj"], "layers_to_transform": [1]},
        [ATTENTION[0], ATTENTION[3]],
    ),
    "a pattern": (
        {"target_modules": r".*\.layers\.(?:0|1)\.attention\.(q_proj|v_proj)"}, ATTENTION[:4],
    ),
    "some are excluded": (
        {"target_modules": ENDS, "exclude_modules": ["layers.0.attention.q_proj"]}, ATTENTION[1:],
    ),
    "a pattern is excluded": (
        {"target_modules": ENDS, "exclude_modules": r".*\.0\..*"}, ATTENTION[2:],
    ),
    "all linear maps": ({"target_modules": "all-linear"}, LINEAR),
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "wav2vec2."])
@pytest.mark.parametrize("case", MEANT)
def test_the_modules_are_those_of_the_configuration(tmp_path, case, prefix):
    """All of them load; without any one, or with one of the others, they are refused by name."""
    fields, modules = MEANT[case]
    if case == "whole names in every layer":
        fields = fields | {"target_modules": [prefix + ATTENTION[0], "v_proj"]}
    tensors = several(modules, prefix)
    complete = ss.load_encoder(adapter(tmp_path / "complete", tensors, **fields))
    again = adapter(tmp_path / "named", tensors)
    assert_same_network(complete, ss.load_encoder(again))
    for module in modules:
        less = {name: value for name, value in tensors.items() if f"{module}." not in name}
        with pytest.raises(ss.UserError, match=rf"lacks weights .*{module}\.lora_A") as caught:
            ss.load_encoder(adapter(tmp_path / "less", less, **fields))
        assert "\n" not in str(caught.value)
    for module in sorted({*LINEAR} - {*modules})[::4]:
        more = tensors | several([module], prefix)
        with pytest.raises(ss.UserError, match=f"changes {prefix}{module}, which target_modules"):
            ss.load_encoder(adapter(tmp_path / "more", more, **fields))


def test_no_lora_weights_at_all(tmp_path):
    tensors = {"base_model.model.masked_spec_embed": A[0]}
    with pytest.raises(ss.UserError, match=r"lacks weights .*q_proj\.lora_A"):
        ss.load_encoder(adapter(tmp_path / "adapter", tensors, target_modules=ENDS))


def test_missing_weights_in_one_file(tmp_path):
    folder = Path(shutil.copytree(MODEL, tmp_path / "one"))
    tensors = {name.replace(".weight", ".default.weight"): value
               for name, value in several(SECOND_LAYER).items()}  # fmt: skip
    save(folder, weights() | tensors)
    (folder / "adapter_config.json").write_text(json.dumps(LORA | {"target_modules": ENDS}))
    with pytest.raises(ss.UserError, match=r"lacks weights .*layers\.0\.attention\.q_proj"):
        ss.load_encoder(folder)


def test_a_whole_module_that_is_incomplete(tmp_path):
    tensors = lora(QUERY) | {"base_model.model.feature_projection.projection.bias": A[0]}
    found = adapter(tmp_path / "adapter", tensors, modules_to_save=["projection"])
    with pytest.raises(ss.UserError, match=r"lacks weights .*feature_projection.projection.weight"):
        ss.load_encoder(found)


@pytest.mark.parametrize("names", [("default", "second"), ("", "other")])
@pytest.mark.parametrize("beside", [True, False])
def test_several_adapters_in_one_file(tmp_path, names, beside):
    """In the model's file or in the adapter's, with and without a name of the first."""
    both = {name.replace(".weight", f".{which}.weight" if which else ".weight"): value
            for which in names for name, value in lora(QUERY).items()}  # fmt: skip
    if beside:
        folder = adapter(tmp_path / "adapter", both)
    else:
        folder = Path(shutil.copytree(MODEL, tmp_path / "one"))
        save(folder, weights() | both)
        (folder / "adapter_config.json").write_text(json.dumps(LORA | targets(both)))
    with pytest.raises(ss.UserError, match=rf"several adapters \('{names[0]}', '{names[1]}'\)"):
        ss.load_encoder(folder)


@pytest.mark.parametrize("prefix", ["", "wav2vec2."])
def test_a_module_by_two_names(tmp_path, prefix):
    twice = {name.removeprefix("base_model.model."): value for name, value in lora(QUERY).items()}
    twice = {f"{prefix}{name}": value for name, value in twice.items()}
    found = adapter(tmp_path / "adapter", lora(QUERY) | twice, target_modules=[QUERY])
    with pytest.raises(ss.UserError, match="twice, by two names"):
        ss.load_encoder(found)


def test_an_adapter_without_weights(tmp_path):
    found = adapter(tmp_path / "adapter", lora(QUERY))
    (found / "adapter_model.safetensors").unlink()
    with pytest.raises(ss.UserError, match=r"but no adapter_model\.safetensors or"):
        ss.load_encoder(found)


@pytest.mark.parametrize("with_model", [True, False])
def test_an_adapter_of_an_adapter(tmp_path, with_model):
    first = adapter(tmp_path / "first", lora(QUERY))
    if with_model:
        shutil.copytree(MODEL, first, dirs_exist_ok=True)
    second = adapter(tmp_path / "second", lora(QUERY), first)
    with pytest.raises(ss.UserError, match=r"first is an adapter too, .* not supported; merge"):
        ss.load_encoder(second)


def test_a_merged_base_may_keep_its_adapter_config(tmp_path):
    base = plain(tmp_path / "base")
    (base / "adapter_config.json").write_text(json.dumps(LORA | {"target_modules": ENDS}))
    found = ss.load_encoder(adapter(tmp_path / "adapter", lora(QUERY), base))
    expected = ss.load_encoder(plain(tmp_path / "merged", **plus(QUERY, 3 * PRODUCT)))
    assert_same_network(found, expected)


def test_a_base_of_the_zoo(tmp_path):
    base = open_checkpoint("zoo:contrastive_s")
    tensors = base.tensors()
    name = next(name for name in tensors if name.endswith(f"{QUERY}.weight"))
    weight = tensors[name].astype(np.float32)
    a, b = draw(2, len(weight)), draw(len(weight), 2)
    found = adapter(tmp_path / "adapter", lora(QUERY, a, b), "zoo:contrastive_s")
    folder = fill(tmp_path / "merged", {"config.json": (base.folder / "config.json").read_bytes()})
    merged = weight + 3 * b.astype(np.float64) @ a
    save(folder, tensors | {name: merged.astype(np.float32)})
    assert_same_network(ss.load_encoder(found), ss.load_encoder(folder))


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


def test_an_adapter_on_the_hub_of_an_adapter(hub, tmp_path):
    hub.commits[FIRST] = files_of(adapter(tmp_path / "first", lora(QUERY)))
    second = adapter(tmp_path / "second", lora(QUERY), "org/model")
    with pytest.raises(ss.UserError, match="org/model is an adapter too"):
        ss.load_encoder(second)

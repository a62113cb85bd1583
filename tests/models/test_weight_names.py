"""The weight table: strict in both directions, every released spelling, and the way back."""

import dataclasses
import itertools
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from speechsim_jax.errors import UserError
from speechsim_jax.models import weight_names
from speechsim_jax.models.config import EncoderConfig, Wav2Vec2Config
from speechsim_jax.models.families import FAMILIES, config_from_hf
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.load import load_encoder
from speechsim_jax.models.save import save_folder
from tests.support.paths import DATA
from tests.support.torch_writer import members, state_dict, storage, tensor, zip_file

FOLDER = DATA / "parity"
LAYOUTS = sorted(path.name for path in FOLDER.iterdir())
# Whisper's weights have other names (test_whisper.py).
LIKE_WAV2VEC2 = [name for name in FAMILIES if name != "whisper"]
each_layout = pytest.mark.parametrize("layout", LAYOUTS)

QUERY = "encoder.layers.0.attention.q_proj.weight"
GAIN = "encoder.layers.1.final_layer_norm.weight"


def read(layout: str) -> tuple[Wav2Vec2Config, dict[str, np.ndarray]]:
    """A fixture's configuration and tensors, as transformers wrote them."""
    config = json.loads((FOLDER / layout / "config.json").read_text())
    return config_from_hf(config), load_file(FOLDER / layout / "model.safetensors")


def canonical(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the encoder alone, under the older names of weight norm."""
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        if name != "masked_spec_embed" and not name.endswith(("num_batches_tracked", "inv_freq")):
            renamed[name] = value
    return renamed


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype == np.float32
        assert a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


def filled(config: Wav2Vec2Config, tensors: dict) -> tuple[dict[str, np.ndarray], list[str]]:
    """What the network holds after loading, as torch tensors, and the notes."""
    _, parameters, notes = weight_names.fill(config, tensors, "models/mine")
    return weight_names.export(config, parameters), notes


def refusal(config: Wav2Vec2Config, tensors: dict) -> str:
    with pytest.raises(UserError) as error:
        weight_names.fill(config, tensors, "models/mine")
    message = str(error.value)
    assert message.startswith("models/mine: ") and "\n" not in message
    return message


# --- the table and the way back -------------------------------------------------------------------


@each_layout
def test_export_gives_back_the_bits(layout):
    config, tensors = read(layout)
    exported, notes = filled(config, tensors)
    assert notes == []
    assert_equal(exported, canonical(tensors))


@each_layout
def test_every_parameter_has_one_row(layout):
    config, tensors = read(layout)
    table = weight_names.weight_table(config)
    assert {row.name for row in table} == canonical(tensors).keys()
    assert len({row.path for row in table}) == len({row.name for row in table}) == len(table)
    _, parameters, _ = weight_names.fill(config, tensors, "here")
    leaves = jax.tree.leaves(parameters)
    assert len(leaves) == len(table)
    assert all(leaf.dtype == np.float32 for leaf in leaves)


def test_models_of_one_architecture_share_nothing():
    config = middle("hubert")
    first, second = (random_tensors(config, seed) for seed in (0, 1))
    _, parameters, _ = weight_names.fill(config, first, "first")
    weight_names.fill(config, second, "second")
    assert_equal(weight_names.export(config, parameters), first)
    shapes = jax.tree.leaves(weight_names.abstract_network(config)[1])
    assert all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes)


# --- strictness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["wav2vec2-large", "hubert-batch-norm", "wavlm-base"])
def test_any_missing_tensor_is_refused(layout):
    config, tensors = read(layout)
    table = weight_names.weight_table(config)
    encoder = canonical(tensors)
    for name in encoder:
        with pytest.raises(UserError, match="1 missing: ") as error:
            weight_names._check({n: t for n, t in encoder.items() if n != name}, table, "here")
        assert name in str(error.value)


@pytest.mark.parametrize("prefix", ["", "hubert."])
@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.3.attention.q_proj.weight",  # a layer too many
        "encoder.layers.0.attention.rel_attn_embed.weight",  # WavLM's
        "feature_extractor.conv_layers.1.layer_norm.weight",  # another norm
        "feature_extractor.conv_layers.0.conv.bias",  # conv_bias is false
        "adapter.layers.0.conv.weight",
        "surprise",
    ],
)
def test_unexpected_tensor(prefix, name):
    config, tensors = read("hubert-base")
    tensors = {prefix + n: t for n, t in tensors.items()} | {prefix + name: np.zeros(3, np.float32)}
    message = refusal(config, tensors)
    assert f"1 unexpected: {name}" in message and "missing" not in message


@pytest.mark.parametrize(
    "name, change",
    [
        (QUERY, lambda t: t[:-1]),
        (GAIN, lambda t: t[:, None]),
        (GAIN, lambda t: t[:1]),
        ("feature_extractor.conv_layers.1.conv.weight", lambda t: t[:, :, :2]),
        ("feature_projection.projection.weight", lambda t: t.T),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", lambda t: t.T),
    ],
)
def test_misshapen_tensor(name, change):
    config, tensors = read("hubert-base")
    expected = list(tensors[name].shape)
    tensors[name] = change(tensors[name])
    message = refusal(config, tensors)
    assert f"{list(tensors[name].shape)} instead of {expected}" in message
    assert "missing" not in message and "unexpected" not in message


def test_everything_wrong_is_said_at_once():
    config, tensors = read("wavlm-large")
    del tensors[QUERY]
    tensors[GAIN] = tensors[GAIN][:5]
    tensors["encoder.extra"] = np.zeros(2, np.float32)
    message = refusal(config, tensors)
    assert "1 missing: " + QUERY in message
    assert "1 unexpected: encoder.extra" in message
    assert f"1 of another shape: {GAIN} [5] instead of [32]" in message


def test_long_lists_are_cut():
    config, tensors = read("hubert-base")
    message = refusal(config, {QUERY: tensors[QUERY]})
    assert len(message) < 500 and " more" in message
    count = len(weight_names.weight_table(config)) - 1
    assert f"{count} missing: " in message and f"and {count - 4} more" in message


def test_weights_of_another_family_are_refused():
    config, tensors = read("wavlm-base")
    message = refusal(config, {f"hubert.{name}": t for name, t in tensors.items()})
    assert "missing" in message and "unexpected" in message


# --- spellings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["wav2vec2-large", "hubert-base", "wavlm-large"])
@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("greek", [False, True])
def test_spellings(layout, prefixed, newer, greek):
    config, tensors = read(layout)
    expected = canonical(tensors)
    spelt = dict(tensors) if newer else dict(expected)
    if greek:
        for old, new in ((".weight", ".gamma"), (".bias", ".beta")):
            norm = "layer_norm" + old
            spelt = {
                n.removesuffix(old) + new if n.endswith(norm) else n: t for n, t in spelt.items()
            }
    if prefixed:
        spelt = {f"{config.family}.{name}": value for name, value in spelt.items()}
    exported, notes = filled(config, spelt)
    assert notes == []
    assert_equal(exported, expected)


HEADS = {
    "wav2vec2": ("lm_head.weight", "project_q.weight", "quantizer.codevectors", "project_hid.bias"),
    "hubert": ("lm_head.weight", "lm_head.bias", "classifier.weight", "layer_weights"),
    "wavlm": ("projector.weight", "classifier.bias", "tdnn.0.kernel.weight", "objective.weight"),
}


@pytest.mark.parametrize("layout", ["wav2vec2-base", "hubert-large", "wavlm-base"])
def test_heads_outside_the_prefix_are_one_note(layout):
    config, tensors = read(layout)
    prefixed = {f"{config.family}.{name}": t for name, t in tensors.items()}
    heads = {name: np.ones(3, np.float32) for name in HEADS[config.family]}
    exported, notes = filled(config, prefixed | heads | {"anything": np.ones(1, np.float32)})
    assert_equal(exported, canonical(tensors))
    assert len(notes) == 1 and notes[0].startswith("models/mine: left out ")
    assert all(name in notes[0] for name in heads) and "and 1 more" in notes[0]


def test_heads_of_a_file_without_prefix():
    config, tensors = read("hubert-base")
    heads = {name: np.ones(3, np.float32) for name in ("lm_head.weight", "lm_head.bias")}
    exported, notes = filled(config, tensors | heads)
    assert_equal(exported, canonical(tensors))
    assert len(notes) == 1 and "lm_head.weight, lm_head.bias" in notes[0]


@pytest.mark.parametrize("prefix", ["", "wav2vec2."])
def test_parts_for_training_are_ignored(prefix):
    config, tensors = read("wav2vec2-base")
    expected = canonical(tensors)
    training = {
        name: np.ones(3, np.float32)
        for name in (
            "masked_spec_embed",
            "mask_time_emb_vector",
            "quantizer.codevectors",
            "quantizer.weight_proj.weight",
            "project_q.weight",
            "project_hid.bias",
        )
    }
    for extra in ({}, training):
        exported, notes = filled(config, {prefix + n: t for n, t in (expected | extra).items()})
        assert notes == []
        assert_equal(exported, expected)


# --- biases of the convolutions -------------------------------------------------------------------


def conv_biases(tensors: dict) -> list[str]:
    return [name for name in tensors if ".conv.bias" in name and name.startswith("feature_")]


@pytest.mark.parametrize("prefix", ["", "hubert."])
def test_all_conv_biases_absent_are_zero_with_a_note(prefix):
    config, tensors = read("hubert-large")
    names = conv_biases(tensors)
    assert len(names) == 7
    expected = canonical(tensors)
    without = {prefix + name: t for name, t in tensors.items() if name not in names}
    exported, notes = filled(config, without)
    assert len(notes) == 1 and "no convolution has a bias" in notes[0]
    assert notes[0].startswith("models/mine: ")
    assert_equal(exported, expected | {name: np.zeros_like(expected[name]) for name in names})


def test_one_conv_bias_absent_is_an_error():
    config, tensors = read("hubert-large")
    names = conv_biases(tensors)
    for name in (names[0], names[-1]):
        message = refusal(config, {n: t for n, t in tensors.items() if n != name})
        assert f"1 missing: {name}" in message
    message = refusal(config, {n: t for n, t in tensors.items() if n not in names[1:]})
    assert "6 missing: " in message


# --- element types and containers -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(dtype):
    config, tensors = read("wavlm-large")
    stored = {name: t.astype(dtype) for name, t in tensors.items()}
    exported, notes = filled(config, stored)
    assert notes == []
    assert_equal(exported, {n: t.astype(np.float32) for n, t in canonical(stored).items()})


def torch_zip_of(tensors: dict[str, np.ndarray]) -> bytes:
    values, blocks = {}, {}
    for key, (name, value) in enumerate(tensors.items()):
        strides = tuple(step // value.itemsize for step in value.strides)
        values[name] = tensor(storage("FloatStorage", str(key), value.size), value.shape, strides)
        blocks[str(key)] = value.astype("<f4").tobytes()
    return zip_file(members(state_dict(values), blocks))


@pytest.mark.parametrize("layout", ["hubert-base", "wavlm-large"])
def test_pytorch_model_bin_equals_safetensors(layout, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(FOLDER / layout / name, tmp_path)
    tensors = {name: np.ascontiguousarray(t) for name, t in read(layout)[1].items()}
    (tmp_path / "pytorch_model.bin").write_bytes(torch_zip_of(tensors))
    ours, theirs = load_encoder(tmp_path, name="mine"), load_encoder(FOLDER / layout)
    assert (ours.name, theirs.name) == ("mine", layout)
    assert ours.config == theirs.config
    for a, b in zip(jax.tree.leaves(ours.parameters), jax.tree.leaves(theirs.parameters)):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert ours.provenance["sha256"] != theirs.provenance["sha256"]


def test_notes_are_logged_and_kept(tmp_path, caplog):
    config, tensors = read("hubert-large")
    names = conv_biases(tensors)
    folder = save_folder(
        tmp_path / "m", config, {n: t for n, t in canonical(tensors).items() if n not in names}
    )
    encoder = load_encoder(folder)
    assert len(encoder.provenance["notes"]) == 1
    assert encoder.provenance["notes"][0] in caplog.text


# --- random weights -------------------------------------------------------------------------------

MIDDLE = dict(
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    conv_dim=(64,) * 7,
    conv_kernel=(10, 3, 3, 3, 3, 2, 2),
    conv_stride=(5, 2, 2, 2, 2, 2, 2),
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
OF_SAMPLES = {
    name: family.config
    for name, family in FAMILIES.items()
    if issubclass(family.config, Wav2Vec2Config)
}
each_family = pytest.mark.parametrize("family", OF_SAMPLES)


def middle(family: str, **changes) -> EncoderConfig:
    """A small architecture, without the changes that are no options of the family."""
    kind = FAMILIES[family].config
    fields = {field.name for field in dataclasses.fields(kind)}
    config = kind(family=family, **{n: v for n, v in MIDDLE.items() if n in fields})
    options = fields & {*config.to_hf(), "do_normalize"}
    return dataclasses.replace(config, **{n: v for n, v in changes.items() if n in options})


@each_family
def test_random_tensors_are_a_function_of_seed_and_family(family):
    config = middle(family)
    first = random_tensors(config, 3)
    assert_equal(first, random_tensors(config, 3))
    exported, notes = filled(config, first)
    assert notes == []
    assert_equal(exported, first)
    other = random_tensors(config, 4)
    drawn = [name for name, t in first.items() if np.ptp(t) > 0]
    assert len(drawn) > 20
    assert not any(np.array_equal(first[name], other[name]) for name in drawn)


def test_random_tensors_do_not_depend_on_depth():
    deep, shallow = (random_tensors(middle("hubert", num_hidden_layers=n), 0) for n in (3, 1))
    assert shallow.keys() < deep.keys()
    for name in shallow:
        assert np.array_equal(shallow[name], deep[name])


def test_families_and_tensors_differ():
    drawn = [random_tensors(middle(family), 0) for family in LIKE_WAV2VEC2]
    for name in (QUERY, "encoder.layers.0.self_attn.linear_q.weight"):
        queries = [tensors[name] for tensors in drawn if name in tensors]
        assert len(queries) > 1
        for a, b in itertools.combinations(queries, 2):
            assert not np.array_equal(a, b)
    names = [f"encoder.layers.{i}.attention.{n}_proj.weight" for i in (0, 1) for n in "qkv"]
    for a, b in itertools.combinations(names, 2):
        assert not np.array_equal(drawn[0][a], drawn[0][b])


@each_family
def test_random_statistics_are_those_of_transformers(family):
    config = middle(family, feat_extract_norm="layer", conv_bias=True)
    tensors = random_tensors(config, 0)
    seen = set()

    def check(name: str, std: float, uniform: bool = False) -> None:
        values = tensors[name].astype(np.float64)
        seen.add(name)
        assert abs(values.std() / std - 1) < 5 / np.sqrt(values.size), name
        assert abs(values.mean()) < 5 * std / np.sqrt(values.size), name
        if uniform:
            assert np.abs(values).max() <= std * np.sqrt(3) * (1 + 1e-6), name
        elif values.size > 1000:
            assert np.abs(values).max() > 2.5 * std, name

    def constant(name: str, value: float) -> None:
        seen.add(name)
        assert (tensors[name] == value).all(), name

    at = "encoder.pos_conv_embed.conv."
    fan_in = 96 // 4 * 16
    if family == "data2vec-audio":
        for index in range(16):
            at = f"encoder.pos_conv_embed.layers.{index}.conv."
            check(at + "weight", np.sqrt(2 / (96 // 4 * 19)))
            constant(at + "bias", 0)
    elif isinstance(config, Wav2Vec2Config):
        check(at + "weight_v", np.sqrt(2 / fan_in) if family == "hubert" else 2 / np.sqrt(96 * 16))
        norms = np.sqrt(np.square(tensors[at + "weight_v"]).sum((0, 1), keepdims=True))
        np.testing.assert_allclose(tensors[at + "weight_g"], norms, rtol=1e-5)
        seen.add(at + "weight_g")
        constant(at + "bias", 0)
    plain = family in ("hubert", "sew")
    projection = tensors.get("feature_projection.projection.weight")
    bound = 1 / np.sqrt(64 if projection is None else projection.shape[1])
    for part in ("weight", "bias"):
        name = f"feature_projection.projection.{part}"
        if not plain:
            check(name, bound / np.sqrt(3), uniform=True)
    for index, kernel in enumerate(getattr(config, "conv_kernel", ())):
        fan_in = kernel * (64 if index else 1)
        at = f"feature_extractor.conv_layers.{index}.conv."
        check(at + "weight", np.sqrt(2 / fan_in))
        if plain:
            constant(at + "bias", 0)
        else:
            check(at + "bias", np.sqrt(1 / fan_in / 3), uniform=True)
    for name, value in tensors.items():
        if name in seen:
            continue
        if "_norm" in name or name.endswith("rel_pos_const"):
            constant(name, 0 if name.endswith(("bias", "running_mean")) else 1)
        elif "pos_bias" in name:
            check(name, np.sqrt(6 / sum(value.shape) / 3), uniform=True)
        elif "conv_module" in name:
            check(name, np.sqrt(2 / np.prod(value.shape[1:])))
        elif name.endswith("bias"):
            constant(name, 0)
        else:
            check(name, 0.02)
    assert seen == tensors.keys()


@each_family
def test_saved_folder_loads(family, tmp_path):
    config = middle(family, do_normalize=False, do_stable_layer_norm=True)
    tensors = random_tensors(config, 1)
    encoder = load_encoder(save_folder(tmp_path / "new" / family, config, tensors))
    assert (encoder.config, encoder.name) == (config, family)
    assert encoder.provenance["notes"] == []
    assert_equal(weight_names.export(encoder.config, encoder.parameters), tensors)


def test_the_families_that_are_one_network_share_its_graph():
    """And with it what is compiled; WavLM's attention is another."""
    config = Wav2Vec2Config(family="wav2vec2", num_hidden_layers=2)
    graphs = [
        weight_names.abstract_network(dataclasses.replace(config, family=family))[0]
        for family in ("wav2vec2", "hubert", "wavlm")
    ]
    assert graphs[0] == graphs[1] != graphs[2]

"""Random baselines: the architecture of a checkpoint, and none of its weights."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.errors import did_you_mean
from speechsim_jax.models import weight_names
from speechsim_jax.models.initial_weights import random_tensors
from tests.support.parity import assert_same_network
from tests.support.paths import DATA

FOLDER = DATA / "parity"
LAYOUTS = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture
def bare(tmp_path) -> Path:
    """A checkpoint without weights."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(FOLDER / "wavlm-base" / name, folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_architecture_of_the_checkpoint_and_weights_of_the_family(layout):
    trained, random = (load(FOLDER / layout) for load in (ss.load_encoder, ss.random_like))
    assert random.config == trained.config
    drawn = weight_names.export(random.config, random.parameters)
    expected = random_tensors(trained.config, 0)
    assert drawn.keys() == expected.keys()
    assert all(np.array_equal(drawn[name], expected[name]) for name in drawn)
    shapes = [jax.tree.map(np.shape, e.parameters) for e in (trained, random)]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    # In the fixtures every tensor was redrawn, biases and norms too.
    tensors = weight_names.export(trained.config, trained.parameters)
    assert not any(np.array_equal(drawn[name], tensors[name]) for name in drawn)


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_spread_of_the_draws(family):
    """Linear maps N(0, 0.02), convolutions He normal, norms 1 and 0 (see also test_weights.py)."""
    random = ss.random_like(FOLDER / f"{family}-base", 5)
    tensors = weight_names.export(random.config, random.parameters)

    def spread(names: str) -> tuple[float, float]:
        values = np.concatenate([t.ravel() for n, t in tensors.items() if names in n])
        return float(values.std(dtype=np.float64)), 4 / np.sqrt(2 * values.size)

    std, relative = spread("intermediate_dense.weight")
    assert abs(std / 0.02 - 1) < relative
    std, relative = spread("conv_layers.3.conv.weight")
    assert abs(std / np.sqrt(2 / (24 * 3)) - 1) < relative
    for name, value in (("layer_norm.weight", 1), ("layer_norm.bias", 0), ("q_proj.bias", 0)):
        found = [tensor for n, tensor in tensors.items() if n.endswith(name)]
        assert found and all((tensor == value).all() for tensor in found)


def test_seeds():
    source = FOLDER / "hubert-large"
    first, again, other = (ss.random_like(source, seed) for seed in (3, 3, 4))
    assert_same_network(first, again)
    assert first.provenance == again.provenance
    assert first.provenance["sha256"] != other.provenance["sha256"]
    names = random_tensors(first.config, 3).items()
    drawn = [name for name, tensor in names if np.ptp(tensor) > 0]
    a, b = (weight_names.export(e.config, e.parameters) for e in (first, other))
    assert len(drawn) > 20 and not any(np.array_equal(a[name], b[name]) for name in drawn)


def test_no_weight_is_needed(bare):
    with pytest.raises(ss.UserError, match="there are no weights"):
        ss.load_encoder(bare)
    assert_same_network(ss.random_like(bare), ss.random_like(FOLDER / "wavlm-base"))


def test_names_and_provenance(bare):
    plain, named, seeded = (
        ss.load_encoder(f"random:{bare}"),
        ss.load_encoder(f"random:{bare}", name="chance"),
        ss.load_encoder(f"random:{bare}@12"),
    )
    assert [e.name for e in (plain, named, seeded)] == ["random:bare", "chance", "random:bare@12"]
    assert [e.provenance["seed"] for e in (plain, named, seeded)] == [0, 0, 12]
    assert_same_network(seeded, ss.random_like(bare, 12))
    assert_same_network(plain, named)
    tensors = random_tensors(plain.config, 0)
    assert plain.provenance == {
        "source": f"random:{bare}",
        "revision": None,
        "sha256": weight_names.digest(tensors),
        "model_type": "wavlm",
        "do_normalize": False,
        "notes": [],
        "seed": 0,
    }
    json.dumps(plain.provenance)


def test_like_an_encoder():
    encoder = ss.load_encoder(FOLDER / "wav2vec2-base", name="mine")
    encoder = dataclasses.replace(encoder, provenance={**encoder.provenance, "revision": "abc"})
    random = ss.random_like(encoder, seed=1)
    assert_same_network(random, ss.random_like(FOLDER / "wav2vec2-base", 1))
    assert random.name == "random:mine@1"
    assert random.provenance["source"] == f"random:{FOLDER / 'wav2vec2-base'}"
    assert random.provenance["revision"] == "abc"
    bare = dataclasses.replace(encoder, provenance={})
    assert ss.random_like(bare).provenance["source"] == "random:mine"


def test_the_hash_is_of_names_shapes_and_bytes():
    a, b = np.arange(6, dtype=np.float32), np.zeros((2, 3), np.float32)
    same = {weight_names.digest({"a": a, "b": b}), weight_names.digest({"b": b, "a": a.copy()})}
    assert len(same) == 1 and len(bytes.fromhex(*same)) == 32
    others = [
        {"a": a},
        {"a": b, "b": a},
        {"a": a, "b": b.reshape(3, 2)},
        {"a": a, "b": b.astype(np.float64)},
        {"a": a, "b": np.float32(-0.0) + b * np.float32(-1)},
        {"a": a[::-1], "b": b},
    ]
    digests = [*same, *map(weight_names.digest, others)]
    assert not any(x == y for x, y in itertools.combinations(digests, 2))
    assert weight_names.digest({"a": a[::2]}) == weight_names.digest({"a": a[::2].copy()})


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("random:", "^random:: neither a folder nor a hub id"),
        ("random:./no/such@3", "^./no/such: there is no such folder"),
        ("random:a b", "^a b: neither a folder nor a hub id"),
    ],
)
def test_mistakes(source, words):
    with pytest.raises(ss.UserError, match=words):
        ss.load_encoder(source, local_files_only=True)


def test_a_negative_seed(bare):
    with pytest.raises(ss.UserError, match="seed is -1; expected 0 or a positive number"):
        ss.random_like(bare, -1)


def test_random_models_in_a_comparison(bare):
    """The string is enough wherever a model is meant; the same draws are the same model."""
    rng = np.random.default_rng(0)
    audio = [(0.1 * rng.standard_normal(8000)).astype(np.float32)]
    result = ss.compare(
        [f"random:{bare}", f"random:{bare}@1", f"random:{bare}@0"],
        audio,
        measures=["lincka"],
        progress=False,
        layers=(0,),
    )
    assert result.models == ("random:bare#1", "random:bare@1", "random:bare#2")
    scores = np.asarray(result.matrix("lincka"))
    assert scores[0, 2] == pytest.approx(1, abs=1e-6) and scores[0, 1] < 0.99
    models = result.attributes["models"]
    assert [models[name]["seed"] for name in result.models] == [0, 1, 0]
    assert models["random:bare@1"]["source"] == f"random:{bare}"


def test_repr_is_three_lines():
    encoder = ss.load_encoder(FOLDER / "wavlm-base", name="mine")
    lines = repr(encoder).splitlines()
    assert len(lines) == 3 and all(len(line) < 200 for line in lines)
    assert "'mine'" in lines[0] and "wavlm" in lines[0]
    for fact in ("3 layers", "32 neurons", "4 heads", "hop 320"):
        assert fact in lines[1]
    assert str(FOLDER / "wavlm-base") in lines[2]


@pytest.mark.parametrize(
    ("name", "question"), [("runs/min", "; did you mean 'runs/mine'?"), ("x", ""), ("", "")]
)
def test_did_you_mean(name, question):
    assert did_you_mean(name, iter(["runs/mine", "zoo:small"])) == question


def test_misspelt_sources(tmp_path):
    with pytest.raises(ss.UserError, match=r"did you mean 'zoo:contrastive_s'\?$"):
        ss.load_encoder("zoo:contrastiv_s")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretraine.txt").touch()
    with pytest.raises(ss.UserError, match=r"no such folder; did you mean 'pretrained'\?$"):
        ss.load_encoder(tmp_path / "pretraine")

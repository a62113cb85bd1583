"""Recipes: every value of a TOML file is read, and errors name the key and what was expected."""

import dataclasses
import json
from pathlib import Path

import pytest

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.training.model import Contrastive
from speechsim_jax.training.objectives.masking import Spans
from speechsim_jax.training.optimiser import AdamW
from speechsim_jax.training.recipe import (
    RECIPES,
    Annealing,
    Audio,
    ContrastiveRecipe,
    Crops,
    CTCRecipe,
    Recipe,
    read_recipe,
)
from tests.support.paths import ROOT

ZOO = sorted((ROOT / "experiments" / "zoo").glob("*.toml"))


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


def test_values_are_read(tmp_path):
    recipe = read(
        tmp_path,
        """
        objective = "contrastive"
        steps = 70
        snapshots = [0, 70]
        [audio]
        exclude = ["a/*", "b"]
        [crops]
        rows = 3
        [encoder]
        hidden_size = 24
        conv_dim = [8, 8]
        conv_kernel = [10, 3]
        conv_stride = [5, 2]
        [head]
        num_negatives = 7
        contrastive_logits_temperature = 1
        [optimiser]
        schedule = "tri-stage"
        """,
    )
    assert recipe == ContrastiveRecipe(
        steps=70,
        snapshots=(0, 70),
        audio=Audio(exclude=("a/*", "b")),
        crops=Crops(rows=3),
        encoder=Wav2Vec2Config(
            "wav2vec2", hidden_size=24, conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2)
        ),
        head=Contrastive(num_negatives=7, contrastive_logits_temperature=1),
        optimiser=AdamW(schedule="tri-stage"),
    )
    # Parts of recipes are keys of compiled programs.
    assert hash(recipe) == hash(read_recipe(tmp_path / "recipe.toml"))
    assert json.loads(json.dumps(recipe.as_dict()))["objective"] == "contrastive"


def test_defaults_are_those_of_base():
    assert {name: kind().as_dict()["objective"] for name, kind in RECIPES.items()} == {
        name: name for name in ("contrastive", "predictive", "ctc")
    }
    assert RECIPES["predictive"]().encoder == Wav2Vec2Config("hubert")  # pyright: ignore
    assert RECIPES["predictive"]().masks == Spans(0.8)  # pyright: ignore
    assert CTCRecipe().dropout.hidden_dropout == 0.1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3", "objective = None; expected one of contrastive, predictive, ctc"),
        ('objective = "contrastive"\nstep = 3', "step is not known; expected one of steps, seed, "),
        ('objective = "ctc"\n[crops]\nrows = 2', "crops is not known"),
        (
            'objective = "contrastive"\n[encoder]\nadapter_attn_dim = 6\n'
            "do_stable_layer_norm = true",
            "adapters are not pretrained",
        ),
        ('objective = "contrastive"\n[head]\nunits = 5', "head.units is not known; expected one"),
        ('objective = "ctc"\nsteps = "many"', "steps = 'many'; expected int"),
        ('objective = "ctc"\nsteps = true', "steps = True; expected int"),
        ('objective = "ctc"\nsteps = 2.5', "steps = 2.5; expected int"),
        ('objective = "ctc"\ndtype = "int8"', "dtype = 'int8'; expected one of float32, "),
        ('objective = "ctc"\nmasks = 3', r"masks = 3; expected a table \[masks\]"),
        ('objective = "ctc"\nalphabet = ["a"]', r"alphabet = \['a'\]; expected str"),
        (
            'objective = "ctc"\n[audio]\ninclude = "a"',
            r"include = 'a'; expected a list of str",
        ),
        ('objective = "ctc"\n[optimiser]\nb1 = "x"', r"optimiser.b1 = 'x'; expected float or int"),
        ('objective = "ctc"\nsteps = 0', "steps=0"),
        ('objective = "ctc"\nsteps = 9\nsnapshots = [10]', r"snapshots=\(10,\): expected steps fr"),
        ('objective = "ctc"\n[masks]\nlength = 0', "expected a length of 1 or more"),
        ('objective = "ctc"\n[', "not valid TOML"),
    ],
)
def test_errors_name_the_key(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "recipe.toml"))


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: cannot be read"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Audio(held_out_share=1),
        lambda: Crops(rows=0),
        lambda: Annealing(start=0.1),
        lambda: AdamW(peak_learning_rate=0),
        lambda: AdamW(final_share=0),
    ],
)
def test_values_out_of_range(make):
    with pytest.raises(UserError, match="expected"):
        make()


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_recipes_of_the_zoo(path):
    recipe = read_recipe(path)
    assert path.stem.startswith(("contrastive", "predictive"))
    # ShareAlike: weights that are shipped must not be trained on it
    assert "fsdd/*" in recipe.audio.exclude or "fsdd" not in str(recipe.audio.include)
    # fine-tuned models are tested on speakers that no training used
    assert {"libri-1688", "libri-533"} <= set(recipe.audio.held_out)
    assert recipe.dtype == "float16"


def test_the_other_seed_differs_in_the_seed_only():
    recipes = {path.stem: read_recipe(path) for path in ZOO}
    first, second = recipes["contrastive_s"], recipes["contrastive_s_seed1"]
    assert first.seed != second.seed
    assert dataclasses.replace(second, seed=first.seed, snapshots=first.snapshots) == first

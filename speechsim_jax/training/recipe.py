"""A training in numbers: every one of them has a place in a TOML file.

    objective = "contrastive"        # or "predictive", "ctc"
    steps = 6000
    [encoder]                        # the fields of EncoderConfig
    hidden_size = 96
    [optimiser]                      # of AdamW
    peak_learning_rate = 2e-3

Tables and keys are the fields below; what is left out has its default, and what is not known is an
error. The defaults are those of Base (wav2vec 2.0, HuBERT), but for batches that a small machine
can hold.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from speechsim_jax.errors import UserError
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.save import SavedDtype
from speechsim_jax.training.model import Contrastive, Predictive
from speechsim_jax.training.objectives.masking import Spans
from speechsim_jax.training.optimiser import AdamW
from speechsim_jax.training.random_keys import Rates


@dataclasses.dataclass(frozen=True)
class Audio:
    """What is heard, and what is kept for tests.

    `include`, `exclude`: patterns of utterance ids, which are paths unless a manifest has ids; "*"
    stands for anything. `held_out`: speakers that training never hears; `held_out_share`: and so
    large a share of the others, drawn by `held_out_seed`. `memory_gb`: for audio once it is
    decoded.
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    held_out_share: float | int = 0.1
    held_out_seed: int = 0
    memory_gb: float | int = 2.0

    def __post_init__(self):
        if not 0 <= self.held_out_share < 1:
            raise UserError(f"held_out_share={self.held_out_share}: expected 0 or more, below 1")


@dataclasses.dataclass(frozen=True)
class Crops:
    """What a step of pretraining hears: `rows` crops of `frames` frames.

    `speed_change`: each is played slower or faster by up to such a share, and with it lower or
    higher (Ko et al. 2015); 0.1 makes more speakers of few.
    """

    rows: int = 8
    frames: int = 250
    speed_change: float | int = 0.0

    def __post_init__(self):
        if self.rows < 1 or self.frames < 1:
            raise UserError(f"{self}: expected at least one row and one frame")
        if not 0 <= self.speed_change < 1:
            raise UserError(f"speed_change={self.speed_change}: expected 0 or more, below 1")


@dataclasses.dataclass(frozen=True)
class Utterances:
    """What a step of fine-tuning hears: about `batch_seconds` of whole utterances.

    They are padded to one of `buckets` lengths; those longer than `max_seconds` are left out.
    """

    batch_seconds: float | int = 40.0
    max_seconds: float | int = 20.0
    buckets: int = 3


@dataclasses.dataclass(frozen=True)
class Annealing:
    """The temperature of the quantizer's softmax: max(start * decay^step, end)."""

    start: float | int = 2.0
    end: float | int = 0.5
    decay: float | int = 0.999995

    def __post_init__(self):
        if not (self.start >= self.end > 0 and 0 < self.decay <= 1):
            raise UserError(f"{self}: expected start >= end > 0 and a decay up to 1")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What all trainings have in common.

    `log_every`: steps between lines of metrics.jsonl; `evaluate_every`: between looks at speakers
    held out; `snapshots`: steps after which the encoder is kept. `dtype` is that of the files.
    """

    name: ClassVar[str] = ""

    steps: int = 100_000
    seed: int = 0
    audio: Audio = field(default_factory=Audio)
    optimiser: AdamW = field(default_factory=AdamW)
    dropout: Rates = field(default_factory=Rates)
    log_every: int = 20
    evaluate_every: int = 1000
    snapshots: tuple[int, ...] = ()
    dtype: SavedDtype = "float32"

    def __post_init__(self):
        if self.steps < 1 or self.log_every < 1 or self.evaluate_every < 1 or self.seed < 0:
            raise UserError(
                f"steps={self.steps}, log_every={self.log_every}, evaluate_every="
                f"{self.evaluate_every}, seed={self.seed}: expected 1 or more, a seed of 0 or more"
            )
        if not all(0 <= step <= self.steps for step in self.snapshots):
            raise UserError(f"snapshots={self.snapshots}: expected steps from 0 to {self.steps}")

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {"objective": self.name, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Pretraining(Recipe):
    """`feature_grad_mult` scales the gradient of the convolutions (fairseq); 0 freezes them."""

    encoder: EncoderConfig = field(default_factory=partial(EncoderConfig, "wav2vec2"))
    crops: Crops = field(default_factory=Crops)
    evaluation_speakers: int = 32
    feature_grad_mult: float | int = 0.1


@dataclasses.dataclass(frozen=True)
class ContrastiveRecipe(Pretraining):
    """wav2vec 2.0."""

    name: ClassVar[str] = "contrastive"

    encoder: EncoderConfig = field(default_factory=partial(EncoderConfig, "wav2vec2"))
    head: Contrastive = field(default_factory=Contrastive)
    masks: Spans = field(default_factory=Spans)
    temperature: Annealing = field(default_factory=Annealing)


@dataclasses.dataclass(frozen=True)
class PredictiveRecipe(Pretraining):
    """HuBERT; the units are clustered on so many minutes of audio."""

    name: ClassVar[str] = "predictive"

    encoder: EncoderConfig = field(default_factory=partial(EncoderConfig, "hubert"))
    head: Predictive = field(default_factory=Predictive)
    masks: Spans = field(default_factory=partial(Spans, probability=0.8))
    cluster_minutes: float | int = 600.0


@dataclasses.dataclass(frozen=True)
class CTCRecipe(Recipe):
    """Fine-tuning; the encoder is that of the checkpoint.

    `masks` hide frames, `neuron_masks` neurons (SpecAugment). `alphabet`: the characters that are
    spelled, others are left out of transcripts; those that occur in training if empty.
    """

    name: ClassVar[str] = "ctc"

    utterances: Utterances = field(default_factory=Utterances)
    masks: Spans = field(default_factory=partial(Spans, probability=0.05))
    neuron_masks: Spans = field(default_factory=partial(Spans, probability=0.0))
    freeze_feature_encoder: bool = True
    alphabet: str = ""
    dropout: Rates = field(default_factory=partial(Rates, hidden_dropout=0.1, final_dropout=0.1))


RECIPES: dict[str, type[Recipe]] = {
    kind.name: kind for kind in (ContrastiveRecipe, PredictiveRecipe, CTCRecipe)
}


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file. Raises UserError, in one line, for what is wrong with it."""
    try:
        found = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: is no TOML ({error})") from error
    name = found.pop("objective", None)
    if name not in RECIPES:
        raise UserError(f"{path}: objective = {name!r}; expected one of {', '.join(RECIPES)}")
    try:
        return _filled(RECIPES[name](), found, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _filled(default: Any, table: Mapping[str, Any], where: str) -> Any:
    """The dataclass `default` with the values of a table in their places."""
    hints = typing.get_type_hints(type(default))
    fields = [each.name for each in dataclasses.fields(default)]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            raise UserError(f"{where}{name} is not known; expected one of {', '.join(fields)}")
        current = getattr(default, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{where}{name} = {value!r}; expected a table [{where}{name}]")
            values[name] = _filled(current, value, f"{where}{name}.")
            continue
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[name]):
            expected = _in_words(hints[name])
            raise UserError(f"{where}{name} = {table[name]!r}; expected {expected}")
        values[name] = value
    return dataclasses.replace(default, **values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that TOML can hold is of a field's type."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return value in inner
    if kind in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in inner)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(each, inner[0]) for each in value)
    if hint is float:  # EncoderConfig's, where 1 will do
        return type(value) in (float, int)
    return type(value) is hint


def _in_words(hint: Any) -> str:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(inner)}"
    if kind in (types.UnionType, typing.Union):
        return " or ".join(map(_in_words, inner))
    return f"a list of {_in_words(inner[0])}" if kind is tuple else hint.__name__

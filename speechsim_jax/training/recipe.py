"""Recipes: all settings of a training, as read from a TOML file.

    objective = "contrastive"        # or "predictive", "ctc"
    steps = 6000
    [encoder]                        # the fields of Wav2Vec2Config
    hidden_size = 96
    [optimiser]                      # of AdamW
    peak_learning_rate = 2e-3

Tables and keys are the fields below; unknown ones are errors. The defaults are those of Base
(wav2vec 2.0, HuBERT), except for smaller batches.
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
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.save import SavedDtype
from speechsim_jax.training.model import Contrastive, Predictive
from speechsim_jax.training.objectives.masking import Spans
from speechsim_jax.training.optimiser import AdamW
from speechsim_jax.training.random_keys import DropoutRates


@dataclasses.dataclass(frozen=True)
class Audio:
    """Which audio to train on, and which to hold out.

    Attributes:
        include: Patterns ("*" matches anything) of the ids of utterances to use; ids are paths
            unless a manifest has ids.
        exclude: Patterns of the ids of utterances to leave out.
        held_out: Speakers to evaluate on, who are not trained on.
        held_out_share: Share of the other speakers that is held out, too.
        held_out_seed: Of the choice of these.
        memory_gb: Size of the cache of decoded audio.
        speaker_from: Regular expression whose group in an id is the speaker, where neither a
            manifest nor the layout of a public corpus says who speaks; none if empty.

    Raises:
        UserError: A share outside [0, 1).
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    held_out_share: float | int = 0.1
    held_out_seed: int = 0
    memory_gb: float | int = 2.0
    speaker_from: str = ""

    def __post_init__(self):
        if not 0 <= self.held_out_share < 1:
            raise UserError(f"held_out_share={self.held_out_share}: expected 0 or more, below 1")


@dataclasses.dataclass(frozen=True)
class Crops:
    """The batch of a step of pretraining.

    Attributes:
        rows: Number of crops.
        frames: Frames of a crop.
        speed_change: Largest relative change of the speed, and with it of the pitch, which is drawn
            for each crop; 0.1 makes more speakers of few (Ko et al. 2015).

    Raises:
        UserError: Values out of range.
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
    """The batch of a step of fine-tuning, of uncut utterances.

    Attributes:
        batch_seconds: Audio in a batch, padding included.
        max_seconds: Longer utterances are left out.
        buckets: Number of padded lengths.
    """

    batch_seconds: float | int = 40.0
    max_seconds: float | int = 20.0
    buckets: int = 3


@dataclasses.dataclass(frozen=True)
class Annealing:
    """The temperature of the quantizer's softmax, max(start * decay^step, end)."""

    start: float | int = 2.0
    end: float | int = 0.5
    decay: float | int = 0.999995

    def __post_init__(self):
        if not (self.start >= self.end > 0 and 0 < self.decay <= 1):
            raise UserError(f"{self}: expected start >= end > 0 and a decay up to 1")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings that all trainings have.

    Attributes:
        steps: Number of steps.
        seed: Of initial weights, batches and noise.
        audio: Which audio.
        optimiser: Optimiser and schedule.
        dropout: Dropout rates.
        log_every: Steps between lines of metrics.jsonl.
        evaluate_every: Steps between evaluations on held-out speakers.
        snapshots: Steps after which the encoder is saved.
        dtype: Of the saved tensors.

    Raises:
        UserError: Values out of range.
    """

    name: ClassVar[str] = ""

    steps: int = 100_000
    seed: int = 0
    audio: Audio = field(default_factory=Audio)
    optimiser: AdamW = field(default_factory=AdamW)
    dropout: DropoutRates = field(default_factory=DropoutRates)
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

    def as_dict(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        settings = dataclasses.asdict(self)
        if not settings["audio"]["speaker_from"]:  # recorded recipes do not have it
            del settings["audio"]["speaker_from"]
        settings.get("encoder", {}).pop("adapter_attn_dim", None)  # never set in pretraining
        return {"objective": self.name, **settings}


@dataclasses.dataclass(frozen=True)
class Pretraining(Recipe):
    """The settings that both kinds of pretraining have.

    Attributes:
        encoder: The encoder.
        crops: The batch of a step.
        evaluation_speakers: Number of held-out speakers to evaluate on, at most.
        feature_grad_mult: Factor of the convolutions' gradient (fairseq); 0 freezes them.
    """

    encoder: Wav2Vec2Config = field(default_factory=partial(Wav2Vec2Config, "wav2vec2"))
    crops: Crops = field(default_factory=Crops)
    evaluation_speakers: int = 32
    feature_grad_mult: float | int = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.encoder.adapter_attn_dim is not None:
            raise UserError(
                f"encoder.adapter_attn_dim = {self.encoder.adapter_attn_dim}: adapters are not "
                "pretrained; leave it out"
            )


@dataclasses.dataclass(frozen=True)
class ContrastiveRecipe(Pretraining):
    """Pretraining of wav2vec 2.0.

    Attributes:
        head: The objective.
        masks: Masked spans.
        temperature: Of the quantizer.
    """

    name: ClassVar[str] = "contrastive"

    encoder: Wav2Vec2Config = field(default_factory=partial(Wav2Vec2Config, "wav2vec2"))
    head: Contrastive = field(default_factory=Contrastive)
    masks: Spans = field(default_factory=Spans)
    temperature: Annealing = field(default_factory=Annealing)


@dataclasses.dataclass(frozen=True)
class PredictiveRecipe(Pretraining):
    """Pretraining of HuBERT.

    Attributes:
        head: The objective.
        masks: Masked spans.
        cluster_minutes: Amount of audio to cluster.
    """

    name: ClassVar[str] = "predictive"

    encoder: Wav2Vec2Config = field(default_factory=partial(Wav2Vec2Config, "hubert"))
    head: Predictive = field(default_factory=Predictive)
    masks: Spans = field(default_factory=partial(Spans, probability=0.8))
    cluster_minutes: float | int = 600.0


@dataclasses.dataclass(frozen=True)
class CTCRecipe(Recipe):
    """Fine-tuning with CTC of a pretrained encoder.

    Attributes:
        utterances: The batch of a step.
        masks: Masked spans of frames.
        neuron_masks: Masked spans of neurons (SpecAugment).
        freeze_feature_encoder: Leave the convolutions as they are.
        alphabet: Characters to learn, others are removed from transcripts; if empty, those that
            occur in training.
    """

    name: ClassVar[str] = "ctc"

    utterances: Utterances = field(default_factory=Utterances)
    masks: Spans = field(default_factory=partial(Spans, probability=0.05))
    neuron_masks: Spans = field(default_factory=partial(Spans, probability=0.0))
    freeze_feature_encoder: bool = True
    alphabet: str = ""
    dropout: DropoutRates = field(
        default_factory=partial(DropoutRates, hidden_dropout=0.1, final_dropout=0.1)
    )


RECIPES: dict[str, type[Recipe]] = {
    kind.name: kind for kind in (ContrastiveRecipe, PredictiveRecipe, CTCRecipe)
}


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a TOML file.

    Raises:
        UserError: The file cannot be read, or a key or value is wrong.
    """
    try:
        table = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: is not valid TOML ({error})") from error
    name = table.pop("objective", None)
    if name not in RECIPES:
        raise UserError(f"{path}: objective = {name!r}; expected one of {', '.join(RECIPES)}")
    try:
        return _with_values(RECIPES[name](), table, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _with_values(default: Any, table: Mapping[str, Any], prefix: str) -> Any:
    """The dataclass `default` with the values of a table; `prefix` is that of its keys."""
    hints = typing.get_type_hints(type(default))
    fields = [field.name for field in dataclasses.fields(default)]
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            raise UserError(f"{prefix}{name} is not known; expected one of {', '.join(fields)}")
        current = getattr(default, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{name} = {value!r}; expected a table [{prefix}{name}]")
            values[name] = _with_values(current, value, f"{prefix}{name}.")
            continue
        value = tuple(value) if isinstance(value, list) else value
        if not _fits(value, hints[name]):
            expected = _in_words(hints[name])
            raise UserError(f"{prefix}{name} = {table[name]!r}; expected {expected}")
        values[name] = value
    return dataclasses.replace(default, **values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from TOML has a field's type."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return value in inner
    if kind in (types.UnionType, typing.Union):
        return any(_fits(value, kind) for kind in inner)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if hint is float:  # of Wav2Vec2Config, where integers are accepted
        return type(value) in (float, int)
    return type(value) is hint


def _in_words(hint: Any) -> str:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(inner)}"
    if kind in (types.UnionType, typing.Union):
        return " or ".join(map(_in_words, inner))
    return f"a list of {_in_words(inner[0])}" if kind is tuple else hint.__name__

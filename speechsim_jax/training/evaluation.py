"""How good a model is on speakers that training never hears; the same audio and draws each time."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

from speechsim_jax.audio.corpus import Source
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.error_rates import error_rates
from speechsim_jax.training.data.alphabet import Alphabet
from speechsim_jax.training.data.sampling import CropSampler, Rows, UtteranceSampler
from speechsim_jax.training.data.splits import Split, speaker_of
from speechsim_jax.training.objectives import predictive
from speechsim_jax.training.tasks import Found, Task

Look = Callable[[Rows, int], Found]
"""What a batch gives without learning from it; the number tells the draws of batches apart."""


class Marks(NamedTuple):
    """Numbers over all that was held out, and what they are made of, as JSON can hold it."""

    total: dict[str, float]
    details: dict[str, Any]


@runtime_checkable
class Examination(Protocol):
    """Looks at a model with `look`."""

    def __call__(self, look: Look) -> Marks:
        """The marks of the model that `look` looks with."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class OfSpeakers:
    """One batch of crops of each speaker; details by speaker.

    `training_units`: how often each unit occurs in training, for the baselines of prediction.
    """

    sampler: CropSampler
    speakers: tuple[str, ...]
    task: Task
    training_units: Int[np.ndarray, " unit"] | None = None

    def __call__(self, look: Look) -> Marks:
        """The sums of all speakers, and those of each."""
        parts = [
            look(self.sampler.of_speaker(speaker), number).sums
            for number, speaker in enumerate(self.speakers)
        ]
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        each = {name: self._marks(sums) for name, sums in zip(self.speakers, parts)}
        return Marks(self._marks(total), {"speakers": each})

    def _marks(self, sums: Any) -> dict[str, float]:
        found = {"loss": self.task.loss(sums), **self.task.report(sums)}
        if self.training_units is not None:
            found |= predictive.baseline(sums.masked.due, self.training_units)._asdict()
        return {name: float(value) for name, value in found.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class OfTranscripts:
    """Whole utterances, transcribed greedily; details are the transcripts.

    Where they come from several corpora, the error rates of each are told, too.
    """

    sampler: UtteranceSampler
    sources: tuple[Source, ...]
    split: Split
    config: EncoderConfig
    task: Task
    alphabet: Alphabet

    def __call__(self, look: Look) -> Marks:
        """Loss, character and word error rates."""
        heard: dict[int, str] = {}
        parts = []
        for batch, numbers in enumerate(self.sampler.in_order):
            rows = self.sampler.rows(numbers)
            found = look(rows, batch)
            parts.append(found.sums)
            frames = self.config.frames(np.asarray(rows.lengths))
            for row, number in enumerate(numbers):
                heard[number] = self.alphabet.text(np.asarray(found.tokens)[row, : frames[row]])
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        marks = {"loss": self.task.loss(total), **self.task.report(total)}
        corpora = {number: self.split.corpus_of[self.sources[number].id] for number in heard}
        marks |= self._rates(heard, list(heard), "")
        names = sorted(set(corpora.values()))
        for name in names if len(names) > 1 else ():
            marks |= self._rates(heard, [n for n in heard if corpora[n] == name], f"_{name}")
        transcripts = [
            {
                "id": self.sources[number].id,
                "speaker": speaker_of(self.sources[number]),
                "corpus": corpora[number],
                "reference": self.sources[number].transcript,
                "hypothesis": heard[number],
            }
            for number in sorted(heard)
        ]
        values = {name: float(value) for name, value in marks.items()}
        return Marks(values, {"transcripts": transcripts})

    def _rates(self, heard: dict[int, str], numbers: Sequence[int], of: str) -> dict[str, float]:
        said = [self.sources[number].transcript for number in numbers]
        rates = error_rates(said, [heard[number] for number in numbers])
        return {f"cer{of}": rates.cer, f"wer{of}": rates.wer}

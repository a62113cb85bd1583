"""Evaluation on held-out speakers, with the same audio and random draws each time."""

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
from speechsim_jax.training.data.sampling import CropSampler, TrainingBatch, UtteranceSampler
from speechsim_jax.training.data.splits import Split, speaker_of
from speechsim_jax.training.objectives import predictive
from speechsim_jax.training.tasks import BatchOutput, Task

EvaluateBatch = Callable[[TrainingBatch, int], BatchOutput]
"""Output of the current model on a batch; the number keeps the draws of batches apart."""


class Metrics(NamedTuple):
    """Metrics of a model.

    Attributes:
        total: Over all held-out audio, by name.
        details: Of parts of it, as JSON can hold them.
    """

    total: dict[str, float]
    details: dict[str, Any]


@runtime_checkable
class Evaluation(Protocol):
    """Computes the metrics of the model behind a function that evaluates batches."""

    def __call__(self, evaluate: EvaluateBatch) -> Metrics:
        """Evaluate all held-out audio."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class SpeakerEvaluation:
    """Metrics of pretraining: one batch of crops of each speaker; details by speaker.

    Attributes:
        sampler: Crops of held-out audio.
        speakers: The speakers to evaluate on.
        task: The task.
        training_clusters: How often each cluster occurs in training, for the baselines of masked
            prediction; None for other objectives.
    """

    sampler: CropSampler
    speakers: tuple[str, ...]
    task: Task
    training_clusters: Int[np.ndarray, " cluster"] | None = None

    def __call__(self, evaluate: EvaluateBatch) -> Metrics:
        """Metrics of all speakers together, and of each."""
        parts = [
            evaluate(self.sampler.batch_of_speaker(speaker), number).sums
            for number, speaker in enumerate(self.speakers)
        ]
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        by_speaker = {name: self._metrics(sums) for name, sums in zip(self.speakers, parts)}
        return Metrics(self._metrics(total), {"speakers": by_speaker})

    def _metrics(self, sums: Any) -> dict[str, float]:
        metrics = {"loss": self.task.loss(sums), **self.task.metrics(sums)}
        if self.training_clusters is not None:
            baseline = predictive.baseline(sums.masked.targets, self.training_clusters)
            metrics |= baseline._asdict()
        return {name: float(value) for name, value in metrics.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class TranscriptEvaluation:
    """Metrics of fine-tuning: uncut utterances, decoded greedily; details are the transcripts.

    If they come from several corpora, the error rates of each corpus are among the metrics.

    Attributes:
        sampler: Batches of the held-out utterances.
        sources: The held-out utterances.
        split: The split, which names the corpus of each utterance.
        config: The encoder.
        task: The task.
        alphabet: Characters by label.
    """

    sampler: UtteranceSampler
    sources: tuple[Source, ...]
    split: Split
    config: EncoderConfig
    task: Task
    alphabet: Alphabet

    def __call__(self, evaluate: EvaluateBatch) -> Metrics:
        """Loss, character and word error rates."""
        hypotheses: dict[int, str] = {}
        parts = []
        for number, indices in enumerate(self.sampler.batches_in_order):
            batch = self.sampler.batch(indices)
            output = evaluate(batch, number)
            parts.append(output.sums)
            frames = self.config.frames(np.asarray(batch.lengths))
            tokens = np.asarray(output.tokens)
            for row, index in enumerate(indices):
                hypotheses[index] = self.alphabet.decode(tokens[row, : frames[row]])
        total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        metrics = {"loss": self.task.loss(total), **self.task.metrics(total)}
        corpora = {index: self.split.corpus_of[self.sources[index].id] for index in hypotheses}
        metrics |= self._rates(hypotheses, list(hypotheses), "")
        names = sorted(set(corpora.values()))
        for name in names if len(names) > 1 else ():
            of_corpus = [index for index in hypotheses if corpora[index] == name]
            metrics |= self._rates(hypotheses, of_corpus, f"_{name}")
        transcripts = [
            {
                "id": self.sources[index].id,
                "speaker": speaker_of(self.sources[index]),
                "corpus": corpora[index],
                "reference": self.sources[index].transcript,
                "hypothesis": hypotheses[index],
            }
            for index in sorted(hypotheses)
        ]
        values = {name: float(value) for name, value in metrics.items()}
        return Metrics(values, {"transcripts": transcripts})

    def _rates(
        self, hypotheses: dict[int, str], indices: Sequence[int], suffix: str
    ) -> dict[str, float]:
        references = [self.sources[index].transcript for index in indices]
        rates = error_rates(references, [hypotheses[index] for index in indices])
        return {f"cer{suffix}": rates.cer, f"wer{suffix}": rates.wer}

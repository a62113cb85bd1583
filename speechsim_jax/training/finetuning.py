"""Fine-tuning with CTC: from a recipe, a checkpoint and audio with transcripts to a job."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from speechsim_jax.audio.corpus import Source
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import WeightFiles
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.training import export, model
from speechsim_jax.training.data.alphabet import BLANK, Alphabet
from speechsim_jax.training.data.sampling import UtteranceSampler, plan
from speechsim_jax.training.data.splits import Split, Waves, open_split
from speechsim_jax.training.evaluation import OfTranscripts
from speechsim_jax.training.model import CTC
from speechsim_jax.training.recipe import CTCRecipe
from speechsim_jax.training.tasks import CTCTask
from speechsim_jax.training.trainer import TrainingRun

_log = logging.getLogger(__name__)


def prepare(
    recipe: CTCRecipe, pretrained: WeightFiles, corpora: Sequence[AudioInput]
) -> TrainingRun:
    """Open the audio, number its characters, and put a new head on the pretrained encoder.

    Raises UserError for anything wrong with what was given.
    """
    config = EncoderConfig.from_hf(pretrained.config, pretrained.preprocessor)
    split = _usable(open_split(corpora, recipe.audio), recipe)
    # Without an alphabet of its own, all that occurs in training is spelled; what occurs among
    # held-out speakers alone stays in the reference, and is an error.
    spelled = [recipe.alphabet] if recipe.alphabet else [s.transcript for s in split.training]
    alphabet = Alphabet.of(spelled)
    if recipe.alphabet:
        split = _spelled(split, alphabet)
    objective = CTC(vocab_size=len(alphabet.tokens), pad_token_id=BLANK)
    graph, start = model.initial(config, objective, recipe.seed, pretrained.tensors())
    task = CTCTask.of(recipe, config, objective)
    buckets = plan((*split.training, *split.held_out), recipe.utterances, config)
    texts = {source.id: source.transcript for source in (*split.training, *split.held_out)}
    labels = {name: alphabet.labels(text) for name, text in texts.items()}
    width = max(len(found) for found in labels.values())

    def sampler(sources: tuple[Source, ...]) -> UtteranceSampler:
        waves = Waves(sources, recipe.audio.memory_gb, config.window_samples)
        own = [labels[source.id] for source in sources]
        return UtteranceSampler(waves, own, buckets, recipe.seed, width)

    def write(folder: Path, trained: model.Model) -> None:
        export.write_recognizer(folder, config, objective, trained, alphabet, recipe.dtype)

    examination = None
    if split.held_out:
        heard = sampler(split.held_out)
        examination = OfTranscripts(heard, split.held_out, split, config, task, alphabet)
    said = "".join(f"{name}\0{text}\0" for name, text in sorted(texts.items()))
    return TrainingRun(
        recipe=recipe,
        config=config,
        task=task,
        graph=graph,
        start=start,
        rows=sampler(split.training).step,
        examination=examination,
        write=write,
        identity={
            "pretrained": pretrained.digest(),
            "audio": split.fingerprint(),
            "transcripts": hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest(),
            "alphabet": "".join(alphabet.characters),
        },
        frozen=recipe.freeze_feature_encoder,
    )


def _usable(split: Split, recipe: CTCRecipe) -> Split:
    """What has a transcript and is not too long; the rest is said."""

    def usable(sources: tuple[Source, ...]) -> tuple[Source, ...]:
        said = [source for source in sources if source.transcript.strip()]
        short = [s for s in said if (s.seconds or 0.0) <= recipe.utterances.max_seconds]
        for count, reason in (
            (len(sources) - len(said), "without a transcript"),
            (len(said) - len(short), f"longer than {recipe.utterances.max_seconds:g} s"),
        ):
            if count:
                _log.warning("left out %d utterances %s", count, reason)
        return tuple(short)

    training = usable(split.training)
    if not training:
        raise UserError(
            "no utterance to train on has a transcript and is short enough; expected a manifest "
            "with a column 'transcript', or LibriSpeech's .trans.txt files"
        )
    return dataclasses.replace(split, training=training, held_out=usable(split.held_out))


def _spelled(split: Split, alphabet: Alphabet) -> Split:
    """The same with nothing but spelled characters in the transcripts."""
    parts = {
        name: tuple(dataclasses.replace(s, transcript=alphabet.only(s.transcript)) for s in part)
        for name, part in (("training", split.training), ("held_out", split.held_out))
    }
    return dataclasses.replace(split, **parts)

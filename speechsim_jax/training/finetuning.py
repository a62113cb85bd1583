"""Prepare a fine-tuning with CTC from a recipe, a pretrained encoder and audio with transcripts."""

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from speechsim_jax.audio.corpus import Source
from speechsim_jax.audio.open_corpus import AudioInput
from speechsim_jax.errors import UserError
from speechsim_jax.models.checkpoint_files import WeightFiles
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.families import config_from_hf, family_of
from speechsim_jax.models.families.wav2vec2 import Wav2Vec2Network
from speechsim_jax.training import export, model
from speechsim_jax.training.data.alphabet import BLANK, Alphabet
from speechsim_jax.training.data.sampling import UtteranceSampler, utterance_buckets
from speechsim_jax.training.data.splits import Split, WaveformCache, open_split, transcribed
from speechsim_jax.training.evaluation import TranscriptEvaluation
from speechsim_jax.training.model import CTC
from speechsim_jax.training.recipe import CTCRecipe
from speechsim_jax.training.tasks import CTCTask
from speechsim_jax.training.trainer import TrainingRun

_log = logging.getLogger(__name__)


def prepare(
    recipe: CTCRecipe, pretrained: WeightFiles, corpora: Sequence[AudioInput]
) -> TrainingRun:
    """Open the audio, make an alphabet, and put a new head on the pretrained encoder.

    Args:
        recipe: All settings.
        pretrained: Weights of the encoder.
        corpora: Audio with transcripts to train and evaluate on.

    Raises:
        UserError: Audio, recipe and encoder do not fit together.
    """
    config = config_from_hf(pretrained.config, pretrained.preprocessor)
    network = family_of(config).network
    if not isinstance(config, Wav2Vec2Config) or not issubclass(network, Wav2Vec2Network):
        raise UserError(
            f"{pretrained.source}: a {config.family} cannot be fine-tuned here; expected an "
            "encoder of wav2vec 2.0's kind, such as wav2vec2, hubert or wavlm"
        )
    split = _usable(open_split(corpora, recipe.audio), recipe)
    # Without an alphabet in the recipe, it is that of the training transcripts; a character that
    # only held-out speakers have stays in their references, and counts as an error.
    texts = [recipe.alphabet] if recipe.alphabet else [s.transcript for s in split.training]
    alphabet = Alphabet.of(texts)
    if recipe.alphabet:
        split = _restricted(split, alphabet)
    objective = CTC(vocab_size=len(alphabet.tokens), pad_token_id=BLANK)
    graph, start = model.initial(config, objective, recipe.seed, pretrained.tensors())
    task = CTCTask.of(recipe, config, objective)
    buckets = utterance_buckets((*split.training, *split.held_out), recipe.utterances, config)
    transcripts = {source.id: source.transcript for source in (*split.training, *split.held_out)}
    labels = {name: alphabet.labels(text) for name, text in transcripts.items()}
    width = max(map(len, labels.values()))

    def sampler(sources: tuple[Source, ...]) -> UtteranceSampler:
        waves = WaveformCache(sources, recipe.audio.memory_gb, config.window_samples)
        of_sources = [labels[source.id] for source in sources]
        return UtteranceSampler(waves, of_sources, buckets, recipe.seed, width)

    def write(folder: Path, trained: model.Model) -> None:
        export.write_recognizer(folder, config, objective, trained, alphabet, recipe.dtype)

    evaluation = None
    if split.held_out:
        evaluation = TranscriptEvaluation(
            sampler(split.held_out), split.held_out, split, config, task, alphabet
        )
    all_text = "".join(f"{name}\0{text}\0" for name, text in sorted(transcripts.items()))
    return TrainingRun(
        recipe=recipe,
        config=config,
        task=task,
        graph=graph,
        start=start,
        batch_of_step=sampler(split.training).batch_of_step,
        evaluation=evaluation,
        write=write,
        identity={
            "pretrained": pretrained.digest(),
            "audio": split.fingerprint(),
            "transcripts": hashlib.sha256(all_text.encode("utf-8", "surrogateescape")).hexdigest(),
            "alphabet": "".join(alphabet.characters),
        },
        frozen=recipe.freeze_feature_encoder,
    )


def _usable(split: Split, recipe: CTCRecipe) -> Split:
    """The utterances with a transcript that are short enough; the others are warned of."""
    longest = recipe.utterances.max_seconds

    def usable(sources: tuple[Source, ...]) -> tuple[Source, ...]:
        with_text, short = transcribed(sources, float("inf")), transcribed(sources, longest)
        for count, reason in (
            (len(sources) - len(with_text), "without a transcript"),
            (len(with_text) - len(short), f"longer than {longest:g} s"),
        ):
            if count:
                _log.warning("left out %d utterances %s", count, reason)
        return short

    training = usable(split.training)
    if not training:
        raise UserError(
            "no utterance to train on has a transcript and is short enough; expected a manifest "
            "with a column 'transcript', or LibriSpeech's .trans.txt files"
        )
    return dataclasses.replace(split, training=training, held_out=usable(split.held_out))


def _restricted(split: Split, alphabet: Alphabet) -> Split:
    """The split without characters in its transcripts that are not in the alphabet."""
    parts = {
        name: tuple(
            dataclasses.replace(s, transcript=alphabet.restrict(s.transcript)) for s in part
        )
        for name, part in (("training", split.training), ("held_out", split.held_out))
    }
    return dataclasses.replace(split, **parts)

"""Word and character error rates of fine-tuned speech encoders, decoded greedily.

    speechsim transcribe --models=facebook/hubert-large-ls960-ft,runs/my_ctc \\
        --audio=speech/manifest.tsv --max_minutes=10 --workdir=runs/words

prints a table, and writes transcripts.tsv (and log.jsonl) if there is a --workdir. The models are
CTC checkpoints with their tokenizers; the audio has transcripts: a manifest with a `transcript`
column, or a folder in LibriSpeech's layout. Text is compared in upper case. From a notebook:
`run(Config(models=(...), audio=...))`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from absl.flags import FlagValues

from speechsim_jax.commands import flags, inputs
from speechsim_jax.commands.compilation_cache import use_compilation_cache
from speechsim_jax.commands.log import log_to
from speechsim_jax.commands.workdir import new_workdir
from speechsim_jax.errors import UserError, printable
from speechsim_jax.runtime.text_tables import write_tsv
from speechsim_jax.settings import Resources, Settings, documented

if TYPE_CHECKING:
    from speechsim_jax.audio.corpus import Corpus
    from speechsim_jax.models.error_rates import ErrorRates
    from speechsim_jax.models.recognizer import Recognizer

_log = logging.getLogger(__name__)


@documented
@dataclasses.dataclass(frozen=True)
class Config:
    """Which models transcribe what, and how much of it."""

    models: tuple[str, ...] = flags.models()
    audio: str = flags.audio()
    workdir: str | None = flags.workdir(None)
    max_minutes: float | int | None = flags.like(Settings, "max_minutes")
    layout: str | None = flags.like(Settings, "layout")
    speaker_from: str | None = flags.like(Settings, "speaker_from")
    glob: tuple[str, ...] = flags.like(Settings, "glob")
    exclude: tuple[str, ...] = flags.like(Settings, "exclude")
    channel: str = flags.like(Settings, "channel")
    seed: int = flags.like(Settings, "seed")
    batch_seconds: float | int = flags.like(Settings, "batch_seconds")
    max_seconds: float | int = flags.like(Settings, "max_seconds")
    strict: bool = flags.like(Settings, "strict")
    revision: str | None = flags.like(Resources, "revision")
    cache_dir: str | None = flags.like(Resources, "cache_dir")
    local_files_only: bool = flags.like(Resources, "local_files_only")
    overwrite: bool = flags.overwrite()
    progress: bool = flags.progress()


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A model's transcript of an utterance.

    Attributes:
      model: the model, as the user named it.
      id: the utterance.
      reference: the corpus's transcript.
      hypothesis: the model's.
    """

    model: str
    id: str
    reference: str
    hypothesis: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All transcripts, grouped by model.

    Attributes:
      transcripts: of every model and utterance.
      left_out: number of utterances without a transcript in the corpus.
    """

    transcripts: tuple[Transcript, ...]
    left_out: int

    def rates(self) -> dict[str, tuple[ErrorRates, int]]:
        """The error rates of every model, and the number of utterances they are over."""
        import speechsim_jax as ss

        rates = {}
        for model, group in itertools.groupby(self.transcripts, lambda t: t.model):
            pairs = [(t.reference, t.hypothesis) for t in group]
            rates[model] = ss.error_rates(*zip(*pairs)), len(pairs)
        return rates

    def table(self) -> str:
        """One line a model: WER, CER, utterances."""
        all_rates = self.rates()
        width = max(len("model"), *map(len, all_rates))
        lines = [f"{'model':{width}}     WER     CER  utterances"]
        for model, (rates, utterances) in all_rates.items():
            lines.append(f"{model:{width}}  {rates.wer:6.2%}  {rates.cer:6.2%}  {utterances:10d}")
        if self.left_out:
            lines.append(f"left out: {self.left_out} utterances without a transcript")
        return "\n".join(lines)


def run(config: Config) -> Outcome:
    """Transcribe with one model after the other, and write if there is a workdir.

    Returns:
      The transcripts.

    Raises:
      UserError: a model without a CTC head or tokenizer, audio without transcripts, a bad workdir.
    """
    file = None
    if config.workdir:
        name = "transcripts.tsv"
        file = new_workdir(config.workdir, config.overwrite, name) / name
    with log_to(file.parent, config.progress) if file else contextlib.nullcontext():
        inputs.check_models(config.models, config.revision)
        corpus = inputs.open_audio(config.audio, inputs.audio_settings(config), transcripts=True)
        inputs.log_start(config.models, corpus)
        corpus, left_out = _spoken(corpus)

        import speechsim_jax as ss
        from speechsim_jax.audio import selection
        from speechsim_jax.audio.open_corpus import with_durations

        load = functools.partial(
            ss.load_recognizer,
            revision=config.revision,
            cache_dir=config.cache_dir,
            local_files_only=config.local_files_only,
        )
        recognizers = {model: load(model) for model in config.models}
        if config.max_minutes is not None:
            corpus = selection.select(corpus, config.max_minutes, config.seed)
        corpus = with_durations(corpus)
        transcripts: list[Transcript] = []
        for model, recognizer in recognizers.items():
            hypotheses = _transcribe(recognizer, corpus, config)
            transcripts += [
                Transcript(model, source.id, source.transcript, hypotheses[source.id])
                for source in corpus.sources
                if source.id in hypotheses
            ]
            if file:  # each time, so that a failure of a later model loses nothing
                _write(file, transcripts)
    return Outcome(tuple(transcripts), left_out)


def _spoken(corpus: Corpus) -> tuple[Corpus, int]:
    """The utterances that have a transcript, and the number of the others."""
    sources = tuple(source for source in corpus.sources if source.transcript.strip())
    left_out = len(corpus.sources) - len(sources)
    if not sources:
        raise UserError(
            f"{corpus.origin}: none of {left_out} utterances has a transcript; expected a manifest "
            "with a column 'transcript', or LibriSpeech's .trans.txt files"
        )
    if left_out:
        _log.info("left out %d utterances without a transcript", left_out)
    return dataclasses.replace(corpus, sources=sources), left_out


def _transcribe(recognizer: Recognizer, corpus: Corpus, config: Config) -> dict[str, str]:
    """The text of every utterance that can be used, by id."""
    import tqdm.auto

    from speechsim_jax.audio import batching
    from speechsim_jax.audio.corpus import Skipped, log_skipped, nothing_usable

    seconds = [source.seconds for source in corpus.sources if source.seconds]
    architecture = recognizer.encoder.config
    buckets = batching.plan_buckets(
        seconds or [config.max_seconds],
        hop_samples=architecture.hop_samples,
        window_samples=architecture.window_samples,
        batch_seconds=config.batch_seconds,
        max_seconds=config.max_seconds,
        utterances=len(corpus.sources),
    )
    skipped: list[Skipped] = []
    pieces: dict[str, str] = {}
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    total = math.ceil(sum(seconds)) or None
    batches = batching.batches(
        corpus,
        buckets,
        min_samples=architecture.window_samples,
        strict=config.strict,
        on_skip=skipped.append,
    )
    title = f"audio: {printable(recognizer.name)}"
    with tqdm.auto.tqdm(
        total=total, desc=title, bar_format=bar_format, disable=not config.progress
    ) as bar:
        for batch in batches:
            logits = recognizer.logits(batch.samples, batch.lengths)
            frames = architecture.logit_frames(batch.lengths)
            pieces |= zip(batch.ids, recognizer.decode(logits, frames))
            bar.update(batch.seconds)
    for source in skipped:
        log_skipped(source)
    if not pieces:
        raise nothing_usable(corpus, skipped)
    in_order = ((source.id, list(_in_order(pieces, source.id))) for source in corpus.sources)
    return {id_: " ".join(texts) for id_, texts in in_order if texts}


def _in_order(pieces: dict[str, str], id_: str) -> Iterable[str]:
    """The texts of an utterance, which `batching` may have cut into id#0, id#1, ..."""
    if id_ in pieces:
        return [pieces[id_]]
    names = (f"{id_}#{index}" for index in itertools.count())
    return (pieces[name] for name in itertools.takewhile(pieces.__contains__, names))


def _write(file: Path, transcripts: list[Transcript]) -> None:
    """A header and a line each; tabs and line ends within a field become spaces."""
    rows = [[field.name for field in dataclasses.fields(Transcript)]]
    rows += [[" ".join(cell.split()) for cell in dataclasses.astuple(t)] for t in transcripts]
    write_tsv(file, rows)


def define_flags() -> FlagValues:
    """The flags of this command."""
    return flags.define(Config, flags.Terminal)


def config_from_flags(values: FlagValues) -> Config:
    """The flags as a Config; raises UserError for what is missing or malformed."""
    return flags.from_flags(values, Config, progress=not values["quiet"].value)


def main(values: FlagValues) -> None:
    """Run from the flags and print the table."""
    config = config_from_flags(values)
    use_compilation_cache(values["compilation_cache"].value)
    print(run(config).table())
    if config.workdir:
        print(f"\nwritten: {Path(config.workdir, 'transcripts.tsv')}")

"""How well do fine-tuned speech encoders transcribe? Word and character error rates, greedily.

    python -m experiments.transcribe --models=facebook/hubert-large-ls960-ft,runs/my_ctc \\
        --audio=speech/manifest.tsv --max_minutes=10 --workdir=runs/words

prints a table, and writes transcripts.tsv (and log.jsonl) if there is a --workdir. The models are
CTC checkpoints with their tokenizers; the audio has transcripts: a manifest with a `transcript`
column, or a folder in LibriSpeech's layout. Text is compared in upper case. From a notebook:
`run(Config(models=(...), audio=...))`.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tqdm.auto
from absl import flags

import speechsim_jax as ss
from speechsim_jax.audio import batching, open_corpus, selection
from speechsim_jax.audio.corpus import Corpus, Skipped, nothing_usable
from speechsim_jax.audio.open_corpus import with_durations
from speechsim_jax.commands import compare
from speechsim_jax.commands import flags as _flags
from speechsim_jax.errors import UserError

# Of the flags that `compare` brings along; the others mean nothing here.
_USED = (
    "models",
    "audio",
    "max_minutes",
    "batch_seconds",
    "max_seconds",
    "strict",
    "revision",
    "cache_dir",
    "local_files_only",
)
for _name in _USED:
    flags.declare_key_flag(_name)
flags.adopt_module_key_flags(_flags)  # for --help

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """Which models transcribe what, and how much of it; the names are those of the flags."""

    models: tuple[str, ...]
    audio: str
    workdir: str | None = None
    max_minutes: float | int | None = None
    seed: int = 0
    batch_seconds: float | int = 40.0
    max_seconds: float | int = 60.0
    strict: bool = False
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What a model heard in an utterance, and what was said."""

    model: str
    id: str
    reference: str
    hypothesis: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All transcripts, and how many utterances were left out because they have none."""

    transcripts: tuple[Transcript, ...]
    left_out: int

    def rates(self) -> dict[str, tuple[ss.ErrorRates, int]]:
        """The error rates of every model, and the utterances they are of."""
        found = {}
        for model, group in itertools.groupby(self.transcripts, lambda each: each.model):
            pairs = [(each.reference, each.hypothesis) for each in group]
            found[model] = ss.error_rates(*zip(*pairs)), len(pairs)
        return found

    def table(self) -> str:
        """One line a model: WER, CER, utterances."""
        rates = self.rates()
        width = max(len("model"), *map(len, rates))
        lines = [f"{'model':{width}}     WER     CER  utterances"]
        for model, (found, utterances) in rates.items():
            lines.append(f"{model:{width}}  {found.wer:6.2%}  {found.cer:6.2%}  {utterances:10d}")
        if self.left_out:
            lines.append(f"left out: {self.left_out} utterances without a transcript")
        return "\n".join(lines)


def run(config: Config) -> Outcome:
    """Transcribe with one model after the other; raises UserError."""
    file = None
    if config.workdir:
        name = "transcripts.tsv"
        file = _flags.new_workdir(config.workdir, config.overwrite, name) / name
    with _flags.log_to(file.parent) if file else contextlib.nullcontext():
        corpus, left_out = _spoken(open_corpus.open_corpus(config.audio))
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
            heard = _transcribe(recognizer, corpus, config)
            transcripts += [
                Transcript(model, source.id, source.transcript, heard[source.id])
                for source in corpus.sources
                if source.id in heard
            ]
            if file:  # each time, so that a later model cannot lose what is known
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


def _transcribe(recognizer: ss.Recognizer, corpus: Corpus, config: Config) -> dict[str, str]:
    """The text of every utterance that can be used, by id."""
    seconds = [source.seconds for source in corpus.sources if source.seconds]
    architecture = recognizer.encoder.config
    buckets = batching.plan_buckets(
        seconds or [config.max_seconds],
        hop_samples=architecture.hop_samples,
        window_samples=architecture.window_samples,
        batch_seconds=config.batch_seconds,
        max_seconds=config.max_seconds,
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
    title = f"audio: {recognizer.name}"
    quiet = _flags.quiet()
    with tqdm.auto.tqdm(total=total, desc=title, bar_format=bar_format, disable=quiet) as bar:
        for batch in batches:
            logits = recognizer.logits(batch.samples, batch.lengths)
            frames = architecture.frames(batch.lengths)
            pieces |= zip(batch.ids, recognizer.decode(logits, frames))
            bar.update(batch.seconds)
    for each in skipped:
        _log.warning("skipped %s: %s", each.id, each.reason)
    if not pieces:
        raise nothing_usable(corpus, skipped)
    found = ((source.id, list(_in_order(pieces, source.id))) for source in corpus.sources)
    return {id_: " ".join(texts) for id_, texts in found if texts}


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
    file.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def config_from_flags() -> Config:
    """The flags as a Config; raises UserError for what is missing or means nothing here."""
    compare.refuse_flags("transcribing", _USED)
    names = (*_USED, "workdir", "seed", "overwrite")
    values: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    for name in ("models", "audio"):
        if not values[name]:
            raise UserError(f"--{name} is required; see --help")
    if not all(values["models"]):
        raise UserError(f"--models={','.join(values['models'])}: expected hub ids or folders")
    values["models"] = tuple(values["models"])
    return Config(**values)


def main() -> None:
    """Run from the flags and print what came out."""
    config = config_from_flags()
    _flags.use_compilation_cache()
    outcome = run(config)
    print(outcome.table())
    if config.workdir:
        print(f"\nwritten: {Path(config.workdir, 'transcripts.tsv')}")

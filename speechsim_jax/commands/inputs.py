"""What commands read: models and audio, checked before jax is imported, and finished results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechsim_jax.errors import UserError
from speechsim_jax.models import zoo
from speechsim_jax.runtime.atomic_write import as_path
from speechsim_jax.settings import Settings

if TYPE_CHECKING:
    from speechsim_jax.audio.corpus import Corpus
    from speechsim_jax.results.result import SimilarityResult

_log = logging.getLogger(__name__)


def check_models(sources: Sequence[str], revision: str | None = None) -> None:
    """Raise the library's UserError for a folder or zoo model that is missing or has no config."""
    from speechsim_jax.models.checkpoint_files import (
        TORCH_PREFIX,
        open_checkpoint,
        split_language,
        untrained,
    )

    for source in sources:
        random = untrained(source)
        source = source.removeprefix(TORCH_PREFIX) if random is None else random[0]
        if not _may_be_of_hub(split_language(source)[0]):
            open_checkpoint(source, revision=revision)


def _may_be_of_hub(source: str) -> bool:
    """Whether the hub has to be asked, which is left to the library."""
    local = source.startswith((".", "/", "~", zoo.PREFIX)) or source.count("/") > 1
    return not local and not Path(source).exists()


def audio_settings(config: Any) -> Settings:
    """The settings that say how audio is opened, of a command that has no others."""
    names = ("layout", "speaker_from", "glob", "exclude", "channel")
    return Settings(**{name: getattr(config, name) for name in names})


def open_audio(audio: str, settings: Settings, transcripts: bool = False) -> Corpus:
    """The corpus of a command. Raises UserError if there is none, or none of its files exists."""
    from speechsim_jax.audio.corpus import check_any_exists
    from speechsim_jax.audio.open_corpus import open_as

    corpus = open_as(audio, settings, transcripts)
    check_any_exists(corpus)
    return corpus


def log_start(models: Sequence[str], corpus: Corpus) -> None:
    """Log what a command is about to read, before the libraries that do it are loaded."""
    count = len(corpus.sources)
    _log.info(
        "models: %s; audio: %s (%d utterance%s); loading libraries",
        ", ".join(models), corpus.origin, count, "s" * (count != 1),
    )  # fmt: skip


def load_result(result: str) -> SimilarityResult:
    """A finished result.

    Args:
      result: its file, or the workdir that has one.

    Raises:
      UserError: there is none.
    """
    path = as_path(result)
    if path.is_dir():
        path = path / "result.nc"
    if not path.is_file():
        raise UserError(f"{path}: no such result file")

    import speechsim_jax as ss

    return ss.SimilarityResult.load(path)

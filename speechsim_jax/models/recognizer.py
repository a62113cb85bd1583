"""Encoders fine-tuned with CTC: samples in, text out."""

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from speechsim_jax.array_types import Hidden, Lengths, Waveforms
from speechsim_jax.errors import UserError
from speechsim_jax.models import save as saving
from speechsim_jax.models import weight_names
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.checkpoint_files import (
    WeightFiles,
    open_checkpoint,
    read_json,
    untrained,
)
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.families import config_from_hf, family_of
from speechsim_jax.models.load import encoder_of

_log = logging.getLogger(__name__)

# The files of Wav2Vec2CTCTokenizer; all but the first are optional.
_TOKENIZER_FILES = (
    "vocab.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# The second is the name of the first in transformers 4.0.
_TOKENIZERS = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
# The defaults of transformers' configurations.
_VOCAB_SIZE, _PAD_TOKEN_ID = 32, 0

Logits = Float[Array, "batch logit_frame token"]


class Head(NamedTuple):
    """`lm_head`: a linear map from the last hidden state to tokens, laid out as in torch."""

    weight: Float[Array, "token neuron"]
    bias: Float[Array, " token"]


@dataclasses.dataclass(frozen=True, eq=False)
class Recognizer:
    """An encoder, its CTC head and its tokenizer.

    Attributes:
        encoder: the encoder.
        head: the linear map from the last hidden state to tokens.
        blank: the blank token of CTC (pad_token_id in config.json).
        tokenizer: transformers' Wav2Vec2CTCTokenizer.
        tokenizer_files: the files that it was read from.
    """

    encoder: SpeechEncoder
    head: Head
    blank: int
    tokenizer: Any
    tokenizer_files: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The label of the model."""
        return self.encoder.name

    def logits(self, samples: Waveforms, lengths: Lengths, precision: str = "highest") -> Logits:
        """Unnormalised log-probabilities of the tokens in every frame of a padded batch.

        Args:
            samples: 16 kHz in [-1, 1]; ignored past `lengths`.
            lengths: samples of each utterance.
            precision: of matrix products, in JAX's words.

        Returns:
            float32, of the last hidden state after the final layer norm; frames past
            `encoder.config.logit_frames(lengths)` are undefined.
        """
        last = Outputs(layers=(self.encoder.config.num_hidden_layers,))
        hidden = self.encoder.apply(samples, lengths, last, precision).hidden_states[0]
        return _apply_head(
            self.encoder.parameters,
            self.head,
            hidden,
            jnp.asarray(lengths),
            graph=self.encoder.graph,
            precision=precision,
        )

    def decode(
        self,
        logits: Float[Array | np.ndarray, "batch frame token"],
        frames: Int[np.ndarray, " batch"],
    ) -> list[str]:
        """The text of each utterance, from the likeliest token of each frame.

        Runs of a token become one and blanks are dropped; the checkpoint's tokenizer joins the
        remaining tokens (word delimiter, case).

        Args:
            logits: as `logits` returns them.
            frames: valid frames of each utterance (`encoder.config.logit_frames`).

        Raises:
            UserError: a logit is NaN or inf.

        Source: Graves et al. 2006, best path decoding.
        """
        values = np.asarray(logits)
        texts = []
        for row, count in zip(values, frames):
            if not np.isfinite(row[:count]).all():
                raise UserError(f"{self.name}: logits are NaN or inf; the checkpoint is damaged")
            tokens = best_path(row[:count].argmax(-1), self.blank)
            # Equal neighbours were separated by blanks and must not be merged again.
            texts.append(self.tokenizer.decode(tokens, group_tokens=False))
        return texts

    def transcribe(self, waveforms: Sequence[Float[np.ndarray, " _"]]) -> list[str]:
        """The text of waveforms of any lengths, encoded as one batch.

        Args:
            waveforms: 16 kHz mono, in [-1, 1].

        Returns:
            The text of each, the same as it would be alone.

        Raises:
            UserError: a waveform shorter than one frame.

        >>> recognizer = ss.load_recognizer("facebook/wav2vec2-base-960h")
        >>> texts = recognizer.transcribe([np.zeros(16000, np.float32)])
        >>> ss.error_rates(["NOTHING"], texts).words
        1
        """
        samples, lengths = self.encoder.padded(waveforms)
        logits = self.logits(samples, lengths)
        return self.decode(logits, self.encoder.config.logit_frames(np.asarray(lengths)))

    def save(self, folder: str | Path, dtype: saving.SavedDtype = "float32") -> Path:
        """Write a Hugging Face folder that `load_recognizer` and transformers' ...ForCTC read.

        As `SpeechEncoder.save`, with `lm_head` and copies of the tokenizer's files.

        Args:
            folder: where to write; it is created if need be.
            dtype: element type of the saved weights.

        Returns:
            The path of the folder.

        Raises:
            UserError: the folder cannot be written.
        """
        tensors = weight_names.export(self.encoder.config, self.encoder.parameters)
        head = {f"lm_head.{name}": np.asarray(x) for name, x in self.head._asdict().items()}
        path = saving.save_ctc_folder(folder, self.encoder.config, tensors, head, self.blank, dtype)
        try:
            for file in self.tokenizer_files:
                if file.parent.resolve() != path.resolve():
                    shutil.copyfile(file, path / file.name)
            language = self.encoder.provenance.get("language")
            if language is not None:  # the head is that of one vocabulary of vocab.json
                settings = path / "tokenizer_config.json"
                content = read_json(settings) if settings.exists() else {}
                content["target_lang"] = language
                settings.write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{path}: the tokenizer cannot be copied ({error})") from error
        return path


def best_path(tokens: Int[np.ndarray, " frame"], blank: int) -> list[int]:
    """The labels of a path of tokens: runs become one, blanks are dropped.

    Args:
        tokens: of consecutive frames.
        blank: the blank token.

    Source: Graves et al. 2006, best path decoding.
    """
    starts = np.diff(tokens, prepend=-1) != 0
    return tokens[starts & (tokens != blank)].tolist()


@functools.partial(jax.jit, static_argnames=("graph", "precision"))
def _apply_head(
    parameters: Any,
    head: Head,
    last: Hidden,
    lengths: Lengths,
    *,
    graph: nnx.GraphDef,
    precision: str,
) -> Logits:
    with jax.default_matmul_precision(precision):
        hidden = nnx.merge(graph, parameters).head_input(last, lengths)
        return hidden.astype(jnp.float32) @ head.weight.T + head.bias


def load_recognizer(
    source: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    name: str | None = None,
) -> Recognizer:
    """Load a checkpoint fine-tuned with CTC, with head and tokenizer.

    The tokenizer's files come from the same commit as the weights.

    Args:
        source: a folder, hub id or "zoo:NAME", as in `load_encoder`; "ID#LANGUAGE" has the head and
            the vocabulary of the language.
        revision: as in `load_encoder`.
        cache_dir: as in `load_encoder`.
        local_files_only: as in `load_encoder`.
        name: label of the model in results (default: the last part of `source`).

    Raises:
        UserError: in one line, a checkpoint that is not fine-tuned (no `lm_head`), has no
            Wav2Vec2CTCTokenizer, or whose head and tokenizer differ in tokens; a family that has
            no CTC models.
    """
    if untrained(str(source)):
        raise UserError(f"{source}: a random baseline has no CTC head; use load_encoder")
    checkpoint = open_checkpoint(
        source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
    )
    config = config_from_hf(checkpoint.config, checkpoint.preprocessor)
    if not family_of(config).ctc:
        raise UserError(f"{checkpoint.source}: a {config.family} has no CTC head; use load_encoder")
    # The small files first: their errors are reported before gigabytes are fetched.
    files = _tokenizer_files(checkpoint)
    tokenizer = _tokenizer(checkpoint, files)
    tensors = checkpoint.tensors()
    head = _head(checkpoint, config, tensors)
    blank = _blank(checkpoint, len(head.bias), tokenizer)
    others = {n: t for n, t in tensors.items() if not n.startswith("lm_head.")}
    encoder = encoder_of(checkpoint, config, others, name)
    return Recognizer(encoder, head, blank, tokenizer, files)


def _tokenizer_files(checkpoint: WeightFiles) -> tuple[Path, ...]:
    paths = [checkpoint.file(name) for name in _TOKENIZER_FILES]
    if paths[0] is None:
        raise UserError(
            f"{checkpoint.source}: there is no tokenizer ({_TOKENIZER_FILES[0]}); expected a "
            "checkpoint fine-tuned with CTC, saved together with its processor"
        )
    return tuple(path for path in paths if path)


def _tokenizer(checkpoint: WeightFiles, files: tuple[Path, ...]) -> Any:
    """transformers' tokenizer of the files, whose many fields are interpreted there only."""
    contents = {file.name: read_json(file) for file in files}
    kind = contents.get("tokenizer_config.json", {}).get("tokenizer_class") or _TOKENIZERS[0]
    if kind not in _TOKENIZERS:
        raise UserError(
            f"{checkpoint.source}: its tokenizer is a {kind}; only {_TOKENIZERS[0]} is supported"
        )
    language = _target_language(checkpoint, contents)
    logging.getLogger("transformers").addFilter(_not_about_torch)
    from transformers import Wav2Vec2CTCTokenizer

    try:
        return Wav2Vec2CTCTokenizer.from_pretrained(
            str(files[0].parent), local_files_only=True, target_lang=language
        )
    except Exception as error:
        # transformers' errors on untrusted files change with its version.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{checkpoint.source}: its tokenizer cannot be read ({reason})") from error


def _target_language(checkpoint: WeightFiles, contents: Mapping[str, Any]) -> str | None:
    """The language of a vocab.json with a vocabulary for each (MMS); None for a single one."""
    vocabularies, language = contents[_TOKENIZER_FILES[0]], checkpoint.language
    nested = bool(vocabularies) and all(isinstance(v, dict) for v in vocabularies.values())
    if not nested and language is None:
        return None
    if not nested:
        raise UserError(
            f"{checkpoint.source}: vocab.json has one vocabulary, and not one for each language; "
            "load_encoder does without it"
        )
    if language is None:
        language = contents.get("tokenizer_config.json", {}).get("target_lang")
    if not isinstance(language, str) or language not in vocabularies:
        some = ", ".join(sorted(vocabularies)[:8])
        missing = "" if language is None else f" and none for {str(language)[:80]!r}"
        raise UserError(
            f"{checkpoint.source}: vocab.json has vocabularies for {len(vocabularies)} languages "
            f"({some}){missing}; choose one as in ID#{min(vocabularies)}"
        )
    return language


def _not_about_torch(record: logging.LogRecord) -> bool:
    """Drop the warning of transformers' import that torch is missing: it is not needed here."""
    return "PyTorch was not found" not in record.getMessage()


def _head(
    checkpoint: WeightFiles, config: EncoderConfig, tensors: Mapping[str, np.ndarray]
) -> Head:
    names = [f"lm_head.{field}" for field in Head._fields]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise UserError(
            f"{checkpoint.source}: has no {' and no '.join(missing)}; expected a checkpoint "
            "fine-tuned with CTC (load_encoder reads the others)"
        )
    weight, bias = (tensors[name].astype(np.float32) for name in names)
    size = checkpoint.config.get("vocab_size", _VOCAB_SIZE)
    if weight.shape != (size, config.hidden_size) or bias.shape != (size,):
        raise UserError(
            f"{checkpoint.source}: lm_head has the shapes {list(weight.shape)} and "
            f"{list(bias.shape)}; expected {[size, config.hidden_size]} and {[size]} from "
            "config.json (vocab_size, hidden_size)"
        )
    return Head(jnp.asarray(weight), jnp.asarray(bias))


def _blank(checkpoint: WeightFiles, size: int, tokenizer: Any) -> int:
    """The blank token of config.json, after checking that head and tokenizer have equal tokens."""
    tokens = set(tokenizer.get_vocab().values())
    if not set(range(size)) <= tokens or tokenizer.vocab_size > size:
        raise UserError(
            f"{checkpoint.source}: lm_head has {size} tokens, vocab.json has "
            f"{tokenizer.vocab_size}; they belong to different models"
        )
    blank = checkpoint.config.get("pad_token_id", _PAD_TOKEN_ID)
    if not isinstance(blank, int) or not 0 <= blank < size:
        raise UserError(
            f"{checkpoint.source}: config.json has pad_token_id={blank!r}; expected the number of "
            f"the blank, below {size}"
        )
    if blank != tokenizer.pad_token_id:
        _log.warning(
            "%s: the blank is token %d in config.json, %s in the tokenizer; the former is dropped",
            checkpoint.source, blank, tokenizer.pad_token_id,
        )  # fmt: skip
    return blank

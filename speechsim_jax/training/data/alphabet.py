"""Characters as labels for CTC, and the tokenizer files that define them."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from speechsim_jax.errors import UserError
from speechsim_jax.models.error_rates import normalise
from speechsim_jax.models.recognizer import best_path

# The first tokens of wav2vec 2.0's vocabularies; "<pad>" is the blank, "|" the space.
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")
BLANK, _UNKNOWN, _SPACE = 0, 3, 4


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """The characters of transcripts; their labels follow those of the special tokens."""

    characters: tuple[str, ...]

    @classmethod
    def of(cls, transcripts: Iterable[str]) -> "Alphabet":
        """All characters of normalised transcripts. Raises UserError if there are none."""
        characters = {c for text in transcripts for c in normalise(text)} - {" "}
        if not characters:
            raise UserError("no transcript has a character; nothing can be learned from them")
        return cls(tuple(sorted(characters)))

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens by label."""
        return (*_SPECIAL, *self.characters)

    def restrict(self, text: str) -> str:
        """The normalised text without the characters that are not in the alphabet."""
        return normalise("".join(c for c in normalise(text) if c == " " or c in self.characters))

    def labels(self, text: str) -> Int32[np.ndarray, " label"]:
        """The labels of the normalised text; unknown characters have the label of "<unk>"."""
        label = {" ": _SPACE} | {c: k for k, c in enumerate(self.characters, len(_SPECIAL))}
        return np.array([label.get(c, _UNKNOWN) for c in normalise(text)], np.int32)

    def decode(self, best: Int[np.ndarray, " frame"]) -> str:
        """Best-path decoding: the text of the likeliest token of each frame."""
        tokens = (self.tokens[token] for token in best_path(best, BLANK))
        return "".join(" " if token == "|" else token for token in tokens).strip()

    def save(self, folder: Path) -> None:
        """Write the files that transformers' Wav2Vec2CTCTokenizer reads. Raises OSError."""
        files: dict[str, dict[str, Any]] = {
            "vocab.json": {token: label for label, token in enumerate(self.tokens)},
            "tokenizer_config.json": {
                "tokenizer_class": "Wav2Vec2CTCTokenizer",
                "pad_token": "<pad>",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "word_delimiter_token": "|",
                "do_lower_case": False,
            },
        }
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")

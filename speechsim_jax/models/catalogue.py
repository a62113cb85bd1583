"""The families of encoders that are read, as a table for people."""

import re
from typing import NamedTuple

from speechsim_jax.models.config import SAMPLE_RATE_HZ, EncoderConfig
from speechsim_jax.models.families import FAMILIES


class Known(NamedTuple):
    """What is known of a family, and cannot be read off its configuration.

    Attributes:
        examples: hub ids, each with the layers and neurons of the checkpoint.
        input: "samples", or "log-mel" of them.
        bias: what attention adds to its scores for the distance of two frames; "" for nothing.
        note: what else is to be known.
    """

    examples: tuple[str, ...]
    input: str = "samples"
    bias: str = ""
    note: str = ""


KNOWN = {
    "wav2vec2": Known(
        (
            "facebook/wav2vec2-base (12 x 768)", "facebook/wav2vec2-large-lv60 (24 x 1024)",
            "facebook/wav2vec2-xls-r-300m (24 x 1024)", "facebook/mms-1b-all (48 x 1280)",
        ),
        note="languages of MMS: ID#LANGUAGE",
    ),
    "hubert": Known(
        (
            "facebook/hubert-base-ls960 (12 x 768)", "facebook/hubert-large-ll60k (24 x 1024)",
            "facebook/hubert-xlarge-ll60k (48 x 1280)", "ntu-spml/distilhubert (2 x 768)",
        )
    ),
    "wavlm": Known(
        (
            "microsoft/wavlm-base-plus (12 x 768)", "microsoft/wavlm-large (24 x 1024)",
        ),
        bias="gated",
    ),
    "unispeech": Known(("microsoft/unispeech-large-1500h-cv (24 x 1024)",)),
    "unispeech-sat": Known(
        ("microsoft/unispeech-sat-base (12 x 768)", "microsoft/unispeech-sat-large (24 x 1024)")
    ),
    "data2vec-audio": Known(
        ("facebook/data2vec-audio-base (12 x 768)", "facebook/data2vec-audio-large (24 x 1024)")
    ),
    "sew": Known(("asapp/sew-mid-100k (24 x 512)",), note="frames are squeezed by two"),
    "wav2vec2-conformer": Known(
        (
            "facebook/wav2vec2-conformer-rel-pos-large (24 x 1024)",
            "facebook/wav2vec2-conformer-rope-large (24 x 1024)",
        ),
        bias="relative or rotary",
    ),
    "wav2vec2-bert": Known(
        ("facebook/w2v-bert-2.0 (24 x 1024)",), input="log-mel", bias="relative keys"
    ),
    "whisper": Known(
        (
            "openai/whisper-tiny (4 x 384)", "openai/whisper-base (6 x 512)",
            "openai/whisper-small (12 x 768)", "openai/whisper-medium (24 x 1024)",
            "openai/whisper-large-v3 (32 x 1280)",
        ),
        input="log-mel",
        note="the encoder alone",
    ),
}  # fmt: skip
"""By model_type."""


class Row(NamedTuple):
    """A family in the table.

    Attributes:
        family: model_type in config.json.
        class_name: of transformers' encoder.
        examples: as in `Known`.
        input: as in `Known`.
        frames_per_second: of its default configuration.
        window_ms: receptive field of a frame of its default configuration.
        heads: what can be read besides hidden states.
        note: what else is to be known.
    """

    family: str
    class_name: str
    examples: tuple[str, ...]
    input: str
    frames_per_second: float
    window_ms: float
    heads: str
    note: str


def rows() -> list[Row]:
    """All families, in the order of `FAMILIES`."""
    found = []
    for name, family in FAMILIES.items():
        known = KNOWN[name]
        config: EncoderConfig = family.config(family=name)
        heads = ["CTC"] if family.ctc else []
        heads += ["attention maps", *([f"position bias ({known.bias})"] if known.bias else [])]
        notes = [known.note] if known.note else []
        if config.longest_samples is not None:
            notes.append(f"input of at most {config.longest_samples / SAMPLE_RATE_HZ:g} s")
        found.append(
            Row(
                name,
                f"{family.class_stem}{family.encoder_class}",
                known.examples,
                known.input,
                SAMPLE_RATE_HZ / config.hop_samples,
                1000 * config.window_samples / SAMPLE_RATE_HZ,
                ", ".join(heads),
                "; ".join(notes),
            )
        )
    return found


def text() -> str:
    """The table for a terminal."""
    found = rows()
    widths = [max(map(len, column)) for column in zip(*((r.family, r.input) for r in found))]
    lines = []
    for row in found:
        lines.append(
            f"{row.family:{widths[0]}}  {row.input:{widths[1]}}  {row.frames_per_second:g} frames/s"
            f" of {row.window_ms:g} ms"
        )
        below = (row.heads, *row.examples, row.note)
        lines += [f"{'':{widths[0]}}    {line}" for line in below if line]
    return "\n".join(lines)


def markdown() -> str:
    """The table for the documentation."""
    heads = (
        "family (`model_type`)", "checkpoints (layers x neurons)", "input", "frames per second",
        "window", "read besides hidden states", "notes",
    )  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows():
        hub_ids = (re.sub(r"^\S+", r"`\g<0>`", example) for example in row.examples)
        cells = (
            f"`{row.family}`", ", ".join(hub_ids), row.input, f"{row.frames_per_second:g}",
            f"{row.window_ms:g} ms", row.heads, row.note,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)

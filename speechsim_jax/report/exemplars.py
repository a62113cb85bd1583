"""The section of exemplars: what excites matched neurons, side by side, as playable snippets."""

import io
import wave
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from speechsim_jax.audio.alignments import Segments
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ, AudioError, Corpus, Source, read
from speechsim_jax.errors import UserError, did_you_mean
from speechsim_jax.report.markup import html_text, missing, table
from speechsim_jax.results.exemplars import Exemplar, has_exemplars
from speechsim_jax.results.result import SimilarityResult

MOST_PAIRS = 24
MOST_SNIPPETS = 240
SNIPPET_SECONDS = 0.5
# Of one snippet as HTML: 8-bit samples in base64, and what is around them.
_SNIPPET_BYTES = 4 * (int(SNIPPET_SECONDS * SAMPLE_RATE_HZ) + 44) // 3 + 120

_INTRODUCTION = (
    "The frames with the largest activations of each neuron, at most one of an utterance; the time "
    "is that of the frame's centre. Matches are by |correlation|: of two neurons with a negative "
    "one, each is excited by what the other is not."
)


class Neuron(NamedTuple):
    """A neuron: the label of its representation, and its number."""

    label: str
    number: int

    def __str__(self) -> str:
        return f"{self.label}, neuron {self.number}"


class Match(NamedTuple):
    """A neuron, its best match elsewhere and their |correlation|; None where it is not known."""

    neuron: Neuron
    match: Neuron | None = None
    correlation: float = 0.0


def exemplars_section(
    result: SimilarityResult,
    room: int,
    audio: Corpus | None = None,
    neurons: Sequence[str] = (),
    segments: Mapping[str, Segments] | None = None,
) -> str:
    """The section as HTML; "" for a result without exemplars.

    Args:
        result: what the page shows.
        room: bytes that sound may take.
        audio: that it was compared on; without, only times are shown.
        neurons: that are shown besides the best-matched, as "MODEL/LAYER:NEURON".
        segments: of utterances, such as phones; those that are not known are left out.

    Raises:
        UserError: a neuron that is none, or is named in a result without exemplars.
    """
    if not has_exemplars(result.dataset):
        if neurons:
            result.exemplars(neurons[0].rpartition(":")[0])  # which says why
        return ""
    named = [parsed(text, result) for text in neurons]
    searched = _Matches(result)
    best = searched.best()
    matches = list(dict.fromkeys([*map(searched.of, named), *best[:MOST_PAIRS]]))
    every = dict.fromkeys(neuron for match in matches for neuron in _both(match))
    shown = {neuron: result.exemplars(*neuron) for neuron in every}
    places = [e for match in matches for neuron in _both(match) for e in shown[neuron]]
    notes = [_INTRODUCTION]
    if searched.known:
        notes.append(
            f"Pairs: the {min(len(best), MOST_PAIRS)} best of {len(best)}, one of each layer."
        )
    sounds: dict[Exemplar, str | None] = {}
    if audio is not None:
        heard = _with_room(places, min(MOST_SNIPPETS, room // _SNIPPET_BYTES))
        sounds = _sounds(audio, heard)
        silent = sum(e not in sounds for e in places)
        notes.append(
            f"Sound: {SNIPPET_SECONDS:g} s with the frame in the middle, scaled, in 8 bits"
            + (f"; left out of {silent} frames." if silent else ".")
        )
    content = "".join(
        _match_details(match, shown, sounds, segments, first=k == 0)
        for k, match in enumerate(matches)
    )
    problems = "" if audio is not None else missing(
        "This page was made without the audio, so that the frames cannot be heard; their times are "
        "there."
    )  # fmt: skip
    if not searched.known:
        problems += missing("No pairs of neurons are shown: maxcorr was not measured.")
    return (
        f'<section id="exemplars"><h2>What excites neurons</h2>'
        f'<p class="quiet">{html_text(" ".join(notes))}</p>{problems}{content}</section>'
    )


def parsed(text: str, result: SimilarityResult) -> Neuron:
    """The neuron that "MODEL/LAYER:NEURON" names.

    Raises:
        UserError: another form, or there is no such neuron in the result.
    """
    label, _, number = text.rpartition(":")
    if not label or not number.isascii() or not number.isdecimal():
        raise UserError(f"neuron {text!r}: expected MODEL/LAYER:NEURON, such as mine/3:17")
    labels = list(map(str, result.representations))
    if label not in labels:
        raise UserError(
            f"neuron {text!r}: no representation {label!r}{did_you_mean(label, labels)}"
        )
    result.exemplars(label, int(number))  # which says if it is none
    return Neuron(label, int(number))


class _Matches:
    """Best matches of neurons in other models; of a model alone, in its other layers.

    Args:
        result: with or without best matches.
    """

    def __init__(self, result: SimilarityResult):
        dataset = result.dataset
        self._labels = list(map(str, result.representations))
        self.known = {"best_corr", "best_match"} <= set(dataset)
        if not self.known:
            return
        of_model = np.array([name.model for name in result.representations])
        other = np.not_equal.outer(of_model, of_model)
        # What has no exemplars, as tracks, is not compared by them.
        has = (dataset["exemplar_utterance"].values >= 0).any(axis=(1, 2))
        if len(set(of_model[has])) == 1:
            other = ~np.eye(len(of_model), dtype=bool)
        other &= np.logical_and.outer(has, has)
        self._match = dataset["best_match"].values
        corr = np.where(other[:, :, None] & (self._match >= 0), dataset["best_corr"].values, -1)
        self._corr = np.nan_to_num(corr, nan=-1)

    def of(self, neuron: Neuron) -> Match:
        """A neuron with its best match."""
        if not self.known:
            return Match(neuron)
        x = self._labels.index(neuron.label)
        y = int(self._corr[x, :, neuron.number].argmax())
        correlation = float(self._corr[x, y, neuron.number])
        if correlation < 0:
            return Match(neuron)
        matched = Neuron(self._labels[y], int(self._match[x, y, neuron.number]))
        return Match(neuron, matched, correlation)

    def best(self) -> list[Match]:
        """The best pair of each representation, each pair once, by falling correlation."""
        if not self.known:
            return []
        found: dict[frozenset[Neuron], Match] = {}
        for x, label in enumerate(self._labels):
            match = self.of(Neuron(label, int(self._corr[x].max(axis=0).argmax())))
            if match.match is not None:
                found.setdefault(frozenset(_both(match)), match)
        return sorted(found.values(), key=lambda match: -match.correlation)


def _with_room(places: Sequence[Exemplar], room: int) -> list[Exemplar]:
    """The first exemplars, each once, that stand in at most so many places."""
    counts, chosen = Counter(places), []
    for exemplar in counts:
        room -= counts[exemplar]
        if room < 0:
            break
        chosen.append(exemplar)
    return chosen


def _both(match: Match) -> list[Neuron]:
    return [match.neuron] if match.match is None else [match.neuron, match.match]


def _match_details(
    match: Match,
    shown: Mapping[Neuron, Sequence[Exemplar]],
    sounds: Mapping[Exemplar, str | None],
    segments: Mapping[str, Segments] | None,
    first: bool,
) -> str:
    """The exemplars of two matched neurons side by side; only the first is unfolded."""
    title = " and ".join(map(str, _both(match)))
    if match.match is not None:
        title += f": |r| {match.correlation:.4f}"
    sides = "".join(
        f"<div><h3>{html_text(neuron)}</h3>{_table(shown[neuron], sounds, segments)}</div>"
        for neuron in _both(match)
    )
    return (
        f"<details{' open' * first}><summary>{html_text(title)}</summary>"
        f'<div class="side-by-side">{sides}</div></details>'
    )


def _table(
    found: Sequence[Exemplar],
    sounds: Mapping[Exemplar, str | None],
    segments: Mapping[str, Segments] | None,
) -> str:
    """The exemplars of one neuron."""
    if not found:
        return missing("It never changes.")
    heads = ["activation", "utterance", "time (s)"]
    rows = [[f"{e.value:.4g}", html_text(e.utterance), f"{e.seconds:.2f}"] for e in found]
    if segments is not None:
        heads.append("labels")
        for row, exemplar in zip(rows, found):
            row.append(_labels(segments.get(exemplar.utterance), exemplar.seconds))
    if sounds:
        heads.append("sound")
        for row, exemplar in zip(rows, found):
            row.append(_player(sounds, exemplar))
    return table(heads, rows)


def _labels(segments: Segments | None, seconds: float) -> str:
    """The labels in the snippet, that of the frame itself in bold."""
    if segments is None:
        return ""
    (middle,) = segments.at(np.array([seconds]))
    half = SNIPPET_SECONDS / 2
    inside = (segments.starts < seconds + half) & (segments.ends > seconds - half)
    labels = ((k, html_text(segments.labels[k])) for k in np.flatnonzero(inside))
    return " ".join(f"<b>{label}</b>" if k == middle else label for k, label in labels)


def _player(sounds: Mapping[Exemplar, str | None], exemplar: Exemplar) -> str:
    if exemplar not in sounds:
        return "left out"
    sound = sounds[exemplar]
    if sound is None:
        return "not in this audio"
    return f'<audio controls preload="none" src="data:audio/wav;base64,{sound}"></audio>'


def _sounds(audio: Corpus, exemplars: Iterable[Exemplar]) -> dict[Exemplar, str | None]:
    """The snippet around each exemplar as a WAV file in base64; None where it cannot be read."""
    of_utterance: dict[str, list[Exemplar]] = {}
    for exemplar in exemplars:
        of_utterance.setdefault(exemplar.utterance, []).append(exemplar)
    sources = {source.id: source for source in audio.sources}
    sounds: dict[Exemplar, str | None] = {}
    for utterance, of_one in of_utterance.items():
        samples = _samples(sources.get(utterance))
        for exemplar in of_one:
            sounds[exemplar] = None if samples is None else _wav(samples, exemplar.seconds)
    return sounds


def _samples(source: Source | None) -> Float32[np.ndarray, " sample"] | None:
    try:
        return None if source is None else read(source).samples
    except (AudioError, UserError):  # it was there when it was compared
        return None


def _wav(samples: Float32[np.ndarray, " sample"], seconds: float) -> str:
    """Half a second around a time, silent beyond the ends: 16 kHz, 8 bits, as loud as possible."""
    half = int(SNIPPET_SECONDS * SAMPLE_RATE_HZ) // 2
    centre = round(seconds * SAMPLE_RATE_HZ)
    around = np.pad(samples, half)[centre : centre + 2 * half]
    around = np.pad(around, (0, 2 * half - len(around)))
    loudest = max(float(np.abs(around).max()), 1e-9)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(SAMPLE_RATE_HZ)
        writer.writeframes((128 + np.round(127 * around / loudest)).astype(np.uint8).tobytes())
    return b64encode(file.getvalue()).decode()

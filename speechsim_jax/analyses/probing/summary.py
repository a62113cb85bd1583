"""What probes found, in shares of frames with their intervals: as a table, and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speechsim_jax.analyses.probing.classifier import (
    COMMONEST,
    Counts,
    Interval,
    ProbeAccuracies,
    interval,
)

# Fewer speakers than this can all lie on one side of the truth (2 of 2^n times, n speakers).
FEW_SPEAKERS = 8


@dataclasses.dataclass(frozen=True)
class Encoder:
    """What probes read from an encoder.

    `layers`: the accuracy at each depth; `best`: of the layer chosen in each fold (`chosen`);
    `gains`: the best layer's accuracy less that of what it is held against, by name.
    """

    name: str
    layers: tuple[Interval, ...]
    best: Interval
    chosen: tuple[int, ...]
    gains: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """All that was read; `baselines`: accuracies of what is no encoder."""

    baselines: Mapping[str, Interval]
    encoders: tuple[Encoder, ...]
    readings: ProbeAccuracies

    def table(self) -> str:
        """A line for each baseline, layer, best layer and gain, with its interval."""
        lines = [("", "accuracy", "95 % interval", "")]
        lines += [(name, *_percent(value), "") for name, value in self.baselines.items()]
        for encoder in self.encoders:
            lines.append((encoder.name, "", "", ""))
            for layer, value in enumerate(encoder.layers):
                lines.append((f"  layer {layer}", *_percent(value), ""))
            told = "layer " + ", ".join(map(str, encoder.chosen))
            lines.append(("  best, chosen on others", *_percent(encoder.best), told))
            for name, gain in encoder.gains.items():
                lines.append((f"  less {name}", *_percent(gain, "+"), ""))
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        told = [
            f"{name:{widths[0]}}  {value:>{widths[1]}}  {ends:>{widths[2]}}  {note}".rstrip()
            for name, value, ends, note in lines
        ]
        count = len(self.readings.speakers)
        told.append(f"{count} speakers tested, {int(self.readings.frames.sum())} frames")
        if count < FEW_SPEAKERS:
            told.append(f"{count} speakers are few: these intervals are too narrow to rely on")
        return "\n".join(told)

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        of = self.readings
        kinds = sorted(of.validation)
        return {
            "baselines": {name: _ends(value) for name, value in self.baselines.items()},
            "encoders": {
                encoder.name: {
                    "layers": [_ends(value) for value in encoder.layers],
                    "best": _ends(encoder.best),
                    "chosen_layers": list(encoder.chosen),
                    "gains": {name: _ends(gain) for name, gain in encoder.gains.items()},
                }
                for encoder in self.encoders
            },
            "speakers": {
                name: {
                    "fold": int(of.fold[place]),
                    "frames": int(of.frames[place]),
                    "correct": {kind: int(of.correct[kind][place]) for kind in of.correct},
                }
                for place, name in enumerate(of.speakers)
            },
            "validation": {kind: of.validation[kind].tolist() for kind in kinds},
            "penalties": {kind: list(of.penalties[kind]) for kind in kinds},
            "unfinished": of.unfinished,
        }


def summary(
    readings: ProbeAccuracies,
    layers: Mapping[str, Sequence[str]],
    untrained: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Found:
    """What the readings say, in shares of frames with their intervals.

    `layers`: the kinds of features that are an encoder's layers from the lowest, by its name; all
    other kinds are baselines. `untrained`: the encoder with random weights, by that which it is the
    counterpart of.
    """
    inner = {kind for kinds in layers.values() for kind in kinds}
    outer = [COMMONEST, *(kind for kind in readings.validation if kind not in inner)]

    def of(correct: Counts) -> Interval:
        return interval(correct, readings.frames, seed)

    best = {name: readings.best(kinds) for name, kinds in layers.items()}
    encoders = []
    for name, kinds in layers.items():
        chosen, correct = best[name]
        rivals = {kind: readings.correct[kind] for kind in outer[1:]}
        if other := (untrained or {}).get(name):
            rivals |= {other: best[other][1]}
        encoders.append(
            Encoder(
                name,
                tuple(of(readings.correct[kind]) for kind in kinds),
                of(correct),
                chosen,
                {rival: of(correct - counts) for rival, counts in rivals.items()},
            )
        )
    baselines = {kind: of(readings.correct[kind]) for kind in outer}
    return Found(baselines, tuple(encoders), readings)


def _percent(value: Interval, sign: str = "") -> tuple[str, str]:
    ends = f"{100 * value.low:{sign}.1f} to {100 * value.high:{sign}.1f}"
    return f"{100 * value.value:{sign}.1f} %", "" if np.isnan(value.low) else ends


def _ends(value: Interval) -> dict[str, float | None]:
    return {k: None if np.isnan(v) else v for k, v in value._asdict().items()}

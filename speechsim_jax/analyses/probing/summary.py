"""Probe accuracies with intervals over speakers, as a table and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from speechsim_jax.analyses.intervals import Interval, bootstrap_interval
from speechsim_jax.analyses.probing.classifier import COMMONEST, Counts, ProbeAccuracies

# Fewer speakers than this can all lie on one side of the truth (2 of 2^n times, n speakers).
FEW_SPEAKERS = 8


@dataclasses.dataclass(frozen=True)
class EncoderSummary:
    """Probe accuracies of one encoder.

    Attributes:
        name: The encoder.
        layers: Accuracy of each layer from the lowest.
        best: Accuracy of the layer chosen in each fold.
        chosen: The layer chosen in each fold.
        gains: `best` less the accuracy of each baseline and of the untrained encoder, by name.
    """

    name: str
    layers: tuple[Interval, ...]
    best: Interval
    chosen: tuple[int, ...]
    gains: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeSummary:
    """Probe accuracies of all encoders and baselines.

    Attributes:
        baselines: Accuracies of features that are not layers of an encoder, by kind.
        encoders: One entry an encoder.
        accuracies: The counts that the summary was made from.
        units: What they are over, `features.units_of`.
    """

    baselines: Mapping[str, Interval]
    encoders: tuple[EncoderSummary, ...]
    accuracies: ProbeAccuracies
    units: str = "speakers"

    def table(self) -> str:
        """A line for each baseline, layer, best layer and gain, with its interval."""
        rows = [("", "accuracy", "95 % interval", "")]
        rows += [(name, *_percent(value), "") for name, value in self.baselines.items()]
        for encoder in self.encoders:
            rows.append((encoder.name, "", "", ""))
            for layer, value in enumerate(encoder.layers):
                rows.append((f"  layer {layer}", *_percent(value), ""))
            chosen = "layer " + ", ".join(map(str, encoder.chosen))
            rows.append(("  best, chosen on others", *_percent(encoder.best), chosen))
            for name, gain in encoder.gains.items():
                rows.append((f"  less {name}", *_percent(gain, "+"), ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            f"{name:{widths[0]}}  {value:>{widths[1]}}  {ends:>{widths[2]}}  {note}".rstrip()
            for name, value, ends, note in rows
        ]
        count = len(self.accuracies.speakers)
        frames = int(self.accuracies.frames.sum())
        lines.append(f"{count} {self.units} tested, {frames} frames")
        if count < FEW_SPEAKERS:
            lines.append(f"{count} {self.units} are few: these intervals are too narrow to rely on")
        if self.units != "speakers":
            lines.append(
                "not all speakers are known: a probe may have been trained on the speaker that it "
                "is tested on, and the intervals are too narrow for new speakers"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        accuracies = self.accuracies
        kinds = sorted(accuracies.validation)
        return {
            "baselines": {name: _as_json(value) for name, value in self.baselines.items()},
            "encoders": {
                encoder.name: {
                    "layers": [_as_json(value) for value in encoder.layers],
                    "best": _as_json(encoder.best),
                    "chosen_layers": list(encoder.chosen),
                    "gains": {name: _as_json(gain) for name, gain in encoder.gains.items()},
                }
                for encoder in self.encoders
            },
            "units": self.units,
            "speakers": {
                name: {
                    "fold": int(accuracies.fold[index]),
                    "frames": int(accuracies.frames[index]),
                    "correct": {
                        kind: int(counts[index]) for kind, counts in accuracies.correct.items()
                    },
                }
                for index, name in enumerate(accuracies.speakers)
            },
            "validation": {kind: accuracies.validation[kind].tolist() for kind in kinds},
            "penalties": {kind: list(accuracies.penalties[kind]) for kind in kinds},
            "unfinished": accuracies.unfinished,
        }


def summarise(
    accuracies: ProbeAccuracies,
    layers: Mapping[str, Sequence[str]],
    untrained: Mapping[str, str] | None = None,
    seed: int = 0,
    units: str = "speakers",
) -> ProbeSummary:
    """Accuracies as shares of frames, with 95 % intervals over speakers.

    Args:
        accuracies: Cross-validated counts.
        layers: By encoder, the kinds of features that are its layers, from the lowest; all other
            kinds are baselines.
        untrained: By trained encoder, the name of the same architecture with random weights.
        seed: Of the bootstrap.
        units: What the accuracies are over, `features.units_of`.
    """
    layer_kinds = {kind for kinds in layers.values() for kind in kinds}
    baselines = [COMMONEST, *(kind for kind in accuracies.validation if kind not in layer_kinds)]

    def share(correct: Counts) -> Interval:
        return bootstrap_interval(correct, accuracies.frames, seed)

    best = {name: accuracies.best(kinds) for name, kinds in layers.items()}
    encoders = []
    for name, kinds in layers.items():
        chosen, correct = best[name]
        rivals = {kind: accuracies.correct[kind] for kind in baselines[1:]}
        if counterpart := (untrained or {}).get(name):
            rivals |= {counterpart: best[counterpart][1]}
        encoders.append(
            EncoderSummary(
                name,
                tuple(share(accuracies.correct[kind]) for kind in kinds),
                share(correct),
                chosen,
                {rival: share(correct - counts) for rival, counts in rivals.items()},
            )
        )
    return ProbeSummary(
        {kind: share(accuracies.correct[kind]) for kind in baselines},
        tuple(encoders),
        accuracies,
        units,
    )


def _percent(value: Interval, sign: str = "") -> tuple[str, str]:
    ends = f"{100 * value.low:{sign}.1f} to {100 * value.high:{sign}.1f}"
    return f"{100 * value.value:{sign}.1f} %", "" if np.isnan(value.low) else ends


def _as_json(value: Interval) -> dict[str, float | None]:
    return {name: None if np.isnan(x) else x for name, x in value._asdict().items()}

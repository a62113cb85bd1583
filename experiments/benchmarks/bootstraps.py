"""Standard errors on real speech against bootstraps over speakers.

Two trained encoders of the zoo, three layers of each. A bootstrap draws speakers with replacement,
with all of their utterances, and compares again; the spread of its scores is what a standard error
estimates. With C speakers a bootstrap's variance is (C - 1) / C of that of the influences, which
matters with ten.
"""

from collections.abc import Sequence

import numpy as np

import speechsim_jax as ss
from experiments.benchmarks.machine import report, report_machine
from speechsim_jax.audio.corpus import Utterance, read
from speechsim_jax.measures import MEASURES
from speechsim_jax.models.architecture import Outputs

_WHAT = "bootstraps"
_MODELS = ("zoo:contrastive_s", "zoo:predictive_s")
_LAYERS = (0, 2, 4)
_BATCH = 8


def run(speech: str, glob: Sequence[str], draws: int, small: bool = False) -> None:
    """Compare once with standard errors, and `draws` times on drawn speakers.

    Args:
      speech: folder or manifest whose speakers are known.
      glob: only utterances whose ids match one of these patterns.
      draws: bootstraps.
      small: a few utterances.
    """
    report_machine(_WHAT)
    sources = ss.open_corpus(speech, glob=glob).sources
    audio = [read(source) for source in sources[: 12 if small else None]]
    activations = {
        f"{model}/{layer}": rows
        for model in _MODELS
        for layer, rows in zip(_LAYERS, _hidden_states(ss.load_encoder(model), audio), strict=True)
    }
    frames = ss.load_encoder(_MODELS[0]).config.frames
    lengths = [frames(len(utterance.samples)) for utterance in audio]
    speaker = np.repeat([utterance.speaker for utterance in audio], lengths)
    measures = [name for name, measure in MEASURES.items() if measure.influence is not None]
    result = ss.compare_activations(activations, measures, errors=True, groups=speaker)
    of_speaker = {name: np.flatnonzero(speaker == name) for name in np.unique(speaker)}
    rng = np.random.default_rng(0)
    scores: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for _ in range(draws):
        drawn = rng.choice(list(of_speaker), len(of_speaker))
        rows = np.concatenate([of_speaker[name] for name in drawn])
        again = ss.compare_activations(
            {name: states[rows] for name, states in activations.items()}, measures, errors=False
        )
        for name in measures:
            scores[name].append(again.block(name, *again.models).values)
    about = {
        "speakers": len(of_speaker), "utterances": len(audio), "rows": len(speaker),
        "draws": draws,
    }  # fmt: skip
    correction = (len(of_speaker) / (len(of_speaker) - 1)) ** 0.5
    for name in measures:
        errors = result.standard_error(name)
        block = result.block(name, *result.models)
        errors = errors.sel(x=block.x, y=block.y).values
        ratios = errors / (np.std(scores[name], axis=0, ddof=1) * correction)
        low, high = float(ratios.min()), float(ratios.max())
        report(_WHAT, name, float(np.median(ratios)), "", **about, low=low, high=high)


def _hidden_states(encoder: ss.SpeechEncoder, audio: Sequence[Utterance]) -> list[np.ndarray]:
    """Of each layer, the frames of all utterances, [row, neuron]."""
    longest = max(len(utterance.samples) for utterance in audio)
    parts: list[list[np.ndarray]] = [[] for _ in _LAYERS]
    for start in range(0, len(audio), _BATCH):
        batch = audio[start : start + _BATCH]
        samples = np.zeros((_BATCH, longest), np.float32)  # one compiled shape
        lengths = np.zeros(_BATCH, np.int32)
        for row, utterance in enumerate(batch):
            lengths[row] = len(utterance.samples)
            samples[row, : lengths[row]] = utterance.samples
        hidden = np.asarray(encoder.apply(samples, lengths, Outputs(_LAYERS)).hidden_states)
        for row in range(len(batch)):
            for part, states in zip(parts, hidden, strict=True):
                part.append(states[row, : encoder.config.frames(int(lengths[row]))])
    return [np.concatenate(part) for part in parts]

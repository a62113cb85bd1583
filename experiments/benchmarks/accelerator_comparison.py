"""Whole comparisons on an accelerator: what their parts take, and how long the device waits.

Each is run twice. First its parts take turns, so that the time of each is known: all audio is
decoded, then for each batch samples are sent, encoded and added up, and each is waited for. Then,
with a single measure, as users run it: decoding, sending and computing overlap. What the device
computed in the first run, over the time that reading took in the second, is how busy it is.
"""

import contextlib
import importlib.util
import resource
import time
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jaxtyping import Int16

import speechsim_jax as ss
from experiments.benchmarks.accelerator_encoders import Sizes
from experiments.benchmarks.budget import Budget
from experiments.benchmarks.encoder import flops
from experiments.benchmarks.machine import cores
from speechsim_jax.audio import batching
from speechsim_jax.audio.corpus import SAMPLE_RATE_HZ
from speechsim_jax.comparison import encoders as comparison_of_encoders
from speechsim_jax.models import forward
from speechsim_jax.pipeline import one_pass
from speechsim_jax.pipeline.accumulators import Accumulators

_SPEAKERS = 20
_FAMILIES = ("wav2vec2", "hubert")
_LEAST_MINUTES = 0.2
# Of a whole comparison, against the peak of products; and of its programs.
_EFFICIENCY, _COMPILE_SECONDS = 0.4, 30.0
# Of one core, for the paper's measures of a pair of width 768 (`--what=scores`).
_SECONDS_A_PAIR = 0.2
_FRAMES_A_SECOND = 50

_COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def speech(minutes: float, seed: int = 0) -> dict[str, Int16[np.ndarray, " _"]]:
    """Utterances of 4 to 20 s of 20 speakers: harmonics of a moving pitch, syllables, noise.

    Args:
        minutes: in all.
        seed: of everything.
    """
    rng, left, made = np.random.default_rng(seed), 60 * minutes, {}
    while left > 1:
        seconds = min(left, rng.uniform(4, 20))
        left -= seconds
        t = np.arange(int(SAMPLE_RATE_HZ * seconds)) / SAMPLE_RATE_HZ
        pitch = rng.uniform(90, 220) + 40 * np.sin(2 * np.pi * (0.5 * t + rng.random()))
        phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
        voice = sum(np.sin(k * phase) / k for k in range(1, 12))
        syllables = np.clip(np.sin(2 * np.pi * (3 * t + rng.random())), 0, 1)
        x = syllables * voice + 0.1 * rng.standard_normal(len(t))
        number = len(made)
        made[f"s{number % _SPEAKERS:02}/u{number:04}"] = np.round(
            20_000 / np.abs(x).max() * x
        ).astype(np.int16)
    return made


class Comparison:
    """Comparisons of some encoders on synthetic speech.

    Args:
        scratch: for files.
        sizes: the encoders.
        minutes: of speech, where they fit into the time.
        peak: of float32 products, in FLOP/s.
    """

    def __init__(self, scratch: Path, sizes: Sizes, minutes: float, peak: float):
        self._scratch, self._sizes, self._minutes, self._peak = scratch, sizes, minutes, peak

    def models(self, sizes: Sequence[str]) -> list[ss.SpeechEncoder]:
        """Those of each size are of other families."""
        families = {size: iter(_FAMILIES) for size in sizes}
        return [self._sizes.encoder(size, next(families[size])) for size in sizes]

    def fitting(self, budget: Budget, part: str, sizes: Sequence[str], runs: int) -> float:
        """Minutes of speech on which so many runs take two thirds of what is left; 0 if too few."""
        configs = [self._sizes.config(size) for size in sizes]
        widths = [c.hidden_size for c in configs for _ in range(c.num_hidden_layers + 1)]
        pairs = sum(x * y for k, x in enumerate(widths) for y in widths[k:])
        work = sum(flops(c, SAMPLE_RATE_HZ * 10) / 10 for c in configs)
        work += 2 * _FRAMES_A_SECOND * pairs
        seconds = 60 * runs * work / (_EFFICIENCY * self._peak)
        left = 2 / 3 * budget.left - (0 if self._sizes.small else _COMPILE_SECONDS)
        minutes = min(self._minutes, round(left / seconds, 1))
        if minutes < _LEAST_MINUTES:
            least = 1.5 * (_LEAST_MINUTES * seconds + _COMPILE_SECONDS)
            budget.fits(part, max(least, budget.left + 1))
            return 0.0
        return minutes

    def audio(self, minutes: float) -> tuple[Any, str]:
        """The speech, as files or, where nothing can decode them, arrays; and which of the two."""
        utterances = speech(minutes)
        if importlib.util.find_spec("soundfile") is None:
            return utterances, "arrays"
        folder = self._scratch / f"speech-{minutes}"
        for name, samples in utterances.items():
            path = folder / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(SAMPLE_RATE_HZ)
                file.writeframes(samples.astype("<i2").tobytes())
        return str(folder), "WAV"

    def measure(self, budget: Budget, sizes: Sequence[str]) -> None:
        """Parts of a comparison that take turns, then the same as users run it."""
        part = f"comparison of {', '.join(sizes)}"
        minutes = self.fitting(budget, part, sizes, runs=2)
        if not minutes:
            return
        audio, kind = self.audio(minutes)
        about = {"models": len(sizes), "sizes": "+".join(sizes), "minutes": minutes, "audio": kind}
        measures = self._measures(budget, sizes, part)
        with in_turns() as seconds:
            result = self.run(audio, sizes, measures)
        seconds["save"] = self._save(result)
        computing = seconds["encode"] + seconds["update"]
        seconds["update"] += seconds["last update"]  # which is after reading
        for name in ("decode", "transfer", "encode", "update"):
            budget.report(name, seconds[name], "s", **about)
        budget.report("score", seconds["score"], "s", **about, measures=measures)
        saved = "netCDF" if _has_netcdf() else "CSV"
        budget.report("save", seconds["save"], "s", **about, file=saved)
        reading = self.run(audio, sizes, "lincka").attributes["encoding_seconds"]
        budget.report("reading, overlapped", reading, "s", **about)
        budget.report("reading, overlapped, rate", 60 * minutes / reading, "audio-s/s", **about)
        idle = max(0.0, 1 - computing / reading)
        budget.report("device idle while reading", idle, "ratio", **about)
        gib, whose = peak_memory()
        budget.report(f"peak memory so far, {whose}", gib, "GiB", **about)

    def _measures(self, budget: Budget, sizes: Sequence[str], part: str) -> str:
        """Those of the paper, or linear CKA alone where they would take too long."""
        configs = [self._sizes.config(size) for size in sizes]
        widths = [c.hidden_size for c in configs for _ in range(c.num_hidden_layers + 1)]
        cubes = float(np.mean([(width / 768) ** 3 for width in widths]))
        pairs = len(widths) * (len(widths) + 1) / 2
        seconds = _SECONDS_A_PAIR * pairs * cubes / cores()
        fits = budget.fits(f"{part}, the paper's scores", 2 * seconds)
        return "paper" if fits else "lincka"

    def run(
        self, audio: Any, sizes: Sequence[str], measures: str, mesh: str | None = None
    ) -> ss.SimilarityResult:
        """One comparison."""
        return ss.compare(
            self.models(sizes), audio, measures, mesh=mesh, errors_source="sample", progress=False
        )

    def _save(self, result: ss.SimilarityResult) -> float:
        """Seconds of saving."""
        started = time.perf_counter()
        if _has_netcdf():
            result.save(self._scratch / "result.nc")
        else:
            result.to_csv(self._scratch / "scores.csv")
        return time.perf_counter() - started


def scaling(budget: Budget, comparison: Comparison) -> None:
    """Reading on 1, 2, 4, ... devices, each with utterances of its own."""
    devices = jax.local_device_count()
    if devices == 1:
        budget.skip("scaling", "there is one device")
        return
    sizes = ("base", "base")
    counts = [2**k for k in range(devices.bit_length())]
    minutes = comparison.fitting(budget, "scaling", sizes, runs=2 * len(counts))
    if not minutes:
        return
    audio, _ = comparison.audio(minutes)
    rates = []
    for count in counts:
        comparison.run(audio, sizes, "lincka", f"data:{count}")  # compiles
        facts = comparison.run(audio, sizes, "lincka", f"data:{count}").attributes
        rates.append(facts["seconds"] / facts["encoding_seconds"])
        about = {"devices": count, "minutes": minutes}
        budget.report("reading", rates[-1], "audio-s/s", **about)
        budget.report("reading, over devices times that of one", rates[-1] / count / rates[0],
                      "ratio", **about)  # fmt: skip


def _has_netcdf() -> bool:
    return importlib.util.find_spec("h5netcdf") is not None


def peak_memory() -> tuple[float, str]:
    """GiB that a device has had in use at most, or this process where devices do not count."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if peaks:
        return max(peaks) / 2**30, "device"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "process"


class _Compiling:
    """Seconds of compiling in this process, in all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event in _COMPILE_EVENTS:
            self.seconds += duration_secs


_compiling = _Compiling()
jax.monitoring.register_event_duration_secs_listener(_compiling)


def _timed(seconds: dict[str, float], name: str, function: Callable) -> Callable[..., Any]:
    """The function, waited for, its time without compiling added to that of its name."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started, compiled = time.perf_counter(), _compiling.seconds
        result = jax.block_until_ready(function(*args, **kwargs))
        taken = time.perf_counter() - started - (_compiling.seconds - compiled)
        seconds[name] = seconds.get(name, 0.0) + max(taken, 0.0)
        return result

    return wrapper


@contextlib.contextmanager
def in_turns() -> Iterator[dict[str, float]]:
    """While this lasts, the parts of a comparison are waited for; their seconds, by name."""
    seconds: dict[str, float] = {}
    batches, place, append = batching.batches, one_pass.place_batch, Accumulators.append

    def decoded(*args: Any, **kwargs: Any) -> Iterator[batching.Batch]:
        yield from _timed(seconds, "decode", lambda: list(batches(*args, **kwargs)))()

    def sent(*args: Any) -> Any:
        return jax.device_put(place(*args))

    def added(self: Accumulators, *args: Any) -> None:
        append(self, *args)
        self.wait()

    def ended(self: Accumulators) -> Any:
        state = result(self)
        self.wait()
        return state

    scored, result = comparison_of_encoders.scored_result, Accumulators.result
    with (
        mock.patch.object(batching, "batches", decoded),
        mock.patch.object(one_pass, "place_batch", _timed(seconds, "transfer", sent)),
        mock.patch.object(forward, "encode", _timed(seconds, "encode", forward.encode)),
        mock.patch.object(Accumulators, "append", _timed(seconds, "update", added)),
        mock.patch.object(Accumulators, "result", _timed(seconds, "last update", ended)),
        mock.patch.object(
            comparison_of_encoders, "scored_result", _timed(seconds, "score", scored)
        ),
    ):
        yield seconds

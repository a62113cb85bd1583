"""Forward passes of full-size encoders: ours, and torch transformers on the same audio.

All ways of running a model take turns of two passes, of which the second is timed, so that noise of
the machine affects all of them; the figures are medians. Both load the same folder of weights.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import speechsim_jax as ss
from experiments.benchmarks.machine import SMALL, cores, report, report_machine, sgemm_rate
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.config import Wav2Vec2Config
from speechsim_jax.models.encoder import forward
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.models.weight_names import abstract_network
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator

_WHAT = "encoder"
LARGE = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    feat_extract_norm="layer",
    conv_bias=True,
    do_stable_layer_norm=True,
)
_XLARGE = LARGE | dict(hidden_size=1280, num_hidden_layers=48, intermediate_size=5120)
_SIZES = {"base": ({}, 4), "large": (LARGE, 2)}
_COMPILED = {"base": {}, "large": LARGE, "xlarge": _XLARGE}
_SECONDS = 10


def run(repeats: int, small: bool = False) -> None:
    """Time every way of running base and large."""
    report_machine(_WHAT)
    compile_times({"small": SMALL} if small else _COMPILED)
    for size, (fields, batch) in ({"small": (SMALL, 1)} if small else _SIZES).items():
        config = Wav2Vec2Config(family="wav2vec2", **fields)
        with tempfile.TemporaryDirectory() as scratch:
            folder = save_folder(Path(scratch), config, random_tensors(config, 0))
            samples = np.random.default_rng(0).standard_normal((batch, _SECONDS * 16_000))
            samples = 0.1 * samples.astype(np.float32)
            ways = ours(folder, samples) | torch_ways(folder, samples)
            for way in ways.values():
                way()
            times, rates = {name: [] for name in ways}, []
            for _ in range(repeats):
                rates.append(sgemm_rate())
                for name, way in ways.items():
                    way()  # so that memory and caches are warm, as in a loop
                    started = time.perf_counter()
                    way()
                    times[name].append(time.perf_counter() - started)
        _report(size, config, batch, {k: statistics.median(v) for k, v in times.items()}, rates)


def compile_times(sizes: dict[str, dict[str, Any]]) -> None:
    """Seconds to compile one shape of each size; nothing is run."""
    for size, fields in sizes.items():
        config = Wav2Vec2Config(family="hubert", **fields)
        graph, parameters = abstract_network(config)
        samples = jax.ShapeDtypeStruct((1, _SECONDS * 16_000), np.float32)
        lengths = jax.ShapeDtypeStruct((1,), np.int32)
        for mode, outputs in (("hidden", Outputs()), ("maps", Outputs(attentions=True))):
            started = time.perf_counter()
            forward.lower(
                parameters, samples, lengths, graph=graph, outputs=outputs, precision="highest"
            ).compile()
            seconds = time.perf_counter() - started
            layers = config.num_hidden_layers
            report(_WHAT, f"compile, {mode}", seconds, "s", size=size, layers=layers)


def ours(folder: Path, samples: np.ndarray) -> dict[str, Callable[[], object]]:
    """Hidden states alone, with attentions, and with the statistics of all layer pairs."""
    encoder = ss.load_encoder(folder)
    lengths = np.full(len(samples), samples.shape[1], np.int32)
    depth, width = encoder.config.num_hidden_layers + 1, encoder.config.hidden_size
    frames = int(encoder.config.frames(samples.shape[1]))
    positions = np.arange(len(samples) * frames)
    statistic = MomentsAccumulator((ModelShape(depth, width),), len(positions))

    def forward(outputs: Outputs, out: Activations | None = None) -> Activations:
        return jax.block_until_ready(encoder.apply(samples, lengths, outputs, out=out))

    def with_moments():
        statistic.append((forward(Outputs()).hidden_states,), positions)
        statistic.wait()

    previous: list[Activations | None] = [None]

    def overwriting():
        previous[0] = forward(Outputs(attentions=True), previous[0])

    return {
        "ours, hidden states": lambda: forward(Outputs()),
        "ours, with attentions": lambda: forward(Outputs(attentions=True)),
        "ours, with attentions, out=": overwriting,
        "ours, with statistics": with_moments,
    }


def torch_ways(folder: Path, samples: np.ndarray) -> dict[str, Callable[[], object]]:
    """transformers' own model: sdpa with hidden states, eager with hidden states and attentions."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(cores())
    ways = {}
    for name, attention, options in (
        ("torch sdpa, hidden states", "sdpa", {}),
        ("torch eager, with attentions", "eager", {"output_attentions": True}),
    ):
        model = AutoModel.from_pretrained(folder, attn_implementation=attention).eval()

        def way(model=model, options=options):
            with torch.inference_mode():
                return model(torch.from_numpy(samples), output_hidden_states=True, **options)

        ways[name] = way
    return ways


def flops(config: Wav2Vec2Config, samples: int) -> float:
    """Floating-point operations of the products of one utterance's forward pass."""
    total, channels = 0.0, 1
    for layer, (out, kernel) in enumerate(zip(config.conv_dim, config.conv_kernel), start=1):
        total += float(config.frames(samples, layer)) * channels * out * kernel
        channels = out
    frames, width = float(config.frames(samples)), config.hidden_size
    total += frames * channels * width
    total += (
        frames * width**2 * config.num_conv_pos_embeddings / config.num_conv_pos_embedding_groups
    )
    layer = 4 * width**2 + 2 * width * config.intermediate_size + 2 * frames * width
    return 2 * (total + config.num_hidden_layers * frames * layer)


def _report(
    size: str, config: Wav2Vec2Config, batch: int, seconds: dict[str, float], rates: list[float]
) -> None:
    peak = statistics.median(rates)
    work = batch * flops(config, _SECONDS * 16_000) / 1e9
    report(_WHAT, "products", work, "GFLOP", size=size, batch=batch, utterance_seconds=_SECONDS)
    report(_WHAT, "sgemm, median", peak, "GFLOP/s", size=size)
    for name, median in seconds.items():
        report(_WHAT, name, median, "s", size=size)
        report(_WHAT, f"{name}, rate", batch * _SECONDS / median, "audio-s/s", size=size)
        report(_WHAT, f"{name}, share of sgemm", work / median / peak, "ratio", size=size)
    for other, ours in (
        ("torch eager, with attentions", "ours, with attentions"),
        ("torch eager, with attentions", "ours, with attentions, out="),
        ("torch sdpa, hidden states", "ours, hidden states"),
        ("ours, with statistics", "ours, hidden states"),
    ):
        report(_WHAT, f"{other} : {ours}", seconds[other] / seconds[ours], "ratio", size=size)

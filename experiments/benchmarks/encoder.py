"""Forward passes of full-size encoders: ours, and torch transformers on the same audio.

All ways of running a model take turns of two passes, of which the second is timed, so that a noisy
machine hits all of them; the figures are medians. Ours and torch's weights are the same (a folder
that both load).
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import speechsim_jax as ss
from experiments.benchmarks.machine import sgemm_rate
from speechsim_jax.models.architecture import Activations, Outputs
from speechsim_jax.models.config import EncoderConfig
from speechsim_jax.models.encoder import forward
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.models.save import save_folder
from speechsim_jax.models.weight_names import abstract_network
from speechsim_jax.statistics.moments import ModelShape
from speechsim_jax.statistics.moments_accumulator import MomentsAccumulator

_LARGE = dict(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    feat_extract_norm="layer",
    conv_bias=True,
    do_stable_layer_norm=True,
)
_XLARGE = _LARGE | dict(hidden_size=1280, num_hidden_layers=48, intermediate_size=5120)
_SIZES = {"base": ({}, 4), "large": (_LARGE, 2)}
_SECONDS = 10
_THREADS = 2


def run(repeats: int) -> None:
    """Print a line for every way of running base and large."""
    compile_times()
    for size, (fields, batch) in _SIZES.items():
        config = EncoderConfig(family="wav2vec2", **fields)
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
                    way()  # as in a loop: what has lain idle for long is cold, or taken back
                    started = time.perf_counter()
                    way()
                    times[name].append(time.perf_counter() - started)
        _report(size, config, batch, {k: statistics.median(v) for k, v in times.items()}, rates)


def compile_times() -> None:
    """Seconds to compile one shape of 12, 24 and 48 layers; nothing is run."""
    for size, fields in {"base": {}, "large": _LARGE, "xlarge": _XLARGE}.items():
        config = EncoderConfig(family="hubert", **fields)
        graph, parameters = abstract_network(config)
        samples = jax.ShapeDtypeStruct((1, _SECONDS * 16_000), np.float32)
        lengths = jax.ShapeDtypeStruct((1,), np.int32)
        for mode, outputs in (("hidden", Outputs()), ("maps", Outputs(attentions=True))):
            started = time.perf_counter()
            forward.lower(
                parameters, samples, lengths, graph=graph, outputs=outputs, precision="highest"
            ).compile()
            seconds = time.perf_counter() - started
            print(
                f"compile {size:7} {config.num_hidden_layers:2} layers, {mode:6} {seconds:5.1f} s"
            )


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

    kept: list[Activations | None] = [None]

    def written_over():
        kept[0] = forward(Outputs(attentions=True), kept[0])

    return {
        "ours, hidden states": lambda: forward(Outputs()),
        "ours, with attentions": lambda: forward(Outputs(attentions=True)),
        "ours, with attentions, out=": written_over,
        "ours, with statistics": with_moments,
    }


def torch_ways(folder: Path, samples: np.ndarray) -> dict[str, Callable[[], object]]:
    """transformers' own model: sdpa with hidden states, eager with hidden states and attentions."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(_THREADS)
    ways = {}
    for name, attention, wanted in (
        ("torch sdpa, hidden states", "sdpa", {}),
        ("torch eager, with attentions", "eager", {"output_attentions": True}),
    ):
        model = AutoModel.from_pretrained(folder, attn_implementation=attention).eval()

        def way(model=model, wanted=wanted):
            with torch.inference_mode():
                return model(torch.from_numpy(samples), output_hidden_states=True, **wanted)

        ways[name] = way
    return ways


def flops(config: EncoderConfig, samples: int) -> float:
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
    size: str, config: EncoderConfig, batch: int, seconds: dict[str, float], rates: list[float]
) -> None:
    peak = statistics.median(rates)
    work = batch * flops(config, _SECONDS * 16_000) / 1e9
    print(f"\n{size}: {batch} x {_SECONDS} s, {work:.0f} GFLOP; sgemm {peak:.0f} GFLOP/s (median)")
    for name, median in seconds.items():
        rate, share = batch * _SECONDS / median, work / median / peak
        print(f"  {name:32} {median:7.3f} s  {rate:6.1f} audio-s/s  {share:5.0%} of sgemm")
    ratios = {
        "torch eager / ours, with attentions": seconds["torch eager, with attentions"]
        / seconds["ours, with attentions"],
        "torch eager / ours, with attentions, out=": seconds["torch eager, with attentions"]
        / seconds["ours, with attentions, out="],
        "torch sdpa / ours, hidden states": seconds["torch sdpa, hidden states"]
        / seconds["ours, hidden states"],
        "with statistics / without": seconds["ours, with statistics"]
        / seconds["ours, hidden states"],
    }
    print("  " + json.dumps({name: round(ratio, 2) for name, ratio in ratios.items()}))

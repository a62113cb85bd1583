"""Forward passes of random encoders of full size, and of torch's on the same device."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.accelerator_products import HIGHEST
from experiments.benchmarks.budget import Budget, seconds_of
from experiments.benchmarks.encoder import LARGE, flops
from experiments.benchmarks.machine import SMALL
from speechsim_jax.models import weight_names
from speechsim_jax.models.architecture import Outputs
from speechsim_jax.models.config import SAMPLE_RATE_HZ, Wav2Vec2Config
from speechsim_jax.models.encoder import SpeechEncoder
from speechsim_jax.models.initial_weights import random_tensors
from speechsim_jax.statistics.product_precision import resolved

_SECONDS = 10
_BATCH = 4
# Compiling an encoder by XLA, and by torch.
_COMPILE_SECONDS, _TORCH_COMPILE_SECONDS = 10.0, 60.0


class Sizes:
    """Encoders of random weights, each made once.

    Args:
        small: tiny ones in the place of all.
    """

    def __init__(self, small: bool):
        self.small = small
        self._made: dict[tuple[str, str], SpeechEncoder] = {}

    def config(self, size: str, family: str = "wav2vec2") -> Wav2Vec2Config:
        """Of "base" or "large"."""
        fields: dict[str, Any] = SMALL if self.small else LARGE if size == "large" else {}
        return Wav2Vec2Config(family=family, **fields)

    def encoder(self, size: str, family: str = "wav2vec2") -> SpeechEncoder:
        """Its parameters are on the device."""
        if (size, family) not in self._made:
            config, name = self.config(size, family), f"{family}-{size}"
            tensors = random_tensors(config, 0)
            graph, parameters, _ = weight_names.fill(config, tensors, "random weights")
            made = SpeechEncoder(name, config, graph, jax.device_put(parameters), {"source": name})
            self._made[size, family] = made
        return self._made[size, family]


def encoders(budget: Budget, scratch: Path, sizes: Sizes, peak: float) -> None:
    """Rates of base and large: hidden states, attentions, bfloat16; then torch."""
    length = (1 if sizes.small else _SECONDS) * SAMPLE_RATE_HZ
    samples = 0.1 * np.random.default_rng(0).standard_normal((_BATCH, length)).astype(np.float32)
    for size in ("base", "large"):
        work = _BATCH * flops(sizes.config(size), length)
        about = {"size": size, "batch": _BATCH, "utterance_seconds": length // SAMPLE_RATE_HZ}

        def measure(
            name: str,
            call: Callable[[], object],
            about: dict[str, Any] = about,
            work: float = work,
        ) -> None:
            rate = _BATCH * length / SAMPLE_RATE_HZ / seconds_of(call)
            budget.report(name, rate, "audio-s/s", **about)
            achieved = work * rate / (_BATCH * length / SAMPLE_RATE_HZ)
            budget.report(f"{name}, share of peak", achieved / peak, "ratio", **about)

        for name, call in ours(sizes.encoder(size), samples).items():
            needed = _COMPILE_SECONDS * (not sizes.small) + 4 * work / peak
            part = f"{name}, {size}"
            budget.attempt(part, functools.partial(measure, name, call), needed)
        for name, make in torch_ways(sizes.encoder(size), samples, scratch / size).items():
            compiled = _TORCH_COMPILE_SECONDS * name.endswith("compiled") * (not sizes.small)
            part = f"{name}, {size}"
            budget.attempt(
                part,
                lambda name=name, make=make, measure=measure: measure(name, make()),
                compiled + 4 * work / peak,
            )


def ours(encoder: SpeechEncoder, samples: np.ndarray) -> dict[str, Callable[[], object]]:
    """Ways of running an encoder, on samples that are on the device."""
    on_device = jnp.asarray(samples)
    lengths = jnp.full(len(samples), samples.shape[1], jnp.int32)

    def way(precision: str, dtype: str = "float32", **outputs: Any) -> Callable[[], object]:
        def call() -> object:
            of_dtype = encoder if dtype == "float32" else rounded()
            return of_dtype.apply(on_device, lengths, Outputs(**outputs), precision)

        return call

    rounded = functools.cache(lambda: encoder.astype("bfloat16"))
    ways = {
        "ours, hidden states": way(HIGHEST),
        "ours, hidden states, bfloat16": way("default", "bfloat16"),
        "ours, with attentions": way(HIGHEST, attentions=True),
        "ours, hidden states, default precision": way("default"),
    }
    if (chosen := resolved("auto")) != HIGHEST:
        ways[f"ours, hidden states, {chosen}"] = way(chosen)
    return ways


def torch_ways(
    encoder: SpeechEncoder, samples: np.ndarray, folder: Path
) -> dict[str, Callable[[], Callable[[], object]]]:
    """transformers' model of the same weights; each is made when it is to be timed.

    On the device of jax, in float32 without TF32, unless the name says otherwise.
    """
    kinds = {"cpu": "cpu", "gpu": "cuda"}

    def model(attention: str, dtype: str = "float32", compiled: bool = False) -> Any:
        import torch
        from transformers import AutoModel

        device = kinds.get(jax.default_backend())
        if device is None or (device == "cuda" and not torch.cuda.is_available()):
            raise RuntimeError(f"torch has no {jax.default_backend()}")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        if not folder.exists():
            encoder.save(folder)
        loaded = AutoModel.from_pretrained(folder, attn_implementation=attention).eval()
        loaded = loaded.to(device=device, dtype=getattr(torch, dtype))
        inputs = torch.from_numpy(samples).to(device=device, dtype=getattr(torch, dtype))
        run = torch.compile(loaded) if compiled else loaded

        def call(**options: bool) -> None:
            with torch.inference_mode():
                run(inputs, output_hidden_states=True, **options)
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    return {
        "torch sdpa, hidden states": lambda: model("sdpa"),
        "torch eager, with attentions": lambda: functools.partial(
            model("eager"), output_attentions=True
        ),
        "torch sdpa, hidden states, bfloat16": lambda: model("sdpa", "bfloat16"),
        "torch sdpa, hidden states, compiled": lambda: model("sdpa", compiled=True),
    }

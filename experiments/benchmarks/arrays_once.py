"""One comparison of arrays in a process of its own, as `arrays` times it.

    python -m experiments.benchmarks.arrays_once WHO ROWS LAYERS WIDTH CALLS OUT

WHO is ours, or pytorch-cka. The last line printed has the seconds of each call; OUT gets the scores
of the layers of one model with those of the other, as .npy.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np


def representations(rows: int, layers: int, width: int) -> dict[str, list[np.ndarray]]:
    """Two models' layers, which share directions; means are about as large as deviations."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((rows, 100), np.float32)

    def layer() -> np.ndarray:
        x = shared @ rng.standard_normal((100, width), np.float32)
        x += 5 * rng.standard_normal((rows, width), np.float32)
        x += rng.standard_normal(width, np.float32) * 10
        return x

    return {name: [layer() for _ in range(layers)] for name in "ab"}


def ours(models: dict[str, list[np.ndarray]]) -> Callable[[], np.ndarray]:
    """`compare_activations`: every pair of all layers."""
    import speechsim_jax as ss

    arrays = {f"{name}/{k}": x for name, of in models.items() for k, x in enumerate(of)}
    half, name, compare = len(models["a"]), "lincka_debiased", ss.compare_activations
    return lambda: compare(arrays, name).matrix(name).values[:half, half:]


def pytorch_cka(models: dict[str, list[np.ndarray]]) -> Callable[[], np.ndarray]:
    """Its `cka_from_features`: the layers of one model with those of the other."""
    import cka  # pyright: ignore[reportMissingImports]
    import torch

    a, b = ([torch.from_numpy(x) for x in of] for of in models.values())
    return lambda: cka.cka_from_features(a, b).numpy()


def main() -> None:
    """Time the calls."""
    who, *numbers, out = sys.argv[1:]
    rows, layers, width, calls = map(int, numbers)
    compute = {"ours": ours, "pytorch-cka": pytorch_cka}[who](representations(rows, layers, width))
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        scores = compute()
        seconds.append(time.perf_counter() - started)
        np.save(out, scores)
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()

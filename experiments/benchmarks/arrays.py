"""A quick look at arrays: debiased linear CKA of two models' layers, ours and pytorch-cka.

pytorch-cka (the package of that name) is timed where it is installed and its Gram matrices of all
layers, which it has at once, fit into memory.
"""

import importlib.util
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from experiments.benchmarks.arrays_once import representations
from experiments.benchmarks.machine import report, report_machine
from experiments.benchmarks.processes import Completed, run_module

_WHAT = "arrays"
_ROWS = (2000, 4000, 8000, 32_000)
_LAYERS, _WIDTH = 13, 768
# pytorch-cka has the Gram matrices and, of one model's at a time, their squares.
_COPIES = 1.6


def run(repeats: int, small: bool = False) -> None:
    """Time both, in turns of processes of their own.

    Args:
      repeats: turns, of which figures are the median.
      small: few rows of few narrow layers.
    """
    report_machine(_WHAT)
    layers, width = (2, 16) if small else (_LAYERS, _WIDTH)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for rows in (50,) if small else _ROWS:
        who = ["ours"]
        if importlib.util.find_spec("cka") and 8 * layers * rows**2 * _COPIES < memory:
            who.append("pytorch-cka")
        with tempfile.TemporaryDirectory() as scratch:
            runs: dict[str, list[Completed]] = {name: [] for name in who}
            for _ in range(repeats):
                for name in who:
                    out = str(Path(scratch) / f"{name}.npy")
                    sizes = [str(size) for size in (rows, layers, width, 3)]
                    module = "experiments.benchmarks.arrays_once"
                    runs[name].append(run_module(module, [name, *sizes, out]))
            scores = {name: np.load(Path(scratch) / f"{name}.npy") for name in who}
        seconds = {name: [of.last_line()["seconds"] for of in runs[name]] for name in who}
        for name in who:
            about = {"rows": rows, "by": name}
            later = [statistics.median(of[1:]) for of in seconds[name]]
            report(
                _WHAT, "first call", statistics.median(of[0] for of in seconds[name]), "s", **about
            )
            report(_WHAT, "later calls", statistics.median(later), "s", **about)
            report(_WHAT, "peak RSS", max(of.peak_gib for of in runs[name]), "GiB", **about)
        if len(who) == 2:
            ratios = [
                statistics.median(theirs[1:]) / statistics.median(mine[1:])
                for mine, theirs in zip(seconds["ours"], seconds["pytorch-cka"])
            ]
            report(_WHAT, "pytorch-cka : ours", statistics.median(ratios), "ratio", rows=rows)
        if rows <= 2000:
            exact = debiased(representations(rows, layers, width))
            for name in who:
                error = float(np.abs(scores[name] - exact).max())
                report(_WHAT, "largest error", error, "absolute", rows=rows, by=name)


def debiased(models: dict[str, list[np.ndarray]]) -> np.ndarray:
    """The scores in float64, from Gram matrices (Song et al. 2012, equation 5)."""
    grams = []
    for layer in (layer for of in models.values() for layer in of):
        x = layer.astype(np.float64)
        gram = (x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    n = len(grams[0])
    sums = np.stack([gram.sum(axis=1) for gram in grams])
    cells = np.stack([gram.ravel() for gram in grams])
    total = sums.sum(axis=1)
    hsic = cells @ cells.T + np.outer(total, total) / ((n - 1) * (n - 2))
    hsic -= 2 * sums @ sums.T / (n - 2)
    own, half = np.sqrt(np.diagonal(hsic)), len(grams) // 2
    return (hsic / np.outer(own, own))[:half, half:]

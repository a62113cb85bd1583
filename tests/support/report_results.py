"""Results of random numbers with everything that a comparison adds, and a reader of pages."""

import gzip
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from speechsim_jax.results.exemplars import exemplar_variables
from speechsim_jax.results.result import RepresentationName, SimilarityResult
from speechsim_jax.statistics.exemplars import Exemplars


class Shape(NamedTuple):
    """The sizes of a model: hidden states, neurons, attention heads (0: no attention level)."""

    layers: int
    width: int
    heads: int


# Two base and two large models: 76 representations.
FULL_SIZE = {
    "facebook/wav2vec2-base-960h": Shape(13, 768, 12),
    "facebook/hubert-base-ls960": Shape(13, 768, 12),
    "facebook/wav2vec2-large-lv60": Shape(25, 1024, 16),
    "facebook/hubert-large-ll60k": Shape(25, 1024, 16),
}
SMALL = {
    "org/first-<b>&small": Shape(4, 30, 3),
    "org/second-base": Shape(3, 24, 2),
    "runs/third-large": Shape(6, 40, 4),
}
ON_LAYERS = {
    "maxcorr": (False, (0, 1), "best correlations"),
    "lincka": (True, (0, 1), "linear CKA"),
    "svcca": (True, (0, 1), "canonical correlations"),
    "procrustes_distance": (True, (0, 1.5708), "angle"),
}
ON_HEADS = {
    "attn_frobenius": (False, (-np.inf, 1), "distance of the maps"),
    "attn_js": (False, (0.3069, 1), "divergence of the rows"),
}
DISTANCES = ("procrustes_distance",)
INFLATED = ("maxcorr", "lincka", "svcca")
EVERY_MEASURE = 22
"""How many measures on layers `--measures=all` computes, without rankings."""


def random_result(
    models: dict[str, Shape], measures: int = 4, seed: int = 0, frames: int = 967_512
) -> SimilarityResult:
    """Like the result of a comparison, of smooth random similarities."""
    rng = np.random.default_rng(seed)
    representations = [
        RepresentationName(name, i) for name, shape in models.items() for i in range(shape.layers)
    ]
    count = len(representations)
    known = dict(ON_LAYERS)
    known |= {f"extra_{i}": (True, (0, 1), "more") for i in range(measures - len(known))}
    matrices, definitions = {}, {}
    for name, (symmetric, ends, summary) in known.items():
        matrices[name] = _smooth(rng, count) * (1 if symmetric else np.linspace(0.7, 1, count))
        definitions[name] = _definition(symmetric, ends, summary, "layer") | {
            "higher_is_closer": name not in DISTANCES,
            "inflated_by_few_rows": name in INFLATED,
            "statistic": "moments",
        }
    extras = _neurons(rng, models, representations) | _facts(rng, models, representations)
    attention = [n for n in representations if n.layer and models[n.model].heads]
    if attention:
        heads, more = _heads(rng, models, attention)
        matrices, extras = matrices | heads, extras | more
        definitions |= {n: _definition(*ON_HEADS[n], "attention") for n in ON_HEADS}
    return SimilarityResult.build(
        representations,
        matrices,
        extras,
        definitions,
        _attributes(models, frames),
        attention_representations=attention,
        dims={name: ("x_attention", "y_attention") for name in ON_HEADS},
    )


def with_exemplars(
    result: SimilarityResult, utterances: dict[str, int], count: int = 5, seed: int = 0
) -> SimilarityResult:
    """The result with random exemplars in utterances of so many samples."""
    rng = np.random.default_rng(seed)
    names = tuple(utterances)
    live = [np.ones(int(width), bool) for width in result.dataset["width"].values]
    total = sum(map(len, live))
    utterance = rng.permuted(np.tile(np.arange(len(names)), (total, 1)), axis=1)[:, :count].T
    lengths = np.array(list(utterances.values()))
    found = Exemplars(
        names,
        -np.sort(-rng.standard_normal((count, total)), axis=0).astype(np.float32),
        utterance.astype(np.int32),
        rng.integers(0, lengths[utterance]).astype(np.int32),
        np.full(total, -9, np.float32),
        tuple((0, k) for k in range(len(live))),
        tuple(map(len, live)),
    )
    return SimilarityResult(result.dataset.assign(exemplar_variables(found, live)))


def heads_alone(models: dict[str, Shape]) -> SimilarityResult:
    """Like a comparison of attention heads only: layer 0 is there, but without any numbers."""
    representations = [
        RepresentationName(name, i) for name, shape in models.items() for i in range(shape.layers)
    ]
    attention = [representation for representation in representations if representation.layer]
    heads, extras = _heads(np.random.default_rng(0), models, attention)
    return SimilarityResult.build(
        representations,
        heads,
        extras,
        {name: _definition(*ON_HEADS[name], "attention") for name in ON_HEADS},
        _attributes(models, 967_512),
        attention_representations=attention,
        dims={name: ("x_attention", "y_attention") for name in ON_HEADS},
    )


def scores_within(low: float, high: float) -> SimilarityResult:
    """Two models of three layers, all scores of one with the other between `low` and `high`."""
    representations = [RepresentationName(model, i) for model in "ab" for i in range(3)]
    values = np.random.default_rng(0).uniform(low, high, (6, 6))
    values[0, 3], values[1, 4] = low, high
    np.fill_diagonal(values, 1)
    ends = {"mine": _definition(True, (0, 1), "", "layer")}
    return SimilarityResult.build(representations, {"mine": values}, {}, ends)


def _definition(symmetric: bool, ends: tuple, summary: str, level: str) -> dict[str, Any]:
    about = {"symmetric": symmetric, "range": ends, "summary": summary, "level": level}
    return about | {"reference": "Author 2024, equation 1"}


def _smooth(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.abs(np.corrcoef(rng.standard_normal((count, 40)).cumsum(axis=0)))


def _neurons(
    rng: np.random.Generator, models: dict[str, Shape], representations: list[RepresentationName]
) -> dict[str, Any]:
    """Best matches and canonical correlations, padded with NaN and -1 to the widest layer."""
    widths = np.array([models[n.model].width for n in representations])
    count, widest = len(representations), int(widths.max())
    padding = np.arange(widest) >= widths[:, None]
    corr = rng.beta(2, 4, (count, count, widest)).astype(np.float32)
    match = rng.integers(0, widths[:, None], (count, count, widest)).astype(np.int32)
    corr[np.broadcast_to(padding[:, None], corr.shape)] = np.nan
    match[np.isnan(corr)] = -1
    directions = np.minimum.outer(widths, widths) * 9 // 10
    shape = (count, count, int(directions.max()))
    rho = -np.sort(-rng.beta(2, 3, shape).astype(np.float32), axis=2)
    rho[np.arange(rho.shape[2]) >= directions[:, :, None]] = np.nan
    return {
        "best_corr": (("x", "y", "neuron"), corr),
        "best_match": (("x", "y", "neuron"), match),
        "svcca_rho": (("x", "y", "k"), rho),
        "svcca_rho2_floor": (("x", "y"), rng.uniform(0.01, 0.02, (count, count))),
        "lincka_floor": (("x", "y"), rng.uniform(0.001, 0.01, (count, count))),
    }


def _facts(
    rng: np.random.Generator, models: dict[str, Shape], representations: list[RepresentationName]
) -> dict[str, Any]:
    widths = np.array([models[n.model].width for n in representations])
    values = {
        "width": widths,
        "rank": widths - 1,
        "condition": 10 ** rng.uniform(2, 5, len(widths)),
        "svcca_directions": widths * 8 // 10,
        "dead_neurons": rng.integers(0, 3, len(widths)),
        "outlier_share": rng.uniform(0.02, 0.4, len(widths)),
        "mean_to_std": 10 ** rng.uniform(0, 2, len(widths)),
    }
    return {name: (("x",), array) for name, array in values.items()}


def _heads(
    rng: np.random.Generator, models: dict[str, Shape], representations: list[RepresentationName]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    counts = np.array([models[n.model].heads for n in representations])
    most, dims = int(counts.max()), ("x_attention", "y_attention")
    missing = np.arange(most) >= counts[:, None]
    matrices, extras = {}, {"baseline": (("baseline",), np.array(["diagonal", "shift"], object))}
    for name in ON_HEADS:
        blocks = rng.uniform(0.4, 0.99, (len(counts), len(counts), most, most)).astype(np.float32)
        blocks[np.broadcast_to(missing[:, None, :, None], blocks.shape)] = np.nan
        blocks[np.broadcast_to(missing[None, :, None, :], blocks.shape)] = np.nan
        best = np.fmax.reduce(blocks, axis=3)
        match = np.nan_to_num(blocks, nan=-1).argmax(axis=3).astype(np.int32)
        baseline = rng.uniform(0.3, 0.5, (len(counts), 2, most)).astype(np.float32)
        baseline[np.broadcast_to(missing[:, None], baseline.shape)] = np.nan
        matrices[name] = np.nanmean(best, axis=2)
        extras |= {
            f"{name}_heads": ((*dims, "head_x", "head_y"), blocks),
            f"{name}_best": ((*dims, "head_x"), best),
            f"{name}_match": ((*dims, "head_x"), np.where(np.isnan(best), -1, match)),
            f"{name}_baseline": (("x_attention", "baseline", "head_x"), baseline),
        }
    return matrices, extras


def _attributes(models: dict[str, Shape], frames: int) -> dict[str, Any]:
    metadata = {
        "source": "hub", "revision": "a" * 40, "sha256": "0123456789abcdef" * 4,
        "model_type": "hubert", "do_normalize": True, "notes": [],
    }  # fmt: skip
    return {
        "note": "random numbers",
        "models": {name: metadata for name in models},
        "corpus": {"origin": "speech/dev-clean", "fingerprint": "f" * 64, "speakers": 40},
        "settings": {"layers": None, "seed": 0, "strict": False, "drop_labels": ["SIL"]},
        "frames": frames,
        "rows": frames,
        "utterances": 2703,
        "seconds": 19_395.2,
        "reading": {"channels averaged": 3},
        "skipped": [{"id": "a/broken\udcff.flac", "reason": "cannot be decoded"}],
        "versions": {"python": "3.11.7", "jax": "0.10.1"},
        "device": {"platform": "cpu", "count": 1},
        "created": "2026-11-20T03:52:35+00:00",
    }


class Page(HTMLParser):
    """A page read back: its tags in order, its text, its links, and the packed data."""

    _VOID = ("meta", "link", "input", "br", "img", "hr")

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.references: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """The text of the page, without scripts."""
        return " ".join(" ".join(self.texts).split())

    def packed(self, name: str) -> bytes:
        """The bytes that a script element holds."""
        match = re.search(f'id="{name}">([^<]*)</script>', self.source)
        assert match, name
        return gzip.decompress(b64decode(match[1]))

    def facts(self) -> Any:
        """The data that the page's scripts read, with arrays in the place of their entries."""
        data = self.packed("data")
        start = 4 + int.from_bytes(data[:4], "little")

        def decode(entry: dict[str, Any]) -> Any:
            if "offset" not in entry:
                return entry
            kind = np.dtype(entry["type"]).newbyteorder("<")
            size = int(np.prod(entry["shape"]))
            values = np.frombuffer(data, kind, size, start + entry["offset"])
            values = values.reshape(entry["shape"])
            if "step" in entry:
                numbers = entry["low"] + entry["step"] * values
                return np.where(values == entry["missing"], np.nan, numbers)
            if "missing" in entry:
                return np.where(values == entry["missing"], -1, values.astype(np.int64))
            return values

        return json.loads(data[4:start], object_hook=decode)

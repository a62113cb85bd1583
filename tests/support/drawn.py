"""Results of random similarities to draw, and readers of what a figure shows."""

from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from speechsim_jax.results.result import RepresentationName, SimilarityResult

PAPER = {
    "facebook/hubert-base-ls960": 13,
    "facebook/hubert-large-ll60k": 24,
    "facebook/wav2vec2-base-960h": 13,
    "facebook/wav2vec2-large-lv60": 24,
}
UNEQUAL = {
    "log-mel": 1,
    "mfcc": 2,
    "org/hubert-large-ll60k": 24,
    "microsoft/wavlm-large": 25,
    "org/data2vec-audio-base-960h": 13,
    "org/xls-r-$1b$-a_very-long-name-to-shorten-somewhere": 35,
}
SHAPES = {
    "two": {"a0": 1, "b": 1},
    "four": {"facebook/hubert-base-ls960": 2, "facebook/wav2vec2-base-960h": 2},
    "one-model": {"facebook/hubert-base-ls960": 13},
    "paper": PAPER,
    "unequal": UNEQUAL,
    "many": {f"representation-{i}": 1 for i in range(60)},
}
MEASURES = {
    "lincka": {"symmetric": True, "range": (0, 1), "summary": "Linear CKA"},
    "maxcorr": {"symmetric": False, "range": (0, 1)},
}
# Layers and heads of each model; the last has fewer heads.
HEADS = {
    "facebook/wav2vec2-base-960h": (12, 12),
    "facebook/hubert-large-ll60k": (24, 16),
    "org/tiny": (2, 1),
}
ATTENTION = {
    "attn_js": {"symmetric": False, "range": (0.307, 1), "summary": "1 - mean divergence of rows"}
}


def result_of(models: dict[str, int], seed: int = 0) -> SimilarityResult:
    """Like a comparison of models with so many layers, of smooth random similarities."""
    representations = [
        RepresentationName(model, i) for model, depth in models.items() for i in range(depth)
    ]
    steps = np.random.default_rng(seed).standard_normal((len(representations), 60)).cumsum(axis=0)
    values = np.abs(np.corrcoef(steps))
    skewed = values * np.linspace(0.5, 1, len(representations))
    attributes = {"frames": 2703511, "utterances": 2703, "note": "random weights"}
    matrices = {"lincka": values, "maxcorr": skewed}
    return SimilarityResult.build(representations, matrices, {}, MEASURES, attributes)


def attention_result(models: dict[str, tuple[int, int]] = HEADS) -> SimilarityResult:
    """Like a comparison of attention heads, of random similarities.

    `models`: layers and heads by name.
    """
    rng = np.random.default_rng(3)
    representations = [
        RepresentationName(m, i + 1) for m, (depth, _) in models.items() for i in range(depth)
    ]
    counts = [models[representation.model][1] for representation in representations]
    size, most = len(representations), max(counts)
    blocks = np.full((size, size, most, most), np.nan, np.float32)
    baseline = np.full((size, 2, most), np.nan, np.float32)
    match = np.full((size, size, most), -1, np.int32)
    for i, x in enumerate(counts):
        baseline[i, :, :x] = np.sort(rng.uniform(0.4, 0.7, (2, x)), axis=0)
        for j, y in enumerate(counts):
            blocks[i, j, :x, :y] = np.eye(x, y) if i == j else rng.uniform(0.5, 0.95, (x, y)) ** 2
            match[i, j, :x] = blocks[i, j, :x, :y].argmax(1)
    best = np.fmax.reduce(blocks, axis=3)
    dims = ("x_attention", "y_attention")
    extras = {
        "baseline": (("baseline",), np.array(["diagonal", "shift"], dtype=object)),
        "attn_js_heads": ((*dims, "head_x", "head_y"), blocks),
        "attn_js_best": ((*dims, "head_x"), best),
        "attn_js_match": ((*dims, "head_x"), match),
        "attn_js_baseline": (("x_attention", "baseline", "head_x"), baseline),
    }
    return SimilarityResult.build(
        representations,
        {"attn_js": np.nanmean(best, axis=2)},
        extras,
        ATTENTION,
        {"frames": 9000, "utterances": 12, "note": "random weights"},
        attention_representations=representations,
        dims={"attn_js": dims},
    )


def result_with_facts(models: dict[str, int], *left_out: str) -> SimilarityResult:
    """`result_of` with numbers of each representation and floors, but for those left out."""
    result = result_of(models)
    size = len(result.representations)
    rng = np.random.default_rng(1)
    rho = np.sort(rng.uniform(0, 1, (size, size, 6)))[:, :, ::-1].copy()
    rho[:, ::2, 4:] = np.nan
    pairs = ("x", "y")
    extras = {
        "rank": (("x",), rng.integers(700, 768, size)),
        "svcca_directions": (("x",), rng.integers(300, 600, size)),
        "condition": (("x",), 10 ** rng.uniform(3, 6, size)),
        "dead_neurons": (("x",), rng.integers(0, 3, size)),
        "outlier_share": (("x",), rng.uniform(0.1, 0.9, size)),
        "mean_to_std": (("x",), 10 ** rng.uniform(0, 3, size)),
        "lincka_floor": (pairs, rng.uniform(0, 0.1, (size, size))),
        "linreg_r2_floor": (pairs, rng.uniform(0, 0.2, (size, size))),
        "svcca_rho2_floor": (pairs, rng.uniform(0, 0.1, (size, size))),
        "svcca_rho": ((*pairs, "k"), rho),
    }
    extras = {name: extra for name, extra in extras.items() if name not in left_out}
    matrices = {m: result.matrix(m).values for m in result.measures}
    matrices["linreg"] = np.sqrt(matrices["maxcorr"])
    return SimilarityResult.build(
        result.representations, matrices, extras, MEASURES, result.attributes
    )


def axes_of(figure: Figure, label: str) -> Axes:
    """The panel with a label."""
    return next(axes for axes in figure.axes if axes.get_label() == label)


def drawn_texts(figure: Figure) -> list[Text]:
    """Every text with ink on the page, after drawing."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_text().strip()]
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:  # matplotlib keeps such ticks, but draws none
                hidden |= {id(tick.label1), id(tick.label2)}
    return [t for t in texts if t.get_visible() and id(t) not in hidden]


def assert_readable(figure: Figure) -> None:
    """No text under 6 pt, none outside the page, no two over each other."""
    texts = drawn_texts(figure)
    assert len(texts) > 4
    page = figure.bbox
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    for text in texts:
        assert text.get_fontsize() >= 6, text.get_text()
    for name, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, f"{name!r} leaves the page: {box}"
    for (first, a), (second, b) in combinations(boxes, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width <= 0.5 or height <= 0.5, f"{first!r} overlaps {second!r}"


def pixels_of(figure: Figure) -> np.ndarray:
    """Red, green and blue, 0 to 255 [row from the bottom, column, colour]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)

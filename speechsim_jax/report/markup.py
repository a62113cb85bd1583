"""HTML of the page's fixed parts: models, audio, settings, definitions, what was left out."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from speechsim_jax.figures.text_layout import short_names
from speechsim_jax.report.content import (
    compared,
    is_whole,
    on_layers,
    open_ends,
    representation_facts,
)
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.results.summary import letter

SKIPPED_SHOWN = 200
# The only one whose scores are of neurons, not of two representations.
_MINCORR = (
    "each neuron's smallest best correlation over the other models: a ranking, not a map; see "
    '<a href="#neurons">Neurons</a>, and <code>mincorr_neuron</code> in the result'
)
_NONE = "\N{EN DASH}"
# Shown by themselves, or in the headline; the rest of the attributes is provenance.
_SHOWN = ("models", "skipped", "note", "frames", "rows", "utterances", "seconds", "corpus")
_DIRECTIONS = {"True": "symmetric", "False": "row x by column y"}
_FACT_NAMES = {
    "width": "neurons",
    "rank": "directions above the tolerance",
    "condition": "condition number",
    "svcca_directions": "directions that svcca keeps",
    "dead_neurons": "dead neurons",
    "outlier_share": "variance in the top 1 % of neurons",
    "mean_to_std": "largest |mean| / std",
}


def headline(result: SimilarityResult) -> str:
    """What the page is about, in a few words."""
    count = len(compared(result))
    layers = "layer" if count == 1 else "layers"
    models = "model" if len(result.models) == 1 else "models"
    return f"Similarity of {count} {layers} of {len(result.models)} {models}"


def models_table(result: SimilarityResult) -> str:
    """One row a model: what it is called here, how large it is, and what exactly was read."""
    known = result.attributes.get("models")
    known = known if isinstance(known, Mapping) else {}
    facts = representation_facts(result)
    rows = []
    for index, (model, short) in enumerate(
        zip(result.models, short_names(result.models), strict=True)
    ):
        told = known.get(model)
        told = told if isinstance(told, Mapping) else {}
        mine = [
            i
            for i, representation in enumerate(result.representations)
            if representation.model == model
        ]
        width = sorted({int(facts["width"][i]) for i in mine}) if "width" in facts else []
        layers = [
            representation.layer
            for representation in compared(result)
            if representation.model == model
        ]
        rows.append(
            [
                letter(index),
                f"<b>{escape(short)}</b>",
                escape(str(told.get("model_type") or "")),
                _span(layers),
                ", ".join(map(str, width)),
                escape(str(told.get("source") or model)),
                _code(told.get("revision"), 12),
                _code(told.get("sha256"), 12),
                escape("; ".join(map(str, told.get("notes") or []))),
            ]
        )
    heads = ["", "model", "type", "layers", "neurons", "source", "revision", "sha256", "notes"]
    return table(*_filled_columns(heads, rows))


def audio_list(result: SimilarityResult) -> str:
    """What was heard, and how much of it was compared."""
    given = result.attributes
    corpus = given.get("corpus") or {}
    shown: dict[str, str] = {}
    if isinstance(corpus, Mapping):
        shown |= {str(key): _value(value) for key, value in corpus.items()}
    if isinstance(given.get("seconds"), int | float):
        shown["length"] = _duration(given["seconds"])
    for key in ("utterances", "frames", "rows"):
        if key in given:
            shown[key] = _value(given[key])
    if "skipped" in given:
        count = f"{len(given['skipped']):,}"
        shown["skipped"] = f'<a href="#skipped">{count}</a>' if given["skipped"] else count
    return definitions(shown) if shown else missing("This result does not say what was heard.")


def provenance(result: SimilarityResult) -> str:
    """Everything else that the result says of itself, a list for every group."""
    groups, single = [], {}
    for key, value in result.attributes.items():
        if key in _SHOWN:
            continue
        if isinstance(value, Mapping) and value:
            entries = {str(k): _value(v) for k, v in value.items()}
            groups.append(f"<section><h3>{escape(key)}</h3>{definitions(entries)}</section>")
        else:
            single[key] = _value(value)
    if single:
        groups.insert(0, f"<section><h3>run</h3>{definitions(single)}</section>")
    return "".join(groups) or missing("This result does not say how it was made.")


def measures_table(result: SimilarityResult) -> str:
    """One row a measure: what it says, its range, and where it is from."""
    rows = []
    for name in result.measures:
        known = result.definition(name)
        undefined = int(np.isnan(result.matrix(name).values).sum())
        rows.append(
            [
                f"<code>{escape(name)}</code>",
                escape(str(known.get("level") or "")),
                escape(str(known.get("summary") or "")),
                _range(known.get("range")),
                _DIRECTIONS.get(str(known.get("symmetric")), ""),
                str(undefined or ""),
                escape(str(known.get("reference") or "")),
            ]
        )
    if "mincorr_neuron" in result.dataset:
        rows.append(["<code>mincorr</code>", "neuron", _MINCORR, "", "", "", ""])
    heads = ["measure", "level", "what it is", "range", "direction", "undefined", "reference"]
    return table(*_filled_columns(heads, rows))


def warning(text: str) -> str:
    """A box with the text; nothing if there is none."""
    return f'<p class="warning" role="note">{escape(text)}</p>' if text else ""


def facts_section(result: SimilarityResult) -> str:
    """The place of the figure and the table of representations; empty where only heads were compared."""
    if not on_layers(result):
        return ""
    figure = '<figure id="facts"><div class="plot"></div><figcaption></figcaption></figure>'
    every = f"<details><summary>Every representation</summary>{facts_table(result)}</details>"
    shown = every if representation_facts(result) else facts_table(result)
    return f"<h3>What the scores stand on</h3>{figure}{shown}"


def facts_table(result: SimilarityResult) -> str:
    """One row a representation: what to know before believing a score."""
    facts = representation_facts(result)
    if not facts:
        return missing(
            "This result has no statistics of its representations (rank, condition, ...)."
        )
    short = dict(zip(result.models, short_names(result.models), strict=True))
    rows = [
        [escape(short[representation.model]), str(representation.layer)]
        + [_number(values[i], is_whole(name)) for name, values in facts.items()]
        for i, representation in enumerate(result.representations)
    ]
    heads = ["model", "layer", *(_FACT_NAMES.get(name, name) for name in facts)]
    return table(heads, rows, numbers_from=1, name="representations")


def skipped_table(result: SimilarityResult) -> str:
    """The files that could not be used, and why."""
    if "skipped" not in result.attributes:
        return missing("This result does not say which files were skipped.")
    skipped = result.attributes["skipped"]
    if not skipped:
        return '<p class="quiet">No file was skipped.</p>'
    rows = [
        [escape(_printable(one.get("id", ""))), escape(_printable(one.get("reason", "")))]
        for one in skipped[:SKIPPED_SHOWN]
    ]
    more = ""
    if len(skipped) > SKIPPED_SHOWN:
        said = f"The first {SKIPPED_SHOWN} of {len(skipped):,}; all are in the result."
        more = f'<p class="quiet">{said}</p>'
    return table(["file", "reason"], rows, name="skipped") + more


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers_from: int | None = None,
    name: str | None = None,
) -> str:
    """A table; `heads` are texts, cells HTML. One with a `name` can be sorted and saved."""
    numeric = [numbers_from is not None and k >= numbers_from for k in range(len(heads))]
    css = ['class="number"' if right else "" for right in numeric]
    head = "".join(
        f'<th scope="col" {c}>{escape(text)}</th>' for text, c in zip(heads, css, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td {c}>{cell}</td>" for cell, c in zip(row, css, strict=True)) + "</tr>"
        for row in rows
    )
    kind = f' data-sortable="{name}"' if name else ""
    return (
        f'<div class="wide" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def definitions(entries: Mapping[str, str]) -> str:
    """A list of names and what they are; the latter is HTML."""
    items = (f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in entries.items())
    return f"<dl>{''.join(items)}</dl>"


def missing(sentence: str) -> str:
    """In the place of a panel that the result has no numbers for."""
    return f'<p class="missing">{escape(sentence)}</p>'


def _filled_columns(
    heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The columns that say something in at least one row."""
    used = [k for k in range(len(heads)) if any(row[k] for row in rows)]
    return [heads[k] for k in used], [[row[k] for k in used] for row in rows]


def _value(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(k))} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return _code(value, 16) if _is_hash(value) else escape(_printable(value))


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 40 and not set(value) - set("0123456789abcdef")


def _code(value: Any, shown: int) -> str:
    """The first letters of a hash; all of it is in the title."""
    text = _printable(value or "")
    short = text if len(text) <= shown else f"{text[:shown]}…"
    return f'<code title="{escape(text)}">{escape(short)}</code>' if text else ""


def _printable(value: Any) -> str:
    """As text that UTF-8 can hold: an undecodable file name has lone surrogates."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _number(value: float, whole: bool) -> str:
    if not math.isfinite(value):
        return _NONE
    return str(int(value)) if whole else f"{value:.4g}"


def _range(ends: Sequence[float | int | None] | None) -> str:
    if not ends:
        return ""
    found = zip(open_ends(ends), ("-∞", "∞"), strict=True)
    low, high = (beyond if end is None else f"{end:.4g}" for end, beyond in found)
    return f"{low} to {high}"


def _span(layers: Sequence[int]) -> str:
    """Layers as "0-12" where none is left out."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))


def _duration(seconds: float | int) -> str:
    """As hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

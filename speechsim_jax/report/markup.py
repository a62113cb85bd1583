"""HTML of the page's fixed parts: models, audio, provenance, measures, skipped files."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np

from speechsim_jax.errors import counted, printable
from speechsim_jax.figures.marks import AT_RATE
from speechsim_jax.figures.text_layout import short_names
from speechsim_jax.report.content import (
    compared_representations,
    has_layer_measures,
    is_integer,
    open_ends,
    representation_facts,
)
from speechsim_jax.report.in_words import Sentence, in_words
from speechsim_jax.results.result import SimilarityResult
from speechsim_jax.results.summary import letter

MOST_SKIPPED = 200
MOST_INFLUENTIAL = 10
# The only measure whose scores are of neurons, not of two representations.
_MINCORR = (
    "each neuron's smallest best correlation over the other models: a ranking, not a map; see "
    '<a href="#neurons">Neurons</a>, and <code>mincorr_neuron</code> in the result'
)
_SUBJECTS = {
    "closest": "Which models are closest",
    "depth": "At which depths",
    "shared": "What they share",
    "trust": "What not to trust",
}
_OF_SENTENCES = (
    "Written from the numbers of the result. ±: half the 95 % interval. Not distinguishable: the "
    "difference is within its interval (pairs of models are tested together instead, "
    f"{AT_RATE}), or, where that is not known, the two intervals overlap. "
    "That the closest were chosen by the same scores is not part of an interval."
)
_NONE = "\N{EN DASH}"
# Attributes with a place of their own on the page; the others are listed as provenance.
_SHOWN_ELSEWHERE = (
    "models",
    "skipped",
    "note",
    "frames",
    "rows",
    "utterances",
    "seconds",
    "corpus",
    "reading",
    "duplicates",
    "merged_without",
)
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
    """The title of the page: how many layers of how many models it compares."""
    of_models = [r for r in compared_representations(result) if r.model in result.compared_models]
    models = len(result.compared_models)
    tracks = len(result.models) - models
    return f"Similarity of {counted(len(of_models), 'layer')} of {counted(models, 'model')}" + (
        f" and {counted(tracks, 'track')}" if tracks else ""
    )


def summary_section(result: SimilarityResult) -> str:
    """What the result says in words, with links to the cells of which it says it.

    Of each subject the first sentence is open and the others are folded, so that the map stands on
    the first screen.
    """
    sentences = in_words(result)
    groups = []
    for about, heading in _SUBJECTS.items():
        texts = [_sentence(one) for one in sentences if one.about == about]
        if texts:
            first, *others = texts
            content = f"<h3>{heading}</h3><p>{first}</p>"
            if others:
                items = "".join(f"<li>{text}</li>" for text in others)
                content += (
                    f"<details><summary>{len(others)} more</summary><ul>{items}</ul></details>"
                )
            groups.append(f"<div>{content}</div>")
    return (
        f'<section id="summary"><h2>In short</h2><div class="sentences">'
        f'{"".join(groups)}</div><p class="quiet">{_OF_SENTENCES}</p></section>'
    )


def _sentence(sentence: Sentence) -> str:
    text = html_text(sentence.text)
    if sentence.cell is None:
        return text
    link = ",".join(quote(label, safe="/") for label in sentence.cell)
    place = html_text(f"Show {sentence.cell[0]} with {sentence.cell[1]}")
    return f'{text} <a href="#{link}" aria-label="{place}">Show</a>'


def models_table(result: SimilarityResult) -> str:
    """One row per model: its name on the page, its size, and exactly which weights were read."""
    models = result.attributes.get("models")
    models = models if isinstance(models, Mapping) else {}
    facts = representation_facts(result)
    rows = []
    for index, (model, short) in enumerate(
        zip(result.models, short_names(result.models), strict=True)
    ):
        metadata = models.get(model)
        metadata = metadata if isinstance(metadata, Mapping) else {}
        positions = [i for i, name in enumerate(result.representations) if name.model == model]
        widths = sorted({int(facts["width"][i]) for i in positions}) if "width" in facts else []
        layers = [name.layer for name in compared_representations(result) if name.model == model]
        rows.append(
            [
                letter(index),
                f"<b>{html_text(short)}</b>",
                html_text(metadata.get("model_type") or ""),
                _span(layers),
                ", ".join(map(str, widths)),
                html_text(metadata.get("source") or model),
                _code(metadata.get("revision"), 12),
                _code(metadata.get("sha256"), 12),
                html_text("; ".join(map(str, metadata.get("notes") or []))),
            ]
        )
    heads = ["", "model", "type", "layers", "neurons", "source", "revision", "sha256", "notes"]
    return table(*_filled_columns(heads, rows))


def audio_list(result: SimilarityResult) -> str:
    """The audio that was read, and how much of it was compared."""
    attributes = result.attributes
    corpus = attributes.get("corpus") or {}
    entries: dict[str, str] = {}
    if isinstance(corpus, Mapping):
        entries |= {str(key): _value(value) for key, value in corpus.items()}
    if isinstance(attributes.get("seconds"), int | float):
        entries["length"] = _duration(attributes["seconds"])
    for key in ("utterances", "frames", "rows"):
        if key in attributes:
            entries[key] = _value(attributes[key])
    grid = attributes.get("frame_grid")
    if isinstance(grid, Mapping) and grid.get("averaged"):
        hop_ms = 1000 * grid["hop_seconds"]
        entries["frames of"] = html_text(f"{grid['of']}, every {hop_ms:g} ms; means of the others")
    if "skipped" in attributes:
        count = f"{len(attributes['skipped']):,}"
        entries["skipped"] = f'<a href="#skipped">{count}</a>' if attributes["skipped"] else count
    if not entries:
        return missing("This result does not record which audio was read.")
    return definitions(entries)


def provenance(result: SimilarityResult) -> str:
    """All attributes of the result that the page does not show elsewhere, a list per group."""
    groups, ungrouped = [], {}
    for key, value in result.attributes.items():
        if key in _SHOWN_ELSEWHERE:
            continue
        if isinstance(value, Mapping) and value:
            entries = {str(k): _value(v) for k, v in value.items()}
            groups.append(f"<section><h3>{html_text(key)}</h3>{definitions(entries)}</section>")
        else:
            ungrouped[key] = _value(value)
    if ungrouped:
        groups.insert(0, f"<section><h3>run</h3>{definitions(ungrouped)}</section>")
    return "".join(groups) or missing("This result does not record how it was computed.")


def measures_table(result: SimilarityResult) -> str:
    """One row per measure: its definition, range and reference."""
    rows = []
    for name in result.measures:
        definition = result.definition(name)
        undefined = int(np.isnan(result.matrix(name).values).sum())
        rows.append(
            [
                f"<code>{html_text(name)}</code>",
                html_text(definition.get("level") or ""),
                html_text(definition.get("summary") or ""),
                _range(definition.get("range")),
                _DIRECTIONS.get(str(definition.get("symmetric")), ""),
                str(undefined or ""),
                html_text(definition.get("reference") or ""),
            ]
        )
    if "mincorr_neuron" in result.dataset:
        rows.append(["<code>mincorr</code>", "neuron", _MINCORR, "", "", "", ""])
    heads = ["measure", "level", "what it is", "range", "direction", "undefined", "reference"]
    return table(*_filled_columns(heads, rows))


def warning(text: str) -> str:
    """A box with the text; "" without a text."""
    return f'<p class="warning" role="note">{html_text(text)}</p>' if text else ""


def facts_section(result: SimilarityResult) -> str:
    """The figure's place and the table of representations; "" if only heads were compared."""
    if not has_layer_measures(result):
        return ""
    figure = (
        '<figure id="facts"><div class="plot" role="img" aria-labelledby="facts-caption"></div>'
        '<figcaption id="facts-caption"></figcaption></figure>'
    )
    content = facts_table(result)
    if representation_facts(result):
        content = f"<details><summary>Every representation</summary>{content}</details>"
    return f"<h3>What the scores stand on</h3>{figure}{content}"


def facts_table(result: SimilarityResult) -> str:
    """One row per representation: what to know before believing a score."""
    facts = representation_facts(result)
    if not facts:
        return missing(
            "This result has no statistics of its representations (rank, condition, ...)."
        )
    short = dict(zip(result.models, short_names(result.models), strict=True))
    rows = [
        [html_text(short[representation.model]), str(representation.layer)]
        + [_number(values[i], is_integer(name)) for name, values in facts.items()]
        for i, representation in enumerate(result.representations)
    ]
    heads = ["model", "layer", *(_FACT_NAMES.get(name, name) for name in facts)]
    return table(heads, rows, numbers_from=1, name="representations")


def errors_note(result: SimilarityResult) -> str:
    """What the intervals of scores are over, or why there are none."""
    note = result.errors_note()
    note = note.replace("±: standard error", "±: half the 95 % interval, of standard errors")
    return f'<p class="quiet">{html_text(note)}</p>' if note else ""


def uncertainty_section(result: SimilarityResult) -> str:
    """What the standard errors rest on, a row for each measure that has them; "" without any."""
    measures = [name for name in result.measures if f"{name}_se" in result.dataset]
    if not measures:
        return ""
    influence = result.known_influence
    of_ten = influence is not None and len(influence.clusters.names) > 10  # else they are all
    rows = []
    for name in measures:
        errors, relative = (result.matrix(f"{name}_{what}").values for what in ("se", "se_error"))
        known = np.isfinite(errors) & (errors > 0)
        numbers = [np.median(of[known]) if known.any() else np.nan for of in (errors, relative)]
        if influence is not None and name in influence.values:
            share, counting = influence.concentration(name)
            numbers += [share] * of_ten + [counting, influence.effective_rows(name)]
        else:
            numbers += [np.nan] * (of_ten + 2)
        rows.append([html_text(name), *(_number(float(number), False) for number in numbers)])
    over = result.attributes["errors"]["over"]
    heads = [
        "measure", "standard error (median)", "its relative error (median)",
        *[f"variance from the ten {over}s that move scores most"] * of_ten,
        f"effective number of {over}s", "effective sample size (frames)",
    ]  # fmt: skip
    over = html_text(result.errors_note().removeprefix("±: "))
    note = (
        f'<p class="quiet">{over}. Medians over cells. Effective '
        "numbers: as many equal ones, or independent frames, would leave the scores as unsure.</p>"
    )
    content = table(heads, rows, numbers_from=1, name="uncertainty")
    content += _influential_table(result, measures)
    return f'<h3 id="uncertainty">How sure the scores are</h3>{note}{content}'


def _influential_table(result: SimilarityResult, measures: Sequence[str]) -> str:
    """The clusters that move the scores of all cells most, with their share of the variance."""
    influence = result.known_influence
    measures = [name for name in measures if influence and name in influence.values]
    if influence is None or not measures:
        return ""
    shares = np.stack([influence.shares(name) for name in measures], axis=1)
    first = np.argsort(-shares.mean(axis=1), kind="stable")[:MOST_INFLUENTIAL]
    rows = [
        [html_text(influence.clusters.names[k]), f"{influence.clusters.rows[k]:d}"]
        + [_number(float(share), False) for share in shares[k]]
        for k in first
    ]
    over = result.attributes["errors"]["over"]
    heads = [over, "frames", *(f"share of {name}" for name in measures)]
    content = table(heads, rows, numbers_from=1, name="influential")
    return (
        f"<details><summary>The {over}s that move scores most</summary>"
        f'<p class="quiet">Share of the variance, mean over cells; those of one cell stand with '
        f"it.</p>{content}</details>"
    )


def reading_table(result: SimilarityResult) -> str:
    """What was recognised, guessed and changed in opening and reading the audio, with numbers."""
    attributes = result.attributes
    corpus = attributes.get("corpus")
    corpus = corpus if isinstance(corpus, Mapping) else {}
    counts: list[tuple[str, Any]] = []
    for key, what in (
        ("layouts", "files in the layout of {}"),
        ("passed_over", "files passed over: {}"),
        ("alignments", "{}"),
    ):
        found = corpus.get(key)
        if isinstance(found, Mapping):
            counts += [(what.format(name), number) for name, number in found.items()]
    if "speakers" in corpus:
        counts.append(("speakers known", corpus["speakers"]))
    if "speaker_unknown" in corpus:
        counts.append(("utterances of unknown speaker", corpus["speaker_unknown"]))
    if isinstance(repeated := corpus.get("repeated"), Mapping):
        counts.append(("utterances that may be there twice, by name", repeated.get("utterances")))
    reading = attributes.get("reading")
    counts += list(reading.items()) if isinstance(reading, Mapping) else []
    if attributes.get("duplicates"):
        counts.append(("utterances with the samples of another", attributes["duplicates"]))
    for kind in attributes.get("merged_without") or ():
        counts.append((f"missing in some of the merged jobs: {kind}", "left out"))
    if not counts:
        return missing("This result does not record how its audio was read.")
    rows = [[html_text(what), html_text(number)] for what, number in counts]
    return table(["what", "utterances or files"], rows, numbers_from=1, name="audio-read")


def skipped_table(result: SimilarityResult) -> str:
    """The files that could not be used, and why."""
    if "skipped" not in result.attributes:
        return missing("This result does not record which files were skipped.")
    skipped = result.attributes["skipped"]
    if not skipped:
        return '<p class="quiet">No file was skipped.</p>'
    rows = [
        [html_text(file.get("id", "")), html_text(file.get("reason", ""))]
        for file in skipped[:MOST_SKIPPED]
    ]
    note = ""
    if len(skipped) > MOST_SKIPPED:
        text = f"The first {MOST_SKIPPED} of {len(skipped):,}; all are in the result."
        note = f'<p class="quiet">{text}</p>'
    return table(["file", "reason"], rows, name="skipped") + note


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers_from: int | None = None,
    name: str | None = None,
) -> str:
    """An HTML table.

    Args:
        heads: the headings, as text.
        rows: the cells, as HTML.
        numbers_from: the first column of numbers; default: none.
        name: with a name, the page lets readers sort and save the table.
    """
    numeric = [numbers_from is not None and k >= numbers_from for k in range(len(heads))]
    css = ['class="number"' if is_number else "" for is_number in numeric]
    head = "".join(
        f'<th scope="col" {c}>{html_text(text)}</th>' for text, c in zip(heads, css, strict=True)
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
    """A list of names (text) and their values (HTML)."""
    items = (f"<dt>{html_text(name)}</dt><dd>{value}</dd>" for name, value in entries.items())
    return f"<dl>{''.join(items)}</dl>"


def html_text(value: object) -> str:
    """HTML that shows a value as text, whatever is in it."""
    return escape(printable(value))


def missing(sentence: str) -> str:
    """A sentence instead of a part of the page that the result has no data for."""
    return f'<p class="missing">{html_text(sentence)}</p>'


def _filled_columns(
    heads: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The columns that are not empty in every row."""
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
        return ", ".join(f"{html_text(k)} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return _code(value, 16) if _is_hash(value) else html_text(value)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 40 and not set(value) - set("0123456789abcdef")


def _code(value: Any, shown: int) -> str:
    """The first letters of a hash; the full one shows on hover."""
    text = printable(value or "")
    short = text if len(text) <= shown else f"{text[:shown]}…"
    return f'<code title="{html_text(text)}">{html_text(short)}</code>' if text else ""


def _number(value: float, integer: bool) -> str:
    if not math.isfinite(value):
        return _NONE
    return str(int(value)) if integer else f"{value:.4g}"


def _range(ends: Sequence[float | int | None] | None) -> str:
    if not ends:
        return ""
    pairs = zip(open_ends(ends), ("-∞", "∞"), strict=True)
    low, high = (infinity if end is None else f"{end:.4g}" for end, infinity in pairs)
    return f"{low} to {high}"


def _span(layers: Sequence[int]) -> str:
    """Layers as "0-12" if they are consecutive."""
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))


def _duration(seconds: float | int) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

"""docs/benchmarks.md, from the figures in experiments/benchmarks/results/*.jsonl.

    python -m experiments.benchmarks.page

writes the page. A figure is a line of JSON: `what` (the file it is in), `figure`, `value`, `unit`,
`command`, `commit`, `machine`, `versions`, a `note` if it needs one; anything else it holds is a
condition under which the figure was measured. To take over what a benchmark has printed:

    COMMAND="python -m experiments.benchmark --what=scaling"
    $COMMAND | tee lines.jsonl
    python -m experiments.benchmarks.page --add=lines.jsonl --command="$COMMAND"

replaces the figures of that command and writes the page.
"""

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

REQUIRED = ("what", "figure", "value", "unit", "command", "commit", "machine", "versions")

# By `what`, in the order of the page.
_SECTIONS = {
    "answer": "How soon every score of two base-size encoders is known to 0.01: standard error and "
    "estimated inflation by few frames are both at most 0.01.",
    "pipeline": "The whole job against the published pipeline: two base-size encoders, the paper's "
    "measures.",
    "memory": "Peak memory and time of the whole job for more and more audio.",
    "streaming": "Memory of one process that reads the same audio once and eight times.",
    "encoder": "Forward passes against torch transformers.",
    "statistics": "The update of the moments against the machine's own matrix products.",
    "accelerator": "Everything that an accelerator decides, in one command. **No accelerator has "
    "been measured yet**: these figures are of a CPU, on which every algorithm is float32.",
    "attention": "The attention level of two base-size encoders.",
    "scores": "The paper's measures from finished statistics, against a plain numpy loop.",
    "accuracy": "float32 statistics against float64.",
    "scaling": "Work, traffic and memory of a device on several meshes.",
    "paper size": "Four models in 6 GB, in several passes.",
    "startup": "How soon a command answers. The other checkout is version 0.1: `git worktree add "
    "../0.1 48666e1`.",
    "merging": "`merge` of many stores of ten representations of width 768.",
    "errors": "What standard errors and held-out scores cost: two base-size encoders, the paper's "
    "measures.",
    "coverage": "How often 95 % intervals cover the expected score, over simulated corpora.",
    "bootstraps": "Standard errors over those of bootstraps over speakers: median [smallest, "
    "largest] of the cells between two encoders of the zoo.",
    "pwcca": "The same of several estimators for pwcca, none of which was adopted.",
    "null": "p-values of unrelated slow signals (uniform: a share s is at most s), and what three "
    "draws cost: two base-size encoders, the paper's measures.",
    "target": "Minutes of audio that `--target_se` predicts and that plain runs need: two zoo "
    "models, 205 speakers with an utterance each.",
    "tracks": "What log-mel, labels and exemplars cost: two base-size encoders, the paper's "
    "measures.",
    "features": "Seconds of speech a second, on one core, of each acoustic feature.",
    "doors": "A base-size wav2vec 2.0 (random weights) on speech: its port, and the same run by "
    "torch, one utterance at a time, in turns.",
    "arrays": "A quick look at arrays in memory: debiased linear CKA between 13 layers of 768 "
    "neurons of each of two models. Ours has the pairs within each model, too.",
    "one by one": "20 utterances of different lengths, 2 to 12 s, one call for each: a base-size "
    "wav2vec 2.0 (random weights) and torch transformers, each in a process of its own, in turns. "
    "The first pass compiles; no cache of compiled programs is used.",
    "demo": "The paper in miniature.",
    "selfcheck": "Checks of the machine's JAX.",
    "dynamics": "How similar the layers of a checkpoint are to those of the final model.",
}

_HEAD = """\
# Benchmarks

Every figure is a line of `experiments/benchmarks/results/*.jsonl`, with the command that measured
it; `python -m experiments.benchmarks.page` writes this page from them. The machines are shared:
times move by tens of per cent between runs, ratios that were measured in turns by less. The speech
is that of `$SPEECHSIM_SPEECH`.
"""


def read_lines(folder: Path = RESULTS) -> list[Line]:
    """All figures, file by file; raises ValueError for a line that lacks a field."""
    lines = []
    for file in sorted(folder.glob("*.jsonl")):
        for text in file.read_text().splitlines():
            line = json.loads(text)
            if missing := [name for name in REQUIRED if name not in line]:
                raise ValueError(f"{file.name}: {line.get('figure')} has no {', '.join(missing)}")
            lines.append(line)
    return lines


def page(lines: Sequence[Line]) -> str:
    """The page, a section for each `what` and a table for each command."""
    known = [what for what in _SECTIONS if any(line["what"] == what for line in lines)]
    other = sorted({line["what"] for line in lines} - set(_SECTIONS))
    parts = [_HEAD]
    for what in [*known, *other]:
        parts.append(f"\n## {what.capitalize()}\n")
        if what in _SECTIONS:
            parts.append(f"\n{_SECTIONS[what]}\n")
        of_what = [line for line in lines if line["what"] == what]
        for command in dict.fromkeys(line["command"] for line in of_what):
            parts.append(_of_command([line for line in of_what if line["command"] == command]))
    return "".join(parts)


def _of_command(lines: Sequence[Line]) -> str:
    """Command and origin, tables, notes."""
    first = lines[0]
    machine, versions = first["machine"], first["versions"]
    origin = ", ".join(
        [
            f"version {first['commit']}",
            *([machine["device"]] if "device" in machine else []),
            f"{machine['cores']} cores of {machine['cpu']}",
            f"{machine['memory_gib']:g} GiB",
            *(f"{name} {version}" for name, version in versions.items()),
        ]
    )
    text = f"\n```\n{first['command']}\n```\n\n{origin}.\n"
    # Figures with the same kinds of conditions share a table.
    kinds = dict.fromkeys(tuple(_conditions(line)) for line in lines)
    for kind in kinds:
        text += "\n" + _table([line for line in lines if tuple(_conditions(line)) == kind])
    for note in dict.fromkeys(line["note"] for line in lines if "note" in line):
        text += f"\n{note}\n"
    return text


def _conditions(line: Line) -> dict[str, Any]:
    spread = ("low", "high", "turns")
    return {k: v for k, v in line.items() if k not in (*REQUIRED, "note", *spread)}


def _table(lines: Sequence[Line]) -> str:
    """Figures against conditions; of the two, the fewer are the columns."""
    cells = {(_name(line), _label(line)): _value(line) for line in lines}
    figures, labels = (list(dict.fromkeys(keys)) for keys in zip(*cells))
    if len(labels) <= len(figures):
        return _markdown(figures, labels, cells)
    return _markdown(labels, figures, {(b, a): value for (a, b), value in cells.items()})


def _name(line: Line) -> str:
    return f"{line['figure']} ({line['unit']})"


def _label(line: Line) -> str:
    return ", ".join(f"{k} {v}" for k, v in _conditions(line).items()) or "value"


def _value(line: Line) -> str:
    value = _number(line["value"])
    return f"{value} [{_number(line['low'])}, {_number(line['high'])}]" if "low" in line else value


def _number(value: float | int) -> str:
    """Four digits, whole numbers with all of theirs."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _markdown(
    rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], str]
) -> str:
    table = [["", *columns], ["---"] * (len(columns) + 1)]
    table += [[row, *(cells.get((row, column), "") for column in columns)] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in table)


def add(printed: Path, command: str, folder: Path = RESULTS) -> None:
    """Replace the figures of a command by those that it has printed now.

    Raises ValueError if `printed` lacks the line about the machine or any figure.
    """
    found = [json.loads(text) for text in printed.read_text().splitlines() if text.startswith("{")]
    figures = [line for line in found if "figure" in line]
    about = next((line for line in found if "machine" in line), None)
    if about is None or not figures:
        raise ValueError(f"{printed} lacks the line about the machine, or any figure")
    versions = {k: v for k, v in about.items() if k not in ("what", "machine")}
    origin = {
        "command": command, "commit": _commit(), "machine": about["machine"], "versions": versions,
    }  # fmt: skip
    file = folder / f"{figures[0]['what'].replace(' ', '_')}.jsonl"
    before = file.read_text().splitlines() if file.exists() else []
    kept = [text for text in before if json.loads(text)["command"] != command]
    file.write_text("".join(f"{t}\n" for t in [*kept, *(json.dumps(f | origin) for f in figures)]))


def _commit() -> str:
    words = ["git", "describe", "--always", "--tags", "--dirty"]
    return subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--add", type=Path, help="lines that a benchmark has printed")
    parser.add_argument("--command", help="the command that printed them")
    args = parser.parse_args()
    if (args.add is None) != (args.command is None):
        parser.error("--add and --command belong together")
    if args.add is not None:
        add(args.add, args.command)
    PAGE.write_text(page(read_lines()))


if __name__ == "__main__":
    main()

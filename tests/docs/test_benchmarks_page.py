"""docs/benchmarks.md is what the committed figures give."""

import json

import pytest

from experiments.benchmarks import page
from tests.support.paths import ROOT

LINE = {
    "what": "scaling",
    "figure": "products",
    "value": 1700,
    "unit": "GFLOP",
    "command": "python -m experiments.benchmark --what=scaling",
    "commit": "0.1.0",
    "machine": {"cores": 2, "cpu": "a CPU", "memory_gib": 24},
    "versions": {"jax": "0.10.1"},
}


def test_the_committed_page_is_the_generated_one():
    assert page.page(page.read_lines()) == page.PAGE.read_text()


def test_figures_with_the_same_conditions_share_a_table():
    lines = [
        LINE | {"mesh": "data:1"},
        LINE | {"mesh": "data:2", "value": 850.12345},
        LINE | {"figure": "ratio", "value": 2.0, "unit": "", "low": 1.5, "high": 2.5, "turns": 3},
    ]
    text = page.page(lines)
    assert text.count(LINE["command"]) == 1
    assert "| mesh data:1 | 1,700 |" in text
    assert "| mesh data:2 | 850.1 |" in text
    assert "2 [1.5, 2.5]" in text


def test_a_line_without_its_command_is_refused(tmp_path):
    line = {name: value for name, value in LINE.items() if name != "command"}
    (tmp_path / "scaling.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"scaling\.jsonl: products has no command"):
        page.read_lines(tmp_path)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source distribution has no commits")
def test_printed_figures_replace_those_of_their_command(tmp_path):
    other = LINE | {"command": "another", "value": 1}
    file = tmp_path / "scaling.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (LINE, other)))
    printed = tmp_path / "printed.txt"
    machine = {"what": "scaling", "machine": {"cores": 8}, "python": "3.11", "jax": "0.11.1"}
    figure = {"what": "scaling", "figure": "products", "value": 2, "unit": "GFLOP"}
    printed.write_text(f"a warning\n{json.dumps(machine)}\n{json.dumps(figure)}\n")
    page.add(printed, LINE["command"], tmp_path)
    lines = page.read_lines(tmp_path)
    assert [(line["command"], line["value"]) for line in lines] == [
        ("another", 1),
        (LINE["command"], 2),
    ]
    assert lines[1]["machine"] == {"cores": 8}
    assert lines[1]["versions"] == {"python": "3.11", "jax": "0.11.1"}
    assert lines[1]["commit"]


def test_figures_without_their_machine_are_refused(tmp_path):
    printed = tmp_path / "printed.txt"
    figure = {name: value for name, value in LINE.items() if name != "machine"}
    printed.write_text(json.dumps(figure) + "\n")
    with pytest.raises(ValueError, match="the machine"):
        page.add(printed, "command", tmp_path)

"""Tables as text: nothing for a spreadsheet to compute, numbers as they are."""

import csv
from pathlib import Path

import numpy as np
import pytest

from speechsim_jax.runtime.text_tables import write_csv, write_tsv

FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\uff1d1", "\uff0d1", "=HYPERLINK('x';'y')"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_no_cell_begins_a_formula(separator: str, tmp_path: Path) -> None:
    """Whatever a spreadsheet takes for the end of a cell."""
    names = [*FORMULAS, f"a{separator}=1", 'b",=1', "c\n=1", "d\r=1", "\t=1", "\r=1"]
    path = write_csv(tmp_path / "new" / "t.csv", [["name", "x"], *([name, 1] for name in names)])
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file, delimiter=separator) for cell in row]
    assert not any(
        cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0d")) for cell in cells
    )
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(names) + 1


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    values = [-1.5, -7, float("nan"), float("-inf"), np.float32(-0.25), np.int64(-3), 0.1 + 0.2]
    (row,) = csv.reader(write_csv(tmp_path / "t.csv", [values]).read_text().splitlines())
    assert row == ["-1.5", "-7", "", "-inf", "-0.25", "-3", "0.30000000000000004"]


def test_texts_come_back(tmp_path: Path) -> None:
    """All that need no apostrophe and no escape, in both formats."""
    texts = ["plain", "a,b", 'say "no"', "a;b", "org/modèle-é", "", "'quoted", "a=b"]
    with write_csv(tmp_path / "t.csv", [texts]).open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [texts]
    with write_tsv(tmp_path / "t.tsv", [texts]).open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)) == [texts]


def test_tsv_has_one_line_a_row(tmp_path: Path) -> None:
    rows = [["=1", "a\tb"], ["c\nd", "\x1b[31m\udcff"]]
    text = write_tsv(tmp_path / "t.tsv", rows).read_text(encoding="utf-8")
    assert text == "'=1\ta\\u0009b\nc\\u000ad\t\\u001b[31m\\udcff\n"

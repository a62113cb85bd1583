"""`speechsim models`: the table of families, and that of the documentation."""

from speechsim_jax.models import catalogue
from speechsim_jax.models.families import FAMILIES
from tests.support.commands import call
from tests.support.paths import ROOT


def test_every_family_is_listed_with_checkpoints_of_its_own(capsys):
    ended = call(capsys, "models")
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(FAMILIES)
    assert max(map(len, lines)) <= 100
    examples = [example for row in catalogue.rows() for example in row.examples]
    assert len(set(examples)) == len(examples) >= len(FAMILIES)
    assert all(example.split()[0] in ended.out for example in examples)
    assert all(row.examples for row in catalogue.rows())


def test_frames_are_those_of_the_default_configuration():
    rows = {row.family: row for row in catalogue.rows()}
    assert rows.keys() == FAMILIES.keys()
    assert (rows["hubert"].frames_per_second, rows["hubert"].window_ms) == (50, 25)
    for name, row in rows.items():
        config = FAMILIES[name].config(family=name)
        assert row.frames_per_second * config.hop_samples == 16_000
        assert row.window_ms * 16 == config.window_samples


def test_the_page_has_the_table_of_the_command(capsys):
    """If not: put what `speechsim models --markdown` prints into docs/models.md."""
    table = call(capsys, "models", "--markdown").out
    assert table.count("\n") == len(FAMILIES) + 2
    page = (ROOT / "docs" / "models.md").read_text()
    before, _, after = page.partition("<!-- speechsim models --markdown -->\n")
    assert before and after.startswith(table + "<!-- end -->\n")

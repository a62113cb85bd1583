"""The citation and the licences say what is released."""

import json
import re
import tomllib

import yaml

from tests.support.paths import ROOT

PACKAGE = ROOT / "speechsim_jax"
LICENCES = (ROOT / "LICENSES.md").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project["version"]
    assert citation["title"] == project["name"]
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    identifiers = [each for work in citation["references"] for each in work["identifiers"]]
    assert "10.48550/arXiv.2406.16099" in [each["value"] for each in identifiers]


def test_all_audio_of_the_zoo_has_its_licence():
    """In the row of its corpus, with where it is from and the models that were trained on it."""
    rows = [line for line in LICENCES.splitlines() if line.startswith("| ")]
    cards = sorted(PACKAGE.glob("models/zoo/*/audio.json"))
    assert len(cards) == 8
    for card in cards:
        for part in json.loads(card.read_text())["training"]:
            (row,) = (row for row in rows if row.startswith(f"| {part['corpus']} |"))
            assert part["licence"].split(";")[0] in row
            assert part["source"].partition("@")[0] in row
            models = row.split("|")[4]
            assert models.strip() == "all" or f"`{card.parent.name}`" in models


def test_all_data_is_named():
    """What is not text lies where the list of licences names the place."""
    places = [ROOT / place for place in re.findall(r"`(speechsim_jax/[^`]+)`", LICENCES)]
    data = [path for path in PACKAGE.rglob("*") if path.suffix in (".npz", ".safetensors")]
    assert len(data) > 8
    assert not [path for path in data if not any(path.is_relative_to(place) for place in places)]

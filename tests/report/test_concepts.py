"""The section of concepts: shown where a result has tracks, and inert whatever they are called."""

import base64
import re

import numpy as np
import pytest

import speechsim_jax as ss
from speechsim_jax.report import report_page

HOSTILE = '</script><b>"x"'


def compared(measures=("linreg", "maxcorr"), attributes=None, **settings) -> ss.SimilarityResult:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 600)
    x = np.eye(3)[label] + rng.standard_normal((600, 3))
    arrays = {f"{m}/{k}": x + 0.1 * rng.standard_normal((600, 3)) for m in "ab" for k in (0, 1)}
    arrays["logmel"] = rng.standard_normal((600, 4))
    names = [f"{HOSTILE}{k}" for k in label]
    result = ss.compare_activations(arrays, list(measures), labels={HOSTILE: names}, **settings)
    return result.with_attributes(**(attributes or {"tracks": {"logmel": {}}}))


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(compared())


def section(page: str) -> str:
    found = re.search(r'<section id="concepts">.*?</section>', page, re.DOTALL)
    return found[0] if found else ""


def test_it_has_the_figures_agreement_and_neurons(page):
    text = section(page)
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    drawings = [base64.b64decode(image).decode() for image in images]
    assert len(drawings) == 3 and all("<svg" in drawing for drawing in drawings)
    assert "logmel" in drawings[0]
    assert text.count("<table") == 2 and '<a href="#concepts">' in page
    assert text.count("<tr>") == 1 + 2 + 1 + 2 * 3  # agreement both ways; three neurons a model


def test_hostile_names_are_text(page):
    assert HOSTILE not in page
    assert "&lt;/script&gt;&lt;b&gt;" in section(page)


@pytest.mark.parametrize("given", [["logmel"], [HOSTILE], [HOSTILE, "logmel"]])
def test_given_tracks_have_left_it(given):
    text = section(report_page(compared(given=given)))
    assert ("localisation" in text) == (HOSTILE not in given)
    assert bool(text) == (len(given) < 2)


def test_without_the_measure_of_content_it_says_so():
    assert "content is read off linreg" in section(report_page(compared(["lincka"])))


def test_without_tracks_there_is_none():
    rng = np.random.default_rng(0)
    plain = ss.compare_activations({n: rng.standard_normal((50, 3)) for n in "ab"}, ["linreg"])
    page = report_page(plain)
    assert not section(page) and "#concepts" not in page

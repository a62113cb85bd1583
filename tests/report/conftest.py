"""A report of random scores, and browsers to look at it with."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from speechsim_jax.report import write_report
from speechsim_jax.results.result import SimilarityResult
from tests.support.report_results import SMALL, random_result

if TYPE_CHECKING:
    from tests.support.browser import Browser


@pytest.fixture(scope="module")
def result() -> SimilarityResult:
    return random_result(SMALL)


@pytest.fixture(scope="module")
def report(result: SimilarityResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(result, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Browser]":
    from tests.support.browser import DESKTOP, opened_browser

    yield from opened_browser(DESKTOP, tmp_path_factory.mktemp("desktop"))


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Browser]":
    from tests.support.browser import PHONE, opened_browser

    yield from opened_browser(PHONE, tmp_path_factory.mktemp("phone"))

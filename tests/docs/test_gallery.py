"""docs/gallery.md is what its table gives, and its pictures are there and small."""

import ast
import importlib.util
from types import ModuleType

import pytest

from speechsim_jax import figures
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_the_generated_one(pictures: ModuleType) -> None:
    """After a change: python docs/pictures.py."""
    assert (ROOT / "docs" / "gallery.md").read_text() == pictures.page()


def test_every_picture_is_there_and_all_are_small(pictures: ModuleType) -> None:
    files = list((ROOT / "docs" / "gallery").iterdir())
    listed = [picture.name for chapter in pictures.GALLERY for picture in chapter.pictures]
    assert sorted(file.name for file in files) == sorted(f"{name}.png" for name in listed)
    assert sum(file.stat().st_size for file in files) < 1_500_000


def test_calls_are_code_and_every_kind_of_figure_is_drawn(pictures: ModuleType) -> None:
    calls = [picture.call for chapter in pictures.GALLERY for picture in chapter.pictures]
    for call in calls:
        ast.parse(call, mode="eval")
    drawn = {name for name in figures.__all__ if any(f"s.{name}(" in call for call in calls)}
    helpers = {
        "DepthLine", "colour_limits", "depth_curves", "has_facts", "published_order",
        "save_figures", "write_figures",
    }  # fmt: skip
    assert drawn == set(figures.__all__) - helpers

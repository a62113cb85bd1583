"""Sphinx configuration of the site that `make docs` writes to build/docs.

The API pages hold every public name of a room, found when the site is built: a file that is added
to a room is on its page without an entry anywhere.
"""

import importlib.metadata
import inspect
import itertools
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.parsing import nested_parse_to_nodes

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = "speechsim_jax"
author = "The speechsim_jax authors"
copyright = author
release = version = importlib.metadata.version("speechsim_jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
# A public name is described where it is exported and where it is defined: either target will do.
suppress_warnings = ["ref.python"]
exclude_patterns = ["Thumbs.db", ".DS_Store"]
default_role = "literal"  # `name` in a docstring is code
highlight_language = "none"  # of blocks that name no language: drawings, formulas, commands
html_theme = "furo"
html_title = "speechsim_jax"
html_show_copyright = False
html_copy_source = False

# Links to headings, named as on GitHub.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
# Names are shown as they are written in a signature, not with the package's whole path.
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autosummary_generate = False

napoleon_numpy_docstring = False
napoleon_use_ivar = True  # the fields of a dataclass are listed once
napoleon_use_rtype = False
napoleon_attr_annotations = False  # types are in the signature
napoleon_custom_sections = [("Source", "notes_style")]


# --- API pages ---


class Room(SphinxDirective):
    """`.. room:: audio`: a table of the room's modules, then the public names of each.

    `.. room::` without a name is the package itself.
    """

    optional_arguments = 1
    has_content = False
    option_spec: ClassVar[dict] = {}

    def run(self) -> list[nodes.Node]:
        """Write the page as reStructuredText and parse that."""
        name = ".".join(["speechsim_jax", *self.arguments])
        package = importlib.import_module(name)
        modules = [name]
        if self.arguments:
            walked = pkgutil.walk_packages(package.__path__, f"{name}.")
            modules += [module.name for module in walked]
        lines = [".. autosummary::", "   :nosignatures:", ""]
        lines += [f"   {module}" for module in modules]
        for module in modules:
            lines += [
                "",
                module,
                "-" * len(module),
                "",
                f".. automodule:: {module}",
                "   :members:",
            ]
            parent, _, leaf = module.rpartition(".")
            if inspect.isfunction(vars(sys.modules.get(parent, package)).get(leaf)):
                lines += ["   :no-index:"]  # a function and its module of one name
        text = StringList(lines, source=f"<room {name}>")
        return nested_parse_to_nodes(self.state, text, allow_section_headings=True)


def _skip(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leave out what other libraries have put into our classes, and "Alias for field number 0"."""
    module = getattr(obj, "__module__", None) or ""
    foreign = inspect.isroutine(obj) and not module.startswith("speechsim_jax")
    return True if foreign or type(obj).__name__ == "_tuplegetter" else None


# --- docstrings ---

# Headings under which an indented block is text, not a formula or a drawing.
_SECTIONS = re.compile(
    r"(Args|Arguments|Attributes|Examples?|Notes?|Raises|Returns|Source|Warns|Yields):$"
)
_ITEM = re.compile(r"([-*]|\d+\.|\(\d+\)) ")
_CODE = re.compile(r"``.+?``|`[^`\n]+`|(?<!\w)\*\w[^*\n]*\*(?!\w)", re.S)


def _escaped(text: str) -> str:
    """Text in which |x|, a * b and x_ mean themselves; code and *emphasis* stay."""

    def plain(part: str) -> str:
        part = part.replace("\\", "\\\\").replace("*", "\\*").replace("|", "\\|")
        return re.sub(r"(?<=\w)_(?!\w)", r"\\_", part)

    ends = [0, *(end for match in _CODE.finditer(text) for end in match.span()), len(text)]
    parts = [text[start:end] for start, end in itertools.pairwise(ends)]
    return "".join(part if number % 2 else plain(part) for number, part in enumerate(parts))


def prepared(lines: list[str]) -> list[str]:
    """A docstring for reStructuredText: indented blocks verbatim, everything else as text.

    Docstrings are written to be read in an editor: a formula or a table of files is an indented
    block, and what is in it (|x|, a*b, x_i') is not markup.
    """
    out: list[str] = []
    section = verbatim = prompt = False
    before = ""
    for line in lines:
        stripped = line.strip()
        indented = line.startswith("    ")
        if stripped and not line.startswith(" "):
            section, verbatim = bool(_SECTIONS.match(stripped)), False
        starts = indented and not before.strip() and not section and not verbatim
        if starts and not prompt and not _ITEM.match(stripped):
            out += ["::", ""]
            verbatim = True
        if stripped.startswith(">>>"):
            prompt = True
        elif not stripped:
            prompt = False
        bullet = line[: len(line) - len(line.lstrip())] + "* " if stripped[:2] == "* " else ""
        out.append(line if verbatim or prompt else bullet + _escaped(line.removeprefix(bullet)))
        before = line
    return out


def _prepare(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list) -> None:
    lines[:] = prepared(lines)
    if what in ("attribute", "data", "property"):
        # Napoleon would take what precedes a colon for a type: it gets nothing to read.
        app.env.temp_data[f"docstring of {name}"] = list(lines)
        lines[:] = [""]


def _restore(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list) -> None:
    lines[:] = app.env.temp_data.pop(f"docstring of {name}", lines)


def _shorten(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str]:
    """Signatures with `Array`, wherever jax happens to define it."""
    return tuple(text and text.replace("jaxlib._jax.", "") for text in (signature, returns))


# --- pages of the repository's root ---

# By the page of the site that begins with it.
_ROOT_PAGES = {
    "index": ROOT / "README.md",
    "contributing": ROOT / "CONTRIBUTING.md",
    "changelog": ROOT / "CHANGELOG.md",
    "zoo": ROOT / "experiments" / "zoo" / "README.md",
    "design/index": ROOT / "BUILD_NOTES.md",
}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def _read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put README and the like in front of their pages, and lead links to them to these pages."""
    folder = (DOCS / docname).parent
    pages = {path: DOCS / f"{name}.md" for name, path in _ROOT_PAGES.items()}
    file = _ROOT_PAGES.get(docname)

    def moved(link: re.Match[str]) -> str:
        target = (folder if file is None else file.parent).joinpath(link[1]).resolve()
        if file is None and target not in pages:
            return link[0]
        return f"]({os.path.relpath(pages.get(target, target), folder)}"

    text = source[0]
    if file is not None:
        text = f"{file.read_text()}\n{text}"
        app.env.note_dependency(str(file))
    source[0] = _LINK.sub(moved, text) if app.env.doc2path(docname).suffix == ".md" else text


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("room", Room)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _prepare, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _restore, priority=600)  # after it
    app.connect("autodoc-process-signature", _shorten)
    app.connect("source-read", _read_page)

"""Sphinx builds the pages of this folder: ``make docs``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import varlen_rnn

project = "varlen_rnn"
author = "varlen_rnn contributors"
project_copyright = author
version = release = varlen_rnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 2  # links to sections, spelled as on code hosts
html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"varlen_rnn {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

autodoc_member_order = "bysource"
# The docstrings say every argument's shape, dtype and unit, which annotations cannot. With
# annotations, a method that is overloaded for mypy would be shown once for each overload.
autodoc_typehints = "none"

# A reference to a name of the package that leads nowhere is an error; others have no page here.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!varlen_rnn\b).*")]


def offer_files_of_the_repository(app: Any, docname: str, source: list[str]) -> None:
    """Links to Markdown outside of this folder, which is no page here, become downloads."""

    def download(link: re.Match[str]) -> str:
        file = (Path(app.srcdir, docname).parent / link[2]).resolve()
        inside = file.is_relative_to(Path(app.srcdir).resolve())
        return link[0] if inside else f"{{download}}`{link[1]} <{link[2]}>`"

    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#]+\.md)\)", download, source[0])


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("source-read", offer_files_of_the_repository)

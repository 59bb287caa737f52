"""Sphinx builds the pages of this folder: ``make docs``."""

from __future__ import annotations

import varlen_rnn

project = "varlen_rnn"
author = "varlen_rnn contributors"
project_copyright = author
version = release = varlen_rnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"varlen_rnn {release}"

autodoc_member_order = "bysource"
# The docstrings say every argument's shape, dtype and unit, which annotations cannot. With
# annotations, a method that is overloaded for mypy would be shown once for each overload.
autodoc_typehints = "none"

# A reference to a name of the package that leads nowhere is an error; others have no page here.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!varlen_rnn\b).*")]

"""How Sphinx builds the documentation site: `make docs` writes it to build/site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import bufferpool

project = "bufferpool"
author = "The bufferpool authors"
release = bufferpool.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx"]
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # the build works offline
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["images/README*"]
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository, which are not on the site
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
html_theme = "furo"
html_title = "bufferpool"

"""How Sphinx builds the documentation site: `make docs` writes it to build/site."""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent.parent))

import bufferpool

project = "bufferpool"
author = "The bufferpool authors"
release = bufferpool.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["images/README*"]
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository, which are not on the site
    "ref.python",  # the type `bytes` in a signature is taken for one of the fields of that name
]
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
html_theme = "furo"
html_title = "bufferpool"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

MADE_BY_POOLS = {"bufferpool.Pool", "bufferpool.Space"}  # their constructors are not called by users
LONG = {
    r"type\[~?(?:typing\.)?Any\] \| .*?_DTypeDict \| str": "DTypeLike",  # numpy spells it out
    r"~?numpy\.ndarray\[tuple\[~?(?:typing\.)?Any, \.\.\.\], ~?numpy\.dtype\[~?([\w.]+)\]\]": r"NDArray[\1]",
    r"~?(?:typing\.|collections\.abc\.|os\.|numpy\.)(?=[A-Z])": "",
}


def _shorten(_app: Sphinx, _what: str, name: str, *rest: Any) -> tuple[str | None, str | None]:
    """Signatures as a person would write them. Sphinx calls it with the object, its options, the signature and the result as ``rest``."""
    _obj, _options, signature, returned = rest
    if name in MADE_BY_POOLS:
        return "", None

    def short(text: str | None) -> str | None:
        for long, brief in LONG.items():
            text = text and re.sub(long, brief, text)
        return text

    return short(signature), short(returned)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _shorten)

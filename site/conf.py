"""Sphinx configuration of the book. `adlib site` prepares the pages and calls Sphinx with this folder as `-c`.

Everything must work from disk and without a network: no web fonts, no script of another host, formulas as MathML.
"""

import html
import re

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.util import logging

project = "adlib"
author = "the adlib contributors"
copyright = "the adlib contributors, MIT licence"
extensions = ["myst_nb"]

# -- reading ----------------------------------------------------------------------------------------------------------
nb_execution_mode = "off"  # the notebooks come executed
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_number_source_lines = False
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["toc.empty_glob"]  # a part of the book may have no page yet

# -- HTML -------------------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = "adlib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["sort.js"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # summaries are fetched, which browsers refuse on pages from disk
html_math_renderer = "mathml"  # every browser of today shows it, and it needs no script and no fonts
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

logger = logging.getLogger(__name__)


def mathml(tex: str, block: bool, where) -> str:
    """Return a formula as MathML, or its TeX source in a code element, with a warning, where it is not understood."""
    tex = re.sub(r"\\dots(?![a-zA-Z])", r"\\ldots", tex)  # docutils knows the dots by where they stand
    for size in ("big", "Big"):  # docutils knows \bigl and \bigr, which only differ in spacing
        for fence in ("(", "[", r"\{", "|", ")", "]", r"\}"):
            side = "l" if fence in ("(", "[", r"\{") else "r"
            tex = tex.replace(f"\\{size}{fence}", f"\\{size}{side}{fence}")
    try:
        return latex2mathml.tex2mathml(tex, as_block=block)
    except MathError as error:
        logger.warning("formula %r is shown as source: %s", tex, error, location=where)
        return f"<code>{html.escape(tex)}</code>"


def visit_inline(self, node):
    """Write an inline formula."""
    self.body.append(mathml(node.astext(), False, node))
    raise nodes.SkipNode


def visit_block(self, node):
    """Write a displayed formula; wide ones scroll on a narrow screen."""
    self.body.append(f'<div class="formula">{mathml(node.astext(), True, node)}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer of formulas."""
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))

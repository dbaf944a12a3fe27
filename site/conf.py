"""Sphinx configuration of the book. `adlib site` prepares the pages and calls Sphinx with this folder as `-c`.

Everything must work from disk and without a network: no web fonts, no script of another host.
`vendor.sh` renews what is shipped of other projects.
"""

from docutils import nodes

project = "adlib"
author = "the adlib contributors"
copyright = "the adlib contributors, MIT licence"
extensions = ["myst_nb"]
exclude_patterns = ["notebooks/files"]  # to download, no pages

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
html_css_files = ["katex/katex.min.css", "site.css"]
html_js_files = ["katex/katex.min.js", "formulas.js", "sort.js"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # summaries are fetched, which browsers refuse on pages from disk
html_math_renderer = "katex"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def visit_inline(self, node):
    """Write an inline formula as its source; `formulas.js` has KaTeX set it."""
    self.body.append(f'<span class="math">{self.encode(node.astext())}</span>')
    raise nodes.SkipNode


def visit_block(self, node):
    """Write a displayed formula; wide ones scroll on a narrow screen."""
    self.body.append(f'<div class="math">{self.encode(node.astext())}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer of formulas."""
    app.add_html_math_renderer("katex", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))

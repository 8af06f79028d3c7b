"""The documentation site: ``make docs`` writes it to build/docs. Options: www.sphinx-doc.org."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from sphinx.application import Sphinx

import rrd_kernels

project = "rrd_kernels"
author = copyright = "The rrd_kernels authors"
version = release = rrd_kernels.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["pictures"]

myst_heading_anchors = 4  # links to headings, by the anchors that GitHub gives them

autodoc_mock_imports = ["timm"]  # its page needs its module's docstrings, not timm
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 88
napoleon_custom_sections = [("Shapes", "notes_style"), ("Source", "notes_style")]
# Names of this package must resolve. Those of others would need their inventories from a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!rrd_kernels\.).*")]

html_theme = "furo"
pygments_style = "friendly"  # diffs in red and green
html_title = "rrd_kernels"
html_theme_options = {"source_view_link": "", "source_edit_link": ""}
html_show_sphinx = False
html_copy_source = False
html_css_files = ["site.css"]
html_static_path = ["_static"]
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

#: Files that a page includes, seen from here, and that page.
INCLUDED = {
    "../README.md": "index.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
    "../examples/cifar100/README.md": "full-distillation.md",
    "../examples/cifar100/RESULTS.md": "distillation-results.md",
}


def relink(folder: PurePosixPath, text: str) -> str:
    """Markdown of a file in ``folder``, with links that lead to the same places from here."""

    def here(link: re.Match[str]) -> str:
        path, mark, anchor = link[1].partition("#")
        path = normpath(folder / path)
        return f"]({INCLUDED.get(path, path)}{mark}{anchor})"

    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", here, text)


def setup(app: Sphinx) -> None:
    def read(_app: Sphinx, _name: str, content: list[str]) -> None:
        content[0] = relink(PurePosixPath(), content[0])

    def included(_app: Sphinx, path: Path, _name: str, content: list[str]) -> None:
        content[0] = relink(PurePosixPath(path.as_posix()).parent, content[0])

    app.connect("source-read", read)
    app.connect("include-read", included)

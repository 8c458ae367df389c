"""Sphinx settings. Builds without network; DYNAPATH_DOCS_ONLINE=1 adds links into the documentation of other projects."""

import os
import shutil
from importlib.metadata import metadata
from pathlib import Path

from numpy.typing import ArrayLike

here = Path(__file__).parent

# The tutorials live beside the package; Sphinx only reads files below its own folder.
shutil.rmtree(here / "tutorials", ignore_errors=True)
(here / "tutorials").mkdir()
notebooks = sorted((here.parent / "tutorials").glob("*.ipynb"))
for notebook in notebooks:
    shutil.copy2(notebook, here / "tutorials")
if not notebooks:
    (here / "tutorials" / "none.md").write_text("# None yet\n")

about = metadata("dynapath")
project = about["Name"]
author = "The dynapath developers"
copyright = f"2026, {author}"
release = version = about["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
# Docstrings write `name` for code.
default_role = "code"
templates_path = ["_templates"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
suppress_warnings = [
    # The formatter of type hints below is a function.
    "config.cache",
    # Axis names in jaxtyping annotations look like types that cannot be found.
    "sphinx_autodoc_typehints.forward_reference",
    "sphinx_autodoc_typehints.guarded_import",
]

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
typehints_defaults = "braces"
always_use_bars_union = True


def typehints_formatter(annotation: object, _config: object) -> str | None:
    """Name what would be spelled out as a union of ten protocols."""
    return "ArrayLike" if annotation == ArrayLike else None


nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

intersphinx_mapping = {}
if os.environ.get("DYNAPATH_DOCS_ONLINE"):
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scvi-tools": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://pytorch.org/docs/stable/", None),
    }

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {"show_toc_level": 2}

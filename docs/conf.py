"""Sphinx settings of the documentation: the README, how-tos and the public names. `make docs` builds it without a network."""

import evbind_lib

project = "evbind"
author = "the evbind developers"
copyright = author
version = release = evbind_lib.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
highlight_language = "none"  # blocks of no language are lines of a shell or a screen
html_theme = "furo"
html_title = f"evbind {release}"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False  # keeps parameters that are documented together together
# In docstrings single backquotes name objects of the library, of which only the public ones have a page.
default_role = "literal"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 2

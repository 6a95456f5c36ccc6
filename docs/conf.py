"""How the site is built, by `make docs`: tutorials are executed, and an error or a warning anywhere fails the build."""

from __future__ import annotations

import configparser
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]
# Tutorials are executed in processes of their own, which read these.
os.environ["PYTHONPATH"] = str(ROOT)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

from _ext.execution import fingerprint, quiet_profile  # noqa: E402
from _ext.inventories import fetched  # noqa: E402

os.environ["IPYTHONDIR"] = str(quiet_profile(HERE / "_build" / "ipython"))

setup_cfg = configparser.ConfigParser()
setup_cfg.read(ROOT / "setup.cfg", encoding="utf-8")
project = "pathjax"
author = setup_cfg["metadata"]["author"]
copyright = author  # noqa: A001
version = release = setup_cfg["metadata"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "_ext.docstrings",
    "_ext.fieldlists",
    "_ext.formulas",
    "_ext.languages",
    "_ext.mathml",
    "_ext.names",
    "_ext.options",
    "_ext.outside",
    "_ext.tables",
]
exclude_patterns = ["_build", "_ext"]
smartquotes = False
highlight_language = "python3"

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# What a cell prints depends on pathjax too, so what was executed with other sources is executed again.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "jcache" / fingerprint(ROOT))
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "error"  # a warning of Python in a tutorial is a warning of the build
nb_merge_streams = True

autodoc_member_order = "alphabetical"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

intersphinx_mapping = fetched(
    {
        "flax": "https://flax.readthedocs.io/en/stable/",
        "jax": "https://docs.jax.dev/en/latest/",
        "optax": "https://optax.readthedocs.io/en/stable/",
        "python": "https://docs.python.org/3/",
    },
    HERE / "_build" / "inventories",
)

html_theme = "sphinx_book_theme"
html_title = "pathjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_last_updated_fmt = None
html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search field is in the sidebar
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

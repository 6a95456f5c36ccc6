"""What the site has beyond Sphinx, a file each.

`docstrings` makes reStructuredText of docstrings; `formulas` sets indices in text as indices, which `indices` finds;
`mathml` renders LaTeX without a script; `names` links the names of functions to their reference; `options` writes the
options of commands and the keys of configs from their dataclasses; `outside` leads links to files outside of docs/ to
pages; `execution` says when a tutorial is executed again; `inventories` fetches what links to other projects need; and
`broken_links` looks for links into nothing.
"""

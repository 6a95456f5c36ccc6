"""The evidence: what studies have shown, claim by claim, from results that are kept with the documentation.

Read `kept` first: the compressed table of a study. `cells` makes arrays of it, `statistics` has the intervals, and
`claims` the verdicts. A module for each section of the page: `published`, `every_method`, `ordering`, `convergence`,
`sanity`, `path_scores` and `widths`; `sections` writes them as Markdown and `plots` draws them. `page` puts them
together, and `__main__` is the command.
"""

"""The evidence: what studies have shown, claim by claim, from results that are kept with the documentation.

Read `kept` first: the compressed table of a study. `cells` makes arrays of it, `statistics` has the intervals, and
`claims` the verdicts. A module for each section of the page: `published`, `every_method`, `ordering`, `convergence`,
`sanity`, `path_scores` and `widths`; `accounts` has the numbers of others, which `published` and `settling` hold ours
beside. `sections` writes Markdown and `plots` draws. `page` puts all together, and `__main__` is the command.
"""

"""The report of a study: figures, sentences, tables and one HTML page.

Read `report` first: it puts everything together. `opening` has its first three sentences, `cautions` what a reader has
to know before trusting it, `tables` its tables, `page` its HTML. `figures`, `quantity_figures`, `kernel_figures` and
`width_figure` draw, on `drawing` and `ticks`; `layer_order` has the order of layers, `spread` that of seeds. `findings`
and `kernel_findings` say in sentences what the figures show.
"""

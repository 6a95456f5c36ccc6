"""What is kept of a study, and how it is read.

Read `trial` first: one record for each network. `jsonl` writes it as a line, `results_folder` keeps the lines so that
none is lost, `progress` says how far a run is. `study_table` reads a folder into tables over seeds, and
`rank_association` says how one column ranks with another.
"""

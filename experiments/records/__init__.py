"""What is kept of a study, and how it is read.

Read `trial` first: one record for each network. `trial_summaries` has the numbers that follow from its lists and
tables. `jsonl` writes it as a line, `stored_lines` reads the lines of a file and `results_folder` keeps them so that
none is lost; `merging` joins the folders of parts of a study. `progress` says how far a run is, `time_left` how long it
still takes. `study_table` reads a folder into tables over seeds, `trial_table` has a row for each trial, `trackers`
sends trials to other programs, and `rank_association` says how one column ranks with another.
"""

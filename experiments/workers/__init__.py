"""A study by several processes: one holds the folder and keeps, the others compute a cell at a time.

`driver` is the one that keeps; `tasks` is what a worker is given and does; `pool` has workers on this machine, and
`cluster` those of Ray, which `joining` begins.
"""

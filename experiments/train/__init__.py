"""The training of masked networks, on one device or many, in one process or several.

Read `recipe` (how networks are trained), then `training` (the compiled program), then `tickets` (masks that are found
by training), `checkpoints` (a training goes on where it was cut off) and `distributed` (several processes that compute
one study together).
"""

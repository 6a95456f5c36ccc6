"""The evidence: what studies have shown. `statistics` has the intervals of what is claimed."""

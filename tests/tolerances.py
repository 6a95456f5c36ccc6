"""The relative tolerances of all tests. They are never loosened to let a test pass."""

EXACT = 1e-10
"""Two float64 computations of the same number."""

SINGLE = 1e-4
"""A float32 computation against a float64 one."""

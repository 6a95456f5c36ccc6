"""The tolerances of all tests, from the tightest on. They are never loosened to let a test pass."""

ROUNDING = 1e-15
"""A few roundings of float64 numbers near 1."""

SUMS = 1e-12
"""The same float64 products summed in another order, relative to the largest sum."""

EXACT = 1e-10
"""Two float64 computations of the same number."""

HALF_THE_DIGITS = 1e-7
"""Float64 results that lose half of the digits: the arc cosine of a correlation near 1, and vectors of a search that
stops once the eigenvalues, whose errors are the squares of those of the vectors, have all their digits."""

DIFFERENCES = 1e-7
"""Central differences of a float64 function against its derivative."""

INTEGRATED = 1e-6
"""Differential equations that two solvers integrate in float64, each in steps that its own error bounds."""

SINGLE_ROUNDING = 1e-6
"""A few roundings of float32 numbers near 1."""

SINGLE = 1e-4
"""A float32 computation against a float64 one."""

DISCRETE = 1e-3
"""Gradient descent in small steps against the differential equation that it approaches."""

HALF = 1e-2
"""A computation from bfloat16 or float16 weights and inputs against a float64 one."""

STANDARD_ERRORS = 4
"""Monte Carlo estimates, in standard errors."""

"""All benchmarks: `python -m experiments.benchmarks --help`."""

from __future__ import annotations

import sys

from experiments.benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())

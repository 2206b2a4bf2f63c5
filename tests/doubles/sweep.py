"""``python -m tests.doubles.sweep``: the real sweep, on a runner that answers from a formula."""

import functools
import sys

from revati import sweep
from revati.search import run

if __name__ == "__main__":
    sweep.run_sweep = functools.partial(run.run_sweep, runner="tests.doubles.runner")
    sys.exit(sweep.main())

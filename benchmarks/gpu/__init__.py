"""The benchmark on a GPU; its modules use the benchmarks beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

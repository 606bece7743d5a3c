"""The program, run as `python tests/faults`."""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
importlib.import_module("faults.runner").main()

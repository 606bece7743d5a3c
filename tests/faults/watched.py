"""Runs teachonce with the hook in a process that was forked, and so has not imported it at its start: see `hook/sitecustomize.py`."""

import importlib.util
import runpy
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("hook", Path(__file__).parent / "hook" / "sitecustomize.py")
assert spec is not None
assert spec.loader is not None
spec.loader.exec_module(importlib.util.module_from_spec(spec))  # it reads the environment

del sys.path[0]  # this folder
sys.argv[0] = "teachonce"
runpy.run_module("teachonce", run_name="__main__", alter_sys=True)

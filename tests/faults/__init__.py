"""The fault table: what goes wrong, provoked one by one; what must happen; what happened. `make faults` repeats it; see docs/reliability.md.

One file holds the faults of one kind, `runner.py` is the program, `table.py` the page.
"""

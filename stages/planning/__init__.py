"""Planning: what a corpus, a teacher and its students will take, before any of it runs; see `stages/plan.py`."""

"""Caching: what one worker of `cache` does: views made ahead, packed into the teacher's batches, and targets written."""

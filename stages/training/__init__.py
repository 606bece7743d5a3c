"""Training a student: where it starts, the loop, its schedule, checkpoint and log."""

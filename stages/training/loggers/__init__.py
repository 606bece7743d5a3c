"""Loggers: other programs that show a training run's figures, one file each. None of them can end the training."""

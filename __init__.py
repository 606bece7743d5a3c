"""teachonce: run a frozen teacher once, keep what it said, train any number of students from that."""

__version__ = "0.1.0"

"""Decoding ahead: work on samples in other processes or threads, whose arrays come back in shared memory, in order."""

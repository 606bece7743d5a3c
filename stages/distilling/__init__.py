"""What `teachonce distill` is made of: the pairs that it reads, what it refuses, what it notes, and its stage."""

"""What the work is: one file is one command."""

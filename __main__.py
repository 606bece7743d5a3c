"""`python -m teachonce`: the same program as the `teachonce` command."""

from .cli import main

main()

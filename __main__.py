"""The `teachonce` command, and `python -m teachonce`: the program as a process of its own."""

from __future__ import annotations

from .pipeline import interrupt, lean_imports


def main() -> None:
    """Run the program; ends the process."""
    interrupt.install()  # before anything that takes time to import
    lean_imports.install()
    from .cli import main as program
    from .pipeline.terminal import one_line_warnings

    one_line_warnings()
    try:
        program()
    finally:
        if interrupt.happened():
            interrupt.leave()


if __name__ == "__main__":
    main()

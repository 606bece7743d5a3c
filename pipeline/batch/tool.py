"""Owns calls of a scheduler's own programs."""

from __future__ import annotations

import subprocess

from ...storage_schemas.errors import InputError
from ..storage import Location


def require_tool(name: str) -> None:
    """Look for a program.

    Raises:
        InputError: it is not installed here.
    """
    quiet = subprocess.DEVNULL
    try:
        subprocess.run([name, "--help"], stdin=quiet, stdout=quiet, stderr=quiet, check=False)
    except OSError as error:
        raise InputError(
            f"{name} is not on this machine",
            code="submit-tool-missing",
            where="--now",
            hint=f"leave out --now, and run what it prints where {name} is",
        ) from error


def run_script(script: Location) -> None:
    """Run what submits a run; its output goes to the terminal.

    Raises:
        InputError: it ends with an error, which stands above.
    """
    done = subprocess.run(["bash", str(script)], stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise InputError(
            "not everything could be submitted",
            code="submit-failed",
            where=script,
            found=f"exit code {done.returncode}",
            hint="mend what stands above, then run the script again",
        )

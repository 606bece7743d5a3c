"""Owns the virtual environments of peers: one each, made by uv from `peers/NAME.txt`, kept, and made again where that changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = HERE / "peers"


def default_folder() -> Path:
    """$XDG_CACHE_HOME/teachonce-peers, or .venv/peers of the checkout."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache) / "teachonce-peers" if cache else HERE.parent / ".venv" / "peers"


@dataclass(frozen=True)
class Environments:
    """The environments under one folder."""

    folder: Path

    def python(self, name: str, *, with_teachonce: bool = False) -> str:
        """The interpreter of a peer's environment. Its packages are the newest that fit, at the time when it was made."""
        own = self.folder / name
        python, stamp = own / "bin" / "python", own / "requirements.txt"
        requirements = SCRIPTS / f"{name}.txt"
        if stamp.exists() and stamp.read_text() == requirements.read_text():
            return str(python)
        shutil.rmtree(own, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        print(f"{name}: making its environment in {own}", file=sys.stderr, flush=True)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(own)], check=True)
        checkout = ["--editable", str(HERE.parent)] if with_teachonce else []
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "--requirements", str(requirements)]
        subprocess.run([*install, *checkout], check=True)
        stamp.write_text(requirements.read_text())
        return str(python)


def versions_text(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())

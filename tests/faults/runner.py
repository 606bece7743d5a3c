"""The program of the fault table: provokes faults one after another, writes what happened to `results.json` and the page of it."""

from __future__ import annotations

import argparse
import fnmatch
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from . import images, table
from .all_faults import FAULTS
from .fault import Fault, Lacking, Unmet
from .room import Room


def main(words: list[str] | None = None) -> None:
    """Ends the process: with 0 if all that was provoked went as it must."""
    options = _options().parse_args(words)
    chosen = select(options.only)
    if not chosen:
        sys.exit(f"no fault has such a name: {' '.join(options.only)}. Next: --list")
    if options.list:
        print("\n".join(fault.name for fault in chosen))
        return
    if options.table:
        table.write()
        return
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=options.room))
    room = Room(
        folder=folder,
        images=images.lay_out(folder / "images", options.images),
        kills=options.kills,
        seed=options.seed,
        only_case=options.case,
    )
    try:
        held = [_provoke(fault, room, record=options.case is None) for fault in chosen]
    finally:
        room.close()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{sum(held)} of {len(held)} as they must")
    sys.exit(not all(held))


def select(patterns: list[str]) -> list[Fault]:
    """The faults whose name has one of these in it, or matches it (`*` for anything); all without a pattern."""
    if not patterns:
        return list(FAULTS)
    return [f for f in FAULTS if any(p in f.name or fnmatch.fnmatchcase(f.name, p) for p in patterns)]


def _provoke(fault: Fault, room: Room, *, record: bool) -> bool:
    print(f"{fault.name} … ", end="", flush=True)
    start = time.monotonic()
    try:
        held, happened = "yes", fault.run(room)
    except Lacking as error:
        held, happened = "not run", f"not run here: {error}"
    except Unmet as error:
        held, happened = "no", str(error)
    except Exception as error:
        traceback.print_exc()
        held, happened = "no", f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    print(f"{held}: {happened} ({seconds:.0f} s)", flush=True)
    if record:
        table.record(fault, held, happened)
    return held != "no"


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="faults with this in their name; * is anything"
    )
    parser.add_argument("--list", action="store_true", help="names of the faults; nothing is run")
    parser.add_argument(
        "--table", action="store_true", help="write docs/reliability.md of the results there are; nothing is run"
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="class folders of photographs; some are taken [default: drawn]"
    )
    parser.add_argument("--kills", type=int, default=200, help="over all stages and executors [default: 200]")
    parser.add_argument("--seed", type=int, default=0, help="of the points where processes are killed [default: 0]")
    parser.add_argument("--case", type=int, help="run this case of the kills alone, and record nothing")
    parser.add_argument(
        "--room", type=Path, help="folder for what is written; its path should be short [default: TMPDIR]"
    )
    parser.add_argument("--keep", action="store_true", help="leave what was written there")
    return parser

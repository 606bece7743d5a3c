"""Owns docs/errors.md: writes the list of errors from the places that raise them and docs/error_codes.toml, for `make docs`."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from teachonce.storage_schemas.errors import LOST_CODE, TeachonceError

ROOT = Path(__file__).parent.parent
REFERENCE = Path(__file__).with_name("errors.md")
CODES = Path(__file__).with_name("error_codes.toml")
TOPS = ("cli.py", "commands", "pipeline", "stages", "storage_schemas")

#: What makes or raises an error with the code that it is given, and of which class.
MAKERS = {
    "read_json": "DamagedError",
    "read_sealed": "DamagedError",
    "as_schema": "DamagedError",
    "readable": "DamagedError",
    "_damaged": "DamagedError",
    "as_sealed": "DamagedError",
    "check": "MismatchError",
    "check_kind": "MismatchError",
    "one_line": "InputError",
    "_check_read": "InputError",
    "unknown_name": "InputError",
    "_Refusal": "StorageError",
    "Cause": "MismatchError",
}

HEAD = """\
# Errors

Written by `make docs` from the places that raise them and `docs/error_codes.toml`; change those, not this page.

An error is one line: what is wrong, where, what was expected and found there, its code in brackets, and what to type or
do next.

    Error: no such corpus: photos [corpus-missing]. Next: check the path

Words and hints may change from version to version; a code keeps its meaning. In Python every error is a
`teachonce.storage_schemas.errors.TeachonceError` with the fields `code`, `what`, `where`, `expected`, `found` and `hint`.
`teachonce status --json` gives the code of each failed unit, `teachonce benchmark --json` that of each failed data set.
A `…` below stands for what differs from case to case.

"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place that makes an error. `what` is None where it is not written there; `kind` where no maker is known."""

    code: str
    kind: str | None
    what: str | None
    place: str


def kinds(kind: type[TeachonceError] = TeachonceError) -> set[str]:
    """Names of the classes of errors."""
    return {kind.__name__}.union(*(kinds(below) for below in kind.__subclasses__()))


def sites() -> Iterator[Site]:
    """All places with a code, in the order of files and lines."""
    yield Site(code=LOST_CODE, kind="TeachonceError", what=None, place="storage_schemas/errors.py")
    makers = MAKERS | {name: name for name in kinds()} | {"ClusterEnded": "ClusterEnded"}
    for top in TOPS:
        path = ROOT / top
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            constants = _constants(tree)
            for node, owner in _walk(tree, None):
                for code, maker, what in _codes(node, owner):
                    place = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
                    kind = makers.get(maker, maker if maker in makers.values() else None)
                    yield Site(code=code, kind=kind, what=_text(what, constants), place=place)


def _walk(node: ast.AST, owner: str | None) -> Iterator[tuple[ast.AST, str | None]]:
    """Every node, and the class that it stands in."""
    for below in ast.iter_child_nodes(node):
        yield below, owner
        yield from _walk(below, below.name if isinstance(below, ast.ClassDef) else owner)


def _codes(node: ast.AST, owner: str | None) -> Iterator[tuple[str, str, ast.expr | None]]:
    """(code, name of the maker, what): of a call with `code=…`, or of a mapping of such arguments."""
    if isinstance(node, ast.Call):
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        what = named.get("what") or (node.args[0] if node.args else None)
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        maker = owner or "" if name == "__init__" else name
    elif isinstance(node, ast.Dict):
        named = {
            key.value: value
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
        what, maker = named.get("what"), "DamagedError"
    else:
        return
    if what is not None and "code" in named:
        for part in ast.walk(named["code"]):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value, maker, what


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """What is assigned once in a module, by its name."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _text(node: ast.expr | None, constants: dict[str, ast.expr]) -> str | None:
    """The words of an expression, with … for what is put in."""
    if isinstance(node, ast.Name):
        node = constants.get(node.id)
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    return None


def sections() -> dict[str, dict[str, str]]:
    """Section -> code -> what it means and what to do."""
    return tomllib.loads(CODES.read_text(encoding="utf-8"))


def reference() -> str:
    """The whole page, in Markdown."""
    found: dict[str, list[Site]] = {}
    for site in sites():
        found.setdefault(site.code, []).append(site)
    parts = []
    for section, codes in sections().items():
        rows = [_row(code, found.get(code, []), meaning) for code, meaning in sorted(codes.items())]
        parts.append(
            f"## {section}\n\n| code | class | it says | meaning, and what to do |\n| --- | --- | --- | --- |\n"
            + "\n".join(rows)
            + "\n"
        )
    return HEAD + "\n".join(parts)


def _row(code: str, found: list[Site], meaning: str) -> str:
    said = "; ".join(dict.fromkeys(site.what for site in found if site.what))
    kind = ", ".join(dict.fromkeys(site.kind or "?" for site in found))
    cells = (f'<a id="{code}"></a>`{code}`', kind, said, meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    print(f"wrote {REFERENCE}")

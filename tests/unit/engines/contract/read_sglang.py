"""Reads SGLang's own definitions of its options, without running it, into sglang.json.

    pip download --no-deps sglang && python -m tests.unit.engines.contract.read_sglang sglang-*.whl

Options are fields `name: A[type, help or Arg(…)]` of classes in srt/arg_groups/fields/ (see
srt/arg_groups/arg_utils.py, add_cli_args_from_dataclass), and plain `parser.add_argument` calls in
srt/server_args.py. Choices of which the values are computed are recorded as null, like none.
"""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

FILE = Path(__file__).parent / "sglang.json"
FIELDS, SERVER = "sglang/srt/arg_groups/fields/", "sglang/srt/server_args.py"
CHOICES = "sglang/srt/arg_groups/choices.py"
Option = tuple[str, dict[str, Any]]


def read(wheel: Path) -> dict[str, Any]:
    """Options by name: source file, whether it is a bare flag, allowed values."""
    with ZipFile(wheel) as archive:
        lists = dict(_lists(ast.parse(archive.read(CHOICES))))
        names = sorted(n for n in archive.namelist() if n.startswith(FIELDS) and n[-3:] == ".py")
        found = dict[str, Any]()
        for name in names:
            found |= {k: {**v, "file": name} for k, v in _fields(archive.read(name), lists)}
        for option, value in _added(archive.read(SERVER)):
            found[option] = {**value, "file": SERVER}
    return {"version": wheel.name.split("-")[1], "options": dict(sorted(found.items()))}


def _lists(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.List() as value):
                yield name, _literal(value)


def _fields(source: bytes, lists: dict[str, Any]) -> Iterator[Option]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.AnnAssign(
                target=ast.Name(id=name),
                annotation=ast.Subscript(value=ast.Name(id="A"), slice=ast.Tuple(elts=elts)),
            ):
                yield from _field(name, elts, lists)


def _field(name: str, elts: list[ast.expr], lists: dict[str, Any]) -> Iterator[Option]:
    words = dict[str, ast.expr]()
    if isinstance(elts[1], ast.Call):
        words = {k.arg: k.value for k in elts[1].keywords if k.arg}
    if _literal(words.get("no_cli")):
        return
    wanted = words.get("choices")
    choices = lists.get(wanted.id) if isinstance(wanted, ast.Name) else _literal(wanted)
    kind = ast.unparse(elts[0])
    if choices is None and "Literal[" in kind:
        choices = list(ast.literal_eval(f"({kind.partition('Literal[')[2].split(']')[0]},)"))
    own = _literal(words.get("cli_name")) or f"--{name.replace('_', '-')}"
    for option in (own, *(_literal(words.get("aliases")) or ())):
        yield option, {"flag": kind == "bool" and "action" not in words, "choices": choices}


def _added(source: bytes) -> Iterator[Option]:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="add_argument"),
                args=[ast.Constant(value=str(option)), *_],
                keywords=keywords,
            ):
                words = {k.arg: k.value for k in keywords}
                flag = _literal(words.get("action")) == "store_true"
                yield option, {"flag": flag, "choices": _literal(words.get("choices"))}


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


if __name__ == "__main__":
    made = read(Path(sys.argv[1]))
    rows = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in made["options"].items()]
    start = f'{{"version": "{made["version"]}", "options": {{\n'
    FILE.write_text(start + ",\n".join(rows) + "\n}}\n")  # a line each, for the diffs

"""Check every import against the layers in the table of docs/development/architecture.md."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hpc_dynamo

PACKAGE = Path(hpc_dynamo.__file__).parent
LONGEST = 300  # lines of a file

# The table of layers: `| layer | folders and modules | description |`, lowest layer first.
PAGE = PACKAGE.parent / "docs/development/architecture.md"
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \|", re.MULTILINE)


def layers(page: str) -> dict[str, int]:
    """Return the layer of each folder and top-level module that the page lists."""
    return {
        name.rstrip("/"): int(layer)
        for layer, names in ROW.findall(page)
        for name in re.findall(r"`([a-z_]+/?)`", names)
    }


LEVEL = layers(PAGE.read_text())

# Each of these libraries is imported in one place only.
HOMES = {
    "hydra": ("cli/overrides/hydra_files.py",),
    "omegaconf": ("cli/overrides/hydra_files.py",),
    "yaml": ("cli/overrides/yaml_text.py",),
    "submitit": ("launch/",),
    "matplotlib": ("plotting.py",),
    "mpi4py": ("bootstrap/mpi.py",),
    "nixl": ("kv/agent.py",),
    "nixl_cu12": ("kv/agent.py",),
    "nixl_cu13": ("kv/agent.py",),
    "zmq": ("wire/",),
    "fastokens": ("preprocess/",),
    "httptools": ("http/",),
    "jinja2": ("chat_templates/",),
    "prometheus_client": ("engines/metrics.py", "head/", "simulator/"),
    "tokenizers": ("preprocess/",),
    "xxhash": ("router/index/hashes.py",),
}


@dataclass(frozen=True)
class Import:
    """One import of a module."""

    file: str  # relative to the package
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"

    @property
    def room(self) -> str:
        """Return the imported top-level folder or module of hpc_dynamo, or an empty text."""
        top, _, rest = self.module.partition(".")
        return rest.split(".")[0] if top == "hpc_dynamo" else ""


def imports(package: Path) -> list[Import]:
    """Return all imports of all files, also in functions and under TYPE_CHECKING."""
    return [
        Import(str(file.relative_to(package)), line, module)
        for file in sorted(package.rglob("*.py"))
        for line, module in _imported(file, package)
    ]


def _imported(file: Path, package: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                start = _parent(file, package, level) if level else ""
                full = ".".join(part for part in (start, base) if part)
                yield from ((node.lineno, _module(full, a.name, package)) for a in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(function) in ("importlib.import_module", "__import__"):
                    yield node.lineno, name


def _parent(file: Path, package: Path, level: int) -> str:
    return ".".join(file.relative_to(package.parent).parts[:-level])


def _module(base: str, name: str, package: Path) -> str:
    """Return package.name for `from package import name` if that is a module, else package."""
    spot = package.parent.joinpath(*base.split("."), name)
    return f"{base}.{name}" if spot.is_dir() or spot.with_suffix(".py").exists() else base


def room_of(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def wrong_layers(found: list[Import]) -> list[str]:
    wrong = []
    for i in found:
        own = room_of(i.file)
        if not i.room or i.room == own:
            continue
        if own not in LEVEL or i.room not in LEVEL:
            missing = own if own not in LEVEL else i.room
            wrong.append(
                f"{i}: {missing} has no row in the table of docs/development/architecture.md"
            )
        elif LEVEL[i.room] >= LEVEL[own]:
            above = [room for room, level in LEVEL.items() if level < LEVEL[own]]
            wrong.append(f"{i}: {own} may import only itself and {', '.join(above)}")
    return wrong


def wrong_homes(found: list[Import]) -> list[str]:
    return [
        f"{i}: {library} is imported only in {', '.join(homes)}"
        for i in found
        for library, homes in HOMES.items()
        if i.module.split(".")[0] == library and not i.file.startswith(homes)
    ]


def cycle(found: list[Import]) -> list[str]:
    """Return one cycle of modules, or nothing. Importing a.b.c also imports a and a.b."""
    graph: dict[str, set[str]] = {}
    for i in found:
        own = "hpc_dynamo." + i.file.removesuffix(".py").replace("/", ".")
        own = own.removesuffix(".__init__")
        parts = i.module.split(".")
        reached = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        # The parent packages of a module are being imported at that time: this is no cycle.
        within = {m for m in reached if m != i.module and f"{own}.".startswith(f"{m}.")}
        graph.setdefault(own, set()).update(reached - within)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as e:
        ring: list[str] = e.args[1]
        return ring
    return []


FOUND = imports(PACKAGE)


def test_files_import_only_from_lower_layers() -> None:
    assert len(FOUND) > 200, "too few imports found"
    assert not (wrong := wrong_layers(FOUND)), "\n".join(wrong)


def test_library_is_imported_only_in_its_home() -> None:
    assert not (wrong := wrong_homes(FOUND)), "\n".join(wrong)


def test_imports_form_no_cycle() -> None:
    assert not (ring := cycle(FOUND)), " imports ".join(reversed(ring))


def test_supervisor_imports_only_the_standard_library() -> None:
    """The supervisor runs as `python -I -S`, without site-packages."""
    foreign = [
        str(i)
        for i in FOUND
        if i.file == "process/supervisor.py"
        and i.module.split(".")[0] not in sys.stdlib_module_names
    ]
    assert not foreign, f"{foreign}: process/supervisor.py may import the standard library only"


def test_no_file_exceeds_the_line_limit() -> None:
    sizes = {f: len(f.read_text().splitlines()) for f in sorted(PACKAGE.rglob("*.py"))}
    long = [f"{f.relative_to(PACKAGE)} has {n} lines" for f, n in sizes.items() if n > LONGEST]
    assert not long, f"{'; '.join(long)}: at most {LONGEST}: split the file or simplify it"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Return a package that violates every rule."""
    package = tmp_path / "hpc_dynamo"
    (package / "cli").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "cli/__init__.py", "cli/main.py", "attic.py"):
        (package / name).touch()
    (package / "config.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from hpc_dynamo import topology\n"
        "def f():\n    import zmq.asyncio\n"
    )
    (package / "topology.py").write_text("from .cli.main import x\nfrom hpc_dynamo import attic\n")
    (package / "cli" / "main.py").write_text("from ..topology import plan\nimport submitit\n")
    return package


def test_checks_report_each_violation(bad: Path) -> None:
    found = imports(bad)
    layers, homes = "\n".join(wrong_layers(found)), "\n".join(wrong_homes(found))
    assert "config.py:3 imports hpc_dynamo.topology: config may import only itself and" in layers
    assert "topology.py:1 imports hpc_dynamo.cli.main: topology may import only" in layers
    assert "topology.py:2 imports hpc_dynamo.attic: attic has no row" in layers
    assert "config.py:5 imports zmq.asyncio: zmq is imported only in wire/" in homes
    assert "cli/main.py:2 imports submitit: submitit is imported only in launch/" in homes
    assert set(cycle(found)) == {"hpc_dynamo.cli.main", "hpc_dynamo.topology"}

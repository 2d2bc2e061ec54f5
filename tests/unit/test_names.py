"""Names in the package: every public class has one meaning, and functions stay short."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import hpc_dynamo

PACKAGE = Path(hpc_dynamo.__file__).parent
MAX_FUNCTION_LINES = 50


def definitions(package: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Yield (file, node) for each class and function of the package."""
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield str(file.relative_to(package)), node


def repeated_class_names(package: Path) -> list[str]:
    """Return one line for each public class name that several files define."""
    files = defaultdict[str, list[str]](list)
    for file, node in definitions(package):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            files[node.name].append(file)
    return [f"{name}: {', '.join(where)}" for name, where in files.items() if len(where) > 1]


def long_functions(package: Path) -> list[str]:
    """Return one line for each function that is longer than MAX_FUNCTION_LINES."""
    return [
        f"{file}:{node.lineno} {node.name} has {length} lines"
        for file, node in definitions(package)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def test_public_class_name_is_defined_once() -> None:
    assert not (repeated := repeated_class_names(PACKAGE)), "\n".join(repeated)


def test_function_stays_within_the_line_limit() -> None:
    assert not (long := long_functions(PACKAGE)), "\n".join(long)


def test_checks_report_repeated_names_and_long_functions(tmp_path: Path) -> None:
    body = "    x = 0\n" * MAX_FUNCTION_LINES
    (tmp_path / "a.py").write_text(f"class Job: ...\nclass _Own: ...\ndef f():\n{body}")
    (tmp_path / "b.py").write_text("class Job: ...\nclass _Own: ...\n")
    assert repeated_class_names(tmp_path) == ["Job: a.py, b.py"]
    assert long_functions(tmp_path) == ["a.py:3 f has 51 lines"]

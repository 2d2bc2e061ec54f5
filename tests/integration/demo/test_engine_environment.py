"""Shared, replaced and edited packages of the demo's engine environments. Nothing is fetched."""

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from hpc_dynamo.demo import cuda_placeholders
from hpc_dynamo.demo.edit_packages import EDITS, edit_packages
from hpc_dynamo.demo.engine_environment import CONVERTER, TORCH
from hpc_dynamo.demo.provision import NIXL
from hpc_dynamo.demo.provision_sglang import PACKAGES, SGLANG
from hpc_dynamo.demo.share_packages import share_packages


def installed(site: Path, engine: str, text: str) -> None:
    """Write a file for each edit, with `{0}` in the text as its old line."""
    for name in {name for name, *_ in EDITS[engine]}:
        olds = "".join(old for other, old, _ in EDITS[engine] if other == name)
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text.format(olds))


@pytest.mark.parametrize("engine", EDITS)
def test_packages_are_edited_once(tmp_path: Path, engine: str) -> None:
    installed(tmp_path, engine, "before\n{0}after\n")
    for _ in range(2):
        edit_packages(engine, tmp_path)
        for name, old, new in EDITS[engine]:
            text = (tmp_path / name).read_text()
            assert old not in text
            assert text.count(new) == 1


@pytest.mark.parametrize("engine", EDITS)
def test_unknown_version_is_not_edited(tmp_path: Path, engine: str) -> None:
    installed(tmp_path, engine, "something else\n")
    with pytest.raises(SystemExit, match="does not have this line once"):
        edit_packages(engine, tmp_path)


def test_edit_keeps_linked_file_of_other_environment(tmp_path: Path) -> None:
    installed(tmp_path / "a", "sglang", "{0}")
    name, old, _ = EDITS["sglang"][0]
    linked = tmp_path / "b"
    os.link(tmp_path / "a" / name, linked)
    edit_packages("sglang", tmp_path / "a")
    assert old in linked.read_text()


def package(site: Path, name: str, version: str, *files: str) -> None:
    """Install a package whose files contain its version."""
    info = f"{name}-{version}.dist-info"
    for file in (*files, f"{info}/METADATA"):
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = [f"{file},," for file in (*files, f"{info}/METADATA", f"{info}/RECORD")]
    (site / info / "RECORD").write_text("\n".join(record))


def test_packages_of_same_version_are_shared(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "theirs" / "site", tmp_path / "mine" / "site"
    package(theirs, "Same_Name", "1.0", "same/a.py", "same/b.py", "../bin/same")
    package(theirs, "older", "1.0", "older.py")
    package(theirs, "more", "1.0", "more.py")
    pins = ["# text", "same-name==1.0\n", "older==2.0", "absent==1.0"]
    assert share_packages(theirs, mine, pins) == 1
    assert share_packages(theirs, mine, pins) == 1, "it can be repeated"
    assert [d.name for d in distributions(path=[str(mine)])] == ["Same_Name"]
    assert (mine / "same/a.py").samefile(theirs / "same/a.py")
    assert not (tmp_path / "mine/bin").exists(), "scripts name another interpreter"
    assert not (mine / "older.py").exists()
    assert not (mine / "more.py").exists()


def test_nothing_is_shared_with_missing_environment(tmp_path: Path) -> None:
    assert share_packages(tmp_path / "absent", tmp_path / "mine", ["numpy==1.0"]) == 0


def in_environment(site: Path, code: str) -> str:
    """Return the output of a Python program with this folder as site-packages."""
    start = f"import site; site.addsitedir({str(site)!r})\n"
    done = subprocess.run(
        (sys.executable, "-c", start + code), check=True, capture_output=True, text=True, cwd=site
    )
    return done.stdout.strip()


def test_placeholders_are_imported_and_cannot_be_called(tmp_path: Path) -> None:
    cuda_placeholders.install(tmp_path)
    code = """
import torchvision.transforms.v2 as v2
from sgl_kernel.any import kernel, other
from torchaudio import load
class Child(v2.Resize): pass
Child(3)
assert not hasattr(load, "__wrapped__")
try:
    kernel()(1)
except RuntimeError as e:
    print(e)
"""
    said = in_environment(tmp_path, code)
    assert said == "sgl_kernel.any.kernel was called, but only a placeholder of it is installed"


def test_installed_package_precedes_placeholder(tmp_path: Path) -> None:
    cuda_placeholders.install(tmp_path)
    (tmp_path / "torchvision.py").write_text("real = 1")
    assert in_environment(tmp_path, "import torchvision; print(torchvision.real)") == "1"
    assert in_environment(tmp_path, "import importlib.util as u; print(u.find_spec('x'))") == "None"


def test_sglang_packages_are_pinned_exactly() -> None:
    """`name==version` in every line, no package of CUDA, and torch only in its own step."""
    lines = [line for line in PACKAGES.read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    assert pins["sglang"] == SGLANG
    assert {TORCH.partition("==")[0], *cuda_placeholders.PACKAGES}.isdisjoint(pins)
    assert {f"{name}=={pins[name]}" for name in ("nixl", "nixl-cu12")} == set(NIXL)
    assert {f"{name}=={pins[name]}" for name in ("accelerate", "gguf", "transformers")} == set(
        CONVERTER
    )

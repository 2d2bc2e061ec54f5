"""Hard-link packages from another environment: `python share_packages.py FROM TO PINS [PIN …]`.

FROM and TO are site-packages of the same version of Python, PINS is a file of lines
`name==version`. A package is shared if FROM has exactly this version. pip then counts it as
installed. This saves the download, the disk space and the compilation of the package.

Linked files are safe: pip and edit_packages.py replace files and never write into them. Scripts
outside site-packages are left out, since they name the interpreter of the other environment.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path


def share_packages(source: Path, target: Path, pins: Iterable[str]) -> int:
    """Link the packages with these pins. Return how many were found. May be repeated."""
    wanted = {_normalized(line) for line in pins if "==" in line}
    found = [d for d in distributions(path=[str(source)]) if _pin(d) in wanted]
    for distribution in found:
        _link(distribution, source, target)
    return len(found)


def _pin(distribution: Distribution) -> str:
    return _normalized(f"{distribution.metadata['Name']}=={distribution.version}")


def _normalized(pin: str) -> str:
    name, _, version = pin.strip().partition("==")
    return f"{re.sub('[-_.]+', '-', name).lower()}=={version}"


def _link(distribution: Distribution, source: Path, target: Path) -> None:
    for file in distribution.files or ():
        old, new = source / file, target / file
        if ".." in file.parts or new.exists() or not old.exists():
            continue
        new.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(old, new)
        except OSError:  # another disk, or one without hard links
            shutil.copy2(old, new)


if __name__ == "__main__":
    origin, destination, listed = map(Path, sys.argv[1:4])
    lines = [*listed.read_text().splitlines(), *sys.argv[4:]]
    count = share_packages(origin, destination, lines)
    print(f"{count} packages are shared with {origin}")

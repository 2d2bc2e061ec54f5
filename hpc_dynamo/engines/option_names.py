"""Names of the options of vLLM and SGLang, read from `option_names.txt`."""

from pathlib import Path


def read_names(file: Path) -> dict[str, frozenset[str]]:
    """Return the names of each section of a file; names before the first section are under "".

    A line `[name]` starts a section; `#` starts a comment; names are separated by blanks.
    """
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    for line in file.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            current += line.split()
    return {name: frozenset(names) for name, names in sections.items()}


def tuning_options(adapter_file: str) -> frozenset[str]:
    """Return the names in `tuning_options.txt` in the folder of an adapter."""
    return read_names(Path(adapter_file).with_name("tuning_options.txt"))[""]


_NAMES = read_names(Path(__file__).with_suffix(".txt"))
VALUES, FLAGS, MULTI_VALUE = _NAMES["values"], _NAMES["flags"], _NAMES["multi_value"]

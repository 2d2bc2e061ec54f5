"""Files of configuration groups, in `conf/` and in a folder of the user's own."""

from dataclasses import dataclass, field
from pathlib import Path

from hpc_dynamo.cli.overrides.yaml_text import Document, Keys
from hpc_dynamo.errors import unknown_name


@dataclass
class Folders:
    """Folders with files for the same groups; earlier folders override later ones."""

    folders: tuple[Path, ...]
    read: list[Document] = field(default_factory=list)

    def file(self, name: str) -> Path | None:
        """Return the file of a configuration, such as `cluster/slurm`."""
        name = name if name.endswith(".yaml") else f"{name}.yaml"
        return next((f for folder in self.folders if (f := folder / name).is_file()), None)

    def has_group(self, group: str) -> bool:
        outside = group.startswith(("/", "."))  # a path of the user's, not one below `folders`
        return bool(group) and not outside and any((f / group).is_dir() for f in self.folders)

    def choices(self, group: str) -> list[str]:
        """Return the names of a group's files."""
        return sorted({file.stem for f in self.folders for file in (f / group).glob("*.yaml")})

    def line(self, keys: Keys) -> str:
        """Return `FILE:LINE` of the last file that set a field; empty if none did.

        The keys in a file are the end of the field's keys, since its package comes before them.
        """
        found = [
            (len(own), at, f"{document.path}:{line}")
            for at, document in enumerate(self.read)
            for own, line in document.lines.items()
            if keys[-len(own) :] == own
        ]
        return max(found)[2] if found else ""


def refuse_unknown_choice(folders: Folders, group: str, name: str) -> None:
    """Raises ConfigError unless a group has a file of this name."""
    if folders.file(f"{group}/{name}") is None:
        raise unknown_name(group, name, folders.choices(group))

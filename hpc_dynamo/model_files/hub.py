"""Hugging Face cache: finds downloaded models, without the hub library and without network.

    CACHE/models--ORG--NAME/refs/REVISION          a text file with a commit hash
    CACHE/models--ORG--NAME/snapshots/HASH/...     links into ../../blobs
    CACHE/models--ORG--NAME/blobs/*.incomplete     a download that was interrupted

Source: huggingface_hub 2.4, constants.py (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE) and
file_download.py (repo_folder_name, try_to_load_from_cache).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template

from hpc_dynamo.regular_file import read_regular_file

MAIN = "main"  # the revision that is used if none is given
MAX_REF_BYTES = 1000
_TRUE = ("1", "ON", "YES", "TRUE")
_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")


def is_hub_id(name: str) -> bool:
    """Return True if a name can be a repository of the hub: `org/name`, or only `name`."""
    return bool(_HUB_ID.fullmatch(name)) and "--" not in name and ".." not in name


def is_offline(environ: Mapping[str, str]) -> bool:
    """Return True if the hub library would refuse to download."""
    value = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in _TRUE


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder that the hub library would use with this environment."""
    base = environ.get("XDG_CACHE_HOME", "~/.cache")
    home = environ.get("HF_HOME", f"{base}/huggingface")
    legacy = environ.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub")
    text = environ.get("HF_HUB_CACHE", legacy)
    return Path(Template(text).safe_substitute(environ)).expanduser()


def model_folder(cache: Path, hub_id: str) -> Path:
    """Return the folder of a model in a cache; it need not exist."""
    return cache / "--".join(("models", *hub_id.split("/")))


def snapshot(cache: Path, hub_id: str, revision: str = "") -> Path | None:
    """Return the folder with the files of a revision (a branch, tag or commit hash).

    None if this revision was never downloaded. Another revision is never returned instead.
    """
    model, revision = model_folder(cache, hub_id), revision or MAIN
    ref = model / "refs" / revision
    commit = _commit(ref) if ref.is_file() else revision
    found = model / "snapshots" / commit
    return found if commit and found.is_dir() else None


def _commit(ref: Path) -> str:
    return read_regular_file(ref, MAX_REF_BYTES).decode(errors="replace").strip()


def is_interrupted(cache: Path, hub_id: str) -> bool:
    """Return True if a download of the model was started and did not finish."""
    return any((model_folder(cache, hub_id) / "blobs").glob("*.incomplete"))

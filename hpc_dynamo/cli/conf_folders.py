"""Folders with the files of configuration groups: `conf/`, and a folder of the user."""

from pathlib import Path

from hpc_dynamo.config.paths import expand_home
from hpc_dynamo.errors import ConfigError


def conf_dir() -> Path:
    """Return the folder `conf/`: inside an installed package, next to it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def conf_folders(config_dir: Path | None) -> tuple[Path, ...]:
    """Return the folders of configuration files, the user's first.

    `config_dir` is the user's folder, if any. Raises ConfigError if it does not exist.
    """
    if config_dir is None:
        return (conf_dir(),)
    own = Path(expand_home(str(config_dir), "--config-dir")).absolute()
    if not own.is_dir():
        hint = "a folder such as DIR with files DIR/cluster/mysite.yaml, then cluster=mysite"
        raise ConfigError(f"--config-dir {config_dir}: no such folder", hint=hint)
    return own, conf_dir()

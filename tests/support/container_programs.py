#!/usr/bin/env python3
"""Fakes of `apptainer` and `enroot`, which run the command on the host.

The fake parses the command line like the program, and passes only the variables that would reach
the container. Like Apptainer it waits for the command, forwards SIGTERM and exits with its code. It
writes its arguments to `$BOXES/NUMBER.json` and rejects unknown options.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def apptainer(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = argparse.ArgumentParser("apptainer exec")
    for flag in ("--cleanenv", "--no-eval", "--nv"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--bind", dest="mounts", action="append")
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(argv)
    assert asked.cleanenv, "the host's environment would come in"
    mark = "APPTAINERENV_"
    inside = {k.removeprefix(mark): v for k, v in os.environ.items() if k.startswith(mark)}
    return asked, inside


def enroot(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    parser = argparse.ArgumentParser("enroot start")
    parser.add_argument("--rw", action="store_true")
    parser.add_argument("--rc", required=True)
    parser.add_argument("--mount", dest="mounts", action="append")
    parser.add_argument("--env", action="append")
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args(argv)
    asked.command = ["sh", asked.rc, *asked.command]
    return asked, {name: os.environ[name] for name in asked.env}


def main() -> int:
    name, verb, argv = Path(sys.argv[0]).name, sys.argv[1], sys.argv[2:]
    read = {("apptainer", "exec"): apptainer, ("enroot", "start"): enroot}[name, verb]
    asked, inside = read(argv)
    if not Path(asked.image).is_file():
        print(f"FATAL:   could not open image {asked.image}", file=sys.stderr)
        return 255
    sources = [Path(mount.split(":")[0]) for mount in asked.mounts]
    missing = [source for source in sources if not (source.is_absolute() and source.exists())]
    assert not missing, f"nothing to mount: {missing}"
    env = {"PATH": os.defpath, "HOME": os.environ["HOME"], **inside}
    child = subprocess.Popen(asked.command, env=env)
    signal.signal(signal.SIGTERM, lambda number, _: child.send_signal(number))
    told = {"argv": sys.argv, "mounts": asked.mounts, "inside": inside, "pid": child.pid}
    file = Path(os.environ["BOXES"], f"{child.pid}.json")
    file.write_text(json.dumps(told))
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())

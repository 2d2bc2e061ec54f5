"""Fuzz all targets for a time: `python -m tests.fuzz SECONDS SEED`. Prints counts."""

import sys
import time

from tests.fuzz.mutator import Mutator
from tests.fuzz.targets import TARGETS


def fuzz(name: str, seed: int, seconds: float, inputs: int = sys.maxsize) -> int:
    """Read mutated inputs until one limit is reached; return their number.

    Raises the error of the reader, with the input as a note.
    """
    target, done = TARGETS[name], 0
    mutator = Mutator(target.seeds, seed)
    with target.opened() as read:
        end = time.monotonic() + seconds
        while done < inputs and time.monotonic() < end:
            data = mutator.next()
            try:
                read(data)
            except Exception as e:
                e.add_note(f"target {name!r}, seed {seed}, input {done}: {data[:2000]!r}")
                raise
            done += 1
    return done


def main() -> None:
    """Give each target an equal share of the time."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    for name in TARGETS:
        print(f"{name}: {fuzz(name, seed, seconds / len(TARGETS))} inputs", flush=True)


if __name__ == "__main__":
    main()

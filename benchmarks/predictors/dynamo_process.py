"""Runs Dynamo's predictors in Dynamo's own Python environment.

`python -m benchmarks.predictors.dynamo_process` reads {"name": ..., "series": [[...], ...]} from
stdin and prints a list of [predictions, seconds] as JSON.
"""

import json
import logging
import sys
import types
from pathlib import Path

from benchmarks.predictors.backtest import backtest

# Packages whose `__init__` imports all of the planner, and with it what is not there.
SKIPPED = ("planner", "planner.config", "planner.core", "planner.core.load")


def main() -> None:
    asked = json.load(sys.stdin)
    _skip()
    from dynamo.planner.config.planner_config import PlannerConfig
    from dynamo.planner.core.load.predictors import LOAD_PREDICTORS

    logging.disable(logging.WARNING)
    config = PlannerConfig.model_construct()  # all defaults
    said = []
    for values in asked["series"]:
        predictor = LOAD_PREDICTORS[asked["name"]](config)
        predictions = backtest(values, predictor.add_data_point, predictor.predict_next)
        said.append((predictions.values, predictions.seconds))
    print(json.dumps(said))


def _skip() -> None:
    """Put empty packages with the same paths in their place."""
    import dynamo

    for name in SKIPPED:
        package = types.ModuleType(f"dynamo.{name}")
        package.__path__ = [str(Path(p, *name.split("."))) for p in dynamo.__path__]
        sys.modules[f"dynamo.{name}"] = package


if __name__ == "__main__":
    main()

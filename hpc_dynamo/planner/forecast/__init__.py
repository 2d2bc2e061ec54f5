"""The load of the next interval, guessed from those before.

`contract` is what every predictor keeps; `outlook` has the table of them, by `planner.forecast`.
"""

from hpc_dynamo.planner.forecast.load_forecaster import PREDICTORS, LoadForecaster
from hpc_dynamo.planner.forecast.predictor import Predictor

__all__ = ["PREDICTORS", "LoadForecaster", "Predictor"]

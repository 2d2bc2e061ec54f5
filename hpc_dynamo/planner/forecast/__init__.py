"""Prediction of the next interval's load. LoadForecaster has the table of predictors."""

from hpc_dynamo.planner.forecast.load_forecaster import PREDICTORS, LoadForecaster
from hpc_dynamo.planner.forecast.predictor import Predictor

__all__ = ["PREDICTORS", "LoadForecaster", "Predictor"]

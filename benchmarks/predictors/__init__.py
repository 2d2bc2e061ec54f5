"""The planner's predictors and NVIDIA Dynamo's, on a production trace and a synthetic load.

    python -m benchmarks.predictors                    minutes: with NVIDIA Dynamo's predictors
    python -m benchmarks.predictors --quick            seconds: without those that refit a model
    python -m benchmarks.predictors --sides hpc-dynamo

A workload becomes series with one value per interval of 30, 60 and 180 s: requests per second, and
mean tokens of prompts and responses. Each predictor predicts a value before it is added; the first
five do not count.

- Error %: mean absolute error in percent of the mean value. Lengths are weighted by requests.
- Bias %: mean of prediction minus value, in percent of the mean value.
- Score: error divided by that of the last value, geometric mean over all series. Lower is better.
- µs: mean time to add a value and to predict the next one.

Dynamo's predictors are the classes of `dynamo.planner.core.load.predictors` with their defaults, in
their own environment (installed once into hpc-dynamo's cache). The `__init__` of their package is
skipped, because it needs wheels that are not always available.
"""

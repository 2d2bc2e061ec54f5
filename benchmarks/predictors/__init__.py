"""The planner's predictors on a production trace and on a load that swings, one step ahead.

    python -m benchmarks.predictors                    minutes: beside NVIDIA Dynamo's predictors
    python -m benchmarks.predictors --quick            seconds: without those that fit a model anew
    python -m benchmarks.predictors --sides hpc-dynamo

A workload becomes series of one value for each interval of 30, 60 and 180 s: requests a second,
and the mean tokens of prompts and of answers. Every predictor is shown a series value by value,
and asked for the next before it sees it; the first five are not counted. Error %: the mean
absolute error in percent of the mean value (weighted: MAPE with each interval weighted by its
value). Of lengths, an interval counts by its requests. Bias %: the mean of prediction less value,
likewise. Score: errors by those of the last value, geometric mean over all series; below 1 is
better. µs: to take in a value and to predict the next, mean.

Dynamo's are the classes of `dynamo.planner.core.load.predictors` with their defaults, unchanged,
in the peer's own environment (installed once into hpc-dynamo's cache) and the same run. Their
package's `__init__` wants wheels that not every index has, and is left out.
"""

"""Checks of the configuration. Each raises ConfigError with field, value and remedy.

Bounds and choices of single fields are metadata of the schema, checked by `bounds`. The other
modules check what depends on several fields or on the form of a text.
"""

from hpc_dynamo.config.validation.models import errors_of_model, require_single_model
from hpc_dynamo.config.validation.slurm import walltime_minutes
from hpc_dynamo.config.validation.text import check_folder
from hpc_dynamo.config.validation.validate import validate

__all__ = [
    "check_folder",
    "errors_of_model",
    "require_single_model",
    "validate",
    "walltime_minutes",
]

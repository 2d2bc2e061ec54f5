"""Model files on disk: where they are, and whether an engine can load them.

A model is named by a folder, a GGUF file or a hub id (`org/name`). `source` resolves a name, also
through the Hugging Face cache (`hub`), and `check` reports what is missing before a job is
submitted. Nothing here uses the network.
"""

from hpc_dynamo.model_files.check import SIMULATOR, Problem, Severity, check_model, check_models
from hpc_dynamo.model_files.source import Origin, Source, model_source, tokenizer_source

__all__ = [
    "SIMULATOR",
    "Origin",
    "Problem",
    "Severity",
    "Source",
    "check_model",
    "check_models",
    "model_source",
    "tokenizer_source",
]

"""What a dead engine's last words mean: signs in its log, and what to try.

Source of the signs: PyTorch (TCPStore.cpp, ProcessGroupNCCL.cpp), huggingface_hub
(utils/_validators.py, file_download.py), transformers (utils/hub.py), and each engine's own source,
where its adapter has them.
"""

from collections.abc import Mapping

PORT_TAKEN = "another process took the port; a restart picks a new one"
NO_MODEL = "model.path must be a folder that this node sees, or a hub id"
NO_HUB = "model.path as a folder on a shared disk: nodes reach no hub"
LINK = "engine.env.NCCL_DEBUG=INFO tells which link, engine.env.NCCL_SOCKET_IFNAME chooses it"
OLD_GPU = "another engine.args.dtype or quantization of the model: this GPU cannot compute in it"

# Of all engines that stand on PyTorch and Hugging Face. An engine's own come first.
COMMON = {
    "address already in use": PORT_TAKEN,
    "EADDRINUSE": PORT_TAKEN,
    "No module named 'nixl": "pip install nixl in the engine's environment",
    "Repo id must be": NO_MODEL,
    "is not a valid model identifier": NO_MODEL,
    "does not appear to have a file named": NO_MODEL,
    "We couldn't connect to": NO_HUB,
    "cannot find the requested files": NO_HUB,
    "LocalEntryNotFoundError": NO_HUB,
    "Watchdog caught collective operation timeout": LINK,
    "NCCL error": LINK,
    "waiting for clients": "a further part of the worker did not come: its log says why",
    "no kernel image is available": "a build of the engine for this GPU's architecture",
}


def advised(failures: Mapping[str, str], log_tail: str) -> str:
    """The hint of the first failure whose sign stands in the log, in capitals or not; empty where
    there is none."""
    said = log_tail.casefold()
    return next((hint for sign, hint in failures.items() if sign.casefold() in said), "")

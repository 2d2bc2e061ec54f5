"""Known failures of engines: signs in the log, and what to try.

Source of the signs: PyTorch (TCPStore.cpp, ProcessGroupNCCL.cpp), huggingface_hub
(utils/_validators.py, file_download.py), transformers (utils/hub.py). Signs of one engine are in
its adapter.
"""

from collections.abc import Mapping

PORT_TAKEN = "another process took the port; a restart picks a new one"
NO_MODEL = "model.path must be a folder that this node sees, or a hub id (a private one needs "
NO_MODEL += "`hf auth login` on the login node)"
NO_HUB = "`hf download ORG/NAME` on a machine with internet access, into a cache that the nodes "
NO_HUB += "see (HF_HOME), or model.path=FOLDER on a shared disk"
GATED = "accept the model's terms on its page at huggingface.co, then `hf auth login` and "
GATED += "`hf download ORG/NAME` on the login node"
REVISION = "engine.args.revision must be a branch, a tag or a commit of the model's repository"
DAMAGED = "a file of the weights is damaged or a Git LFS pointer: `hf download` or `git lfs pull`"
LINK = "engine.env.NCCL_DEBUG=INFO shows the failed link; engine.env.NCCL_SOCKET_IFNAME selects one"
OLD_GPU = (
    "another engine.args.dtype, or another quantization of the model: this GPU cannot compute "
)
OLD_GPU += "in it"

# Of all engines that use PyTorch and Hugging Face. Those of an engine come first.
COMMON = {
    "address already in use": PORT_TAKEN,
    "EADDRINUSE": PORT_TAKEN,
    "No module named 'nixl": "pip install nixl in the engine's environment",
    "gated repo": GATED,
    "Revision Not Found": REVISION,
    "is not a valid git identifier": REVISION,
    "outgoing traffic has been disabled": NO_HUB,
    "offline mode is enabled": NO_HUB,
    "LocalEntryNotFoundError": NO_HUB,
    "Repository Not Found": NO_MODEL,
    "Repo id must be": NO_MODEL,
    "is not a valid model identifier": NO_MODEL,
    "does not appear to have a file named": NO_MODEL,
    "couldn't connect to": NO_HUB,
    "cannot find the requested files": NO_HUB,
    "Error while deserializing header": DAMAGED,
    "Unable to load weights from pytorch checkpoint": DAMAGED,
    "Watchdog caught collective operation timeout": LINK,
    "NCCL error": LINK,
    "waiting for clients": "another shard of the worker did not connect: see its log",
    "no kernel image is available": "a build of the engine for this GPU's architecture",
}


def find_hint(failures: Mapping[str, str], log_tail: str) -> str:
    """Return the hint of the first failure whose sign is in the log, ignoring case; empty if none
    is."""
    text = log_tail.casefold()
    return next((hint for sign, hint in failures.items() if sign.casefold() in text), "")

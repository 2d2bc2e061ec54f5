"""What a dead engine's last words mean: signs in its log, and what to try.

Source of the signs: PyTorch (TCPStore.cpp, ProcessGroupNCCL.cpp), huggingface_hub
(utils/_validators.py, file_download.py), transformers (utils/hub.py), and each engine's own source,
where its adapter has them.
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
LINK = "engine.env.NCCL_DEBUG=INFO tells which link, engine.env.NCCL_SOCKET_IFNAME chooses it"
OLD_GPU = "another engine.args.dtype or quantization of the model: this GPU cannot compute in it"

# Of all engines that stand on PyTorch and Hugging Face. An engine's own come first.
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
    "We couldn't connect to": NO_HUB,
    "cannot find the requested files": NO_HUB,
    "Error while deserializing header": DAMAGED,
    "Unable to load weights from pytorch checkpoint": DAMAGED,
    "Watchdog caught collective operation timeout": LINK,
    "NCCL error": LINK,
    "waiting for clients": "a further part of the worker did not come: its log says why",
    "no kernel image is available": "a build of the engine for this GPU's architecture",
}


def find_hint(failures: Mapping[str, str], log_tail: str) -> str:
    """The hint of the first failure whose sign stands in the log, in capitals or not; empty where
    there is none."""
    said = log_tail.casefold()
    return next((hint for sign, hint in failures.items() if sign.casefold() in said), "")

"""vLLM's `kv_transfer_params`: how a request says which rank has, or wants, its prompt's blocks."""

import msgspec

from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.sequence import Source


class TransferParams(msgspec.Struct):
    """Both ways. Source: vLLM's NixlConnector."""

    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    remote_host: str | None = None
    remote_port: int | None = None
    remote_block_ids: list[list[int] | int] | None = None
    remote_prefill_cached_tokens: int | None = None
    prompt_token_ids: list[int] | None = None  # spares a decode rank the tokenizing

    def source(self) -> Source | None:
        """Where to pull from. Raises Refused where something is missing."""
        if not self.do_remote_prefill:
            return None
        names = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
        missing = [n for n in (*names, "remote_block_ids") if getattr(self, n) is None]
        if missing:
            raise Refused(f"kv_transfer_params lacks {', '.join(missing)}")
        blocks = list[int]()
        for group in self.remote_block_ids or ():
            blocks += group if isinstance(group, list) else [group]
        engine, request, host = self.remote_engine_id, self.remote_request_id, self.remote_host
        return Source(str(engine), str(request), str(host), self.remote_port or 0, tuple(blocks))

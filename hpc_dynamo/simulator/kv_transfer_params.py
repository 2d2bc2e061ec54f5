"""vLLM's `kv_transfer_params`: which rank has, or wants, the KV blocks of a prompt."""

import msgspec

from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.sequence import RemoteBlocks


class KvTransferParams(msgspec.Struct):
    """Field of requests and responses, as in vLLM's NixlConnector.

    A prefill request has `do_remote_decode`. Its response, which is also part of the decode
    request, has `do_remote_prefill` and the location of the blocks.
    """

    do_remote_decode: bool = False
    do_remote_prefill: bool = False
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    remote_host: str | None = None
    remote_port: int | None = None
    remote_block_ids: list[list[int] | int] | None = None
    remote_prefill_cached_tokens: int | None = None
    prompt_token_ids: list[int] | None = None  # saves the decode rank the tokenization

    def remote_blocks(self) -> RemoteBlocks | None:
        """Return where to pull from, None for other requests. Raises RequestRejected."""
        if not self.do_remote_prefill:
            return None
        names = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
        missing = [n for n in (*names, "remote_block_ids") if getattr(self, n) is None]
        if missing:
            raise RequestRejected(f"kv_transfer_params lacks {', '.join(missing)}")
        blocks = list[int]()
        for group in self.remote_block_ids or ():
            blocks += group if isinstance(group, list) else [group]
        engine, request, host = self.remote_engine_id, self.remote_request_id, self.remote_host
        port = self.remote_port or 0
        return RemoteBlocks(str(engine), str(request), str(host), port, tuple(blocks))

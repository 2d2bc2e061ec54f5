"""An active lease and the load that it puts on its workers."""

from dataclasses import dataclass, field

from hpc_dynamo.router.interval_stats import IntervalStats
from hpc_dynamo.router.scheduling.lease import Lease
from hpc_dynamo.router.scheduling.selector import Selection
from hpc_dynamo.router.scheduling.transfer_cost import TransferCost
from hpc_dynamo.router.scheduling.worker import RoutedWorker


@dataclass(eq=False)
class ActiveLease:
    """Accounting of one lease on its workers from grant to release.

    Each event may arrive twice or not at all; the workers' counts return to 0 with `release`.
    """

    lease: Lease
    decode: RoutedWorker
    active_prefill: RoutedWorker | None  # the prefill worker until its prefill has finished
    prompt_worker: RoutedWorker  # computes the prompt: the prefill or the decode worker
    pending_tokens: int  # prompt tokens still to compute
    blocks: int  # KV blocks held on the decode worker
    transfer_cost: TransferCost  # updated with the observed times
    arrived_at: float  # time of the request at the router
    kv_source: RoutedWorker | None  # the prefill worker until the decode worker has its blocks
    phase_started_at: float = field(init=False)
    queued_tokens: int = 0  # tokens ahead on the prompt worker at the start, this prompt included
    partial_block_tokens: int = 0  # response tokens beyond whole blocks
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    decoded_tokens: int = 0  # reported after the first token

    def __post_init__(self) -> None:
        self.phase_started_at = self.decode.clock()

    @classmethod
    def start(
        cls, lease: Lease, chosen: Selection, blocks: int, cost: TransferCost, arrived_at: float
    ) -> "ActiveLease":
        """Return the lease, counted on its workers."""
        decode, prefill, worker = chosen.decode, chosen.prefill, chosen.prompt_worker
        tokens = chosen.uncached_tokens
        active = cls(lease, decode, prefill, worker, tokens, blocks, cost, arrived_at, prefill)
        if prefill:
            prefill.pending_pulls += 1
        worker.prefill_tokens += tokens
        active.queued_tokens = worker.prefill_tokens
        decode.blocks += blocks
        worker.start_request()
        for each in chosen.workers:
            each.active += 1
            each.last_lease_id = lease.id
        return active

    def on_prefilled(self) -> bool:
        """Count the end of the prefill. Return False if there is none or it has ended."""
        if self.active_prefill is None:
            return False
        now = self.decode.clock()
        self.transfer_cost.observe_prefill(self.queued_tokens, now - self.phase_started_at)
        self.phase_started_at = now
        self._finish_prefill()
        return True

    def on_first_token(self, stats: IntervalStats) -> None:
        """Count the first token: the prompt is computed and its KV blocks have arrived."""
        self.first_token_at = self.last_token_at = self.decode.clock()
        stats.current.ttft_s.add(self.first_token_at - self.arrived_at)
        if self.prompt_worker is not self.decode and self.active_prefill is None:
            self.transfer_cost.observe_transfer(self.first_token_at - self.phase_started_at)
        self._clear_pending_tokens()
        self._release_kv_source()

    def on_progress(self, tokens: int, block_tokens: int) -> None:
        """Count more response tokens and the KV blocks that they fill."""
        more, self.partial_block_tokens = divmod(self.partial_block_tokens + tokens, block_tokens)
        self.blocks += more
        self.decode.blocks += more
        self.last_token_at = self.decode.clock()
        self.decoded_tokens += tokens

    def release(self, stats: IntervalStats) -> None:
        """Remove all remaining load from the workers. Must be called exactly once."""
        decoded, first_at = self.decoded_tokens, self.first_token_at
        itl_s = (self.last_token_at - first_at) / decoded if decoded and first_at else 0.0
        stats.add_response(decoded + bool(first_at), itl_s)
        self._finish_prefill()
        self._clear_pending_tokens()
        self.decode.blocks -= self.blocks
        self.decode.finish_request()
        self.decode.active -= 1
        self.decode.served += 1
        self._release_kv_source()
        self.decode.update_idle()

    def _finish_prefill(self) -> None:
        if self.active_prefill:
            self._clear_pending_tokens()
            self.active_prefill.finish_request()
            self.active_prefill.active -= 1
            self.active_prefill.served += 1
            self.active_prefill.update_idle()
            self.active_prefill = None
            self.decode.start_request()

    def _release_kv_source(self) -> None:
        if self.kv_source:
            self.kv_source.pending_pulls -= 1
            self.kv_source.update_idle()
            self.kv_source = None

    def _clear_pending_tokens(self) -> None:
        self.prompt_worker.prefill_tokens -= self.pending_tokens
        self.pending_tokens = 0

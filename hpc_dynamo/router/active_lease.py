"""An active lease and the load that it puts on its targets."""

from dataclasses import dataclass, field

from hpc_dynamo.router.interval_stats import IntervalStats
from hpc_dynamo.router.scheduling.lease import Lease
from hpc_dynamo.router.scheduling.selector import Selection
from hpc_dynamo.router.scheduling.transfer_cost import TransferCost
from hpc_dynamo.router.scheduling.worker import RoutedWorker, RoutingTarget


@dataclass(eq=False)
class ActiveLease:
    """Accounting of one lease on its targets from grant to release.

    Each event may arrive twice or not at all; the targets' counts return to 0 with `release`.
    """

    lease: Lease
    decode: RoutingTarget
    active_prefill: RoutingTarget | None  # the prefill target until its prefill has finished
    prompt_target: RoutingTarget  # computes the prompt: the prefill or the decode target
    pending_tokens: int  # prompt tokens still to compute
    blocks: int  # KV blocks held on the decode target
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
        self.phase_started_at = self.decode.worker.clock()

    @classmethod
    def start(
        cls, lease: Lease, chosen: Selection, blocks: int, cost: TransferCost, arrived_at: float
    ) -> "ActiveLease":
        """Return the lease, counted on its targets."""
        decode, prefill, target = chosen.decode, chosen.prefill, chosen.prompt_target
        tokens, source = chosen.uncached_tokens, prefill.worker if prefill else None
        active = cls(lease, decode, prefill, target, tokens, blocks, cost, arrived_at, source)
        if source:
            source.pending_pulls += 1
        target.add_load(prefill_tokens=tokens)
        active.queued_tokens = target.prefill_tokens
        decode.add_load(blocks=blocks)
        target.worker.start_request()
        for each in chosen.targets:
            each.add_load(active=1)
            each.last_lease_id = lease.id
        return active

    def uses(self, worker: RoutedWorker) -> bool:
        """Return True if the worker still has work for this lease."""
        prefill = self.active_prefill
        return self.decode.worker is worker or (prefill is not None and prefill.worker is worker)

    def on_prefilled(self) -> bool:
        """Count the end of the prefill. Return False if there is none or it has ended."""
        if self.active_prefill is None:
            return False
        now = self.decode.worker.clock()
        self.transfer_cost.observe_prefill(self.queued_tokens, now - self.phase_started_at)
        self.phase_started_at = now
        self._finish_prefill()
        return True

    def on_first_token(self, stats: IntervalStats) -> None:
        """Count the first token: the prompt is computed and its KV blocks have arrived."""
        self.first_token_at = self.last_token_at = self.decode.worker.clock()
        stats.current.ttft_s.add(self.first_token_at - self.arrived_at)
        if self.prompt_target is not self.decode and self.active_prefill is None:
            self.transfer_cost.observe_transfer(self.first_token_at - self.phase_started_at)
        self._clear_pending_tokens()
        self._release_kv_source()

    def on_progress(self, tokens: int, block_tokens: int) -> None:
        """Count more response tokens and the KV blocks that they fill."""
        more, self.partial_block_tokens = divmod(self.partial_block_tokens + tokens, block_tokens)
        self.blocks += more
        self.decode.add_load(blocks=more)
        self.last_token_at = self.decode.worker.clock()
        self.decoded_tokens += tokens

    def release(self, stats: IntervalStats) -> None:
        """Remove all remaining load from the targets. Must be called exactly once."""
        decoded, first_at = self.decoded_tokens, self.first_token_at
        itl_s = (self.last_token_at - first_at) / decoded if decoded and first_at else 0.0
        stats.add_response(decoded + bool(first_at), itl_s)
        self._finish_prefill()
        self._clear_pending_tokens()
        self.decode.add_load(active=-1, blocks=-self.blocks)
        self.decode.worker.finish_request()
        self._release_kv_source()
        self.decode.worker.update_idle()

    def _finish_prefill(self) -> None:
        if self.active_prefill:
            self._clear_pending_tokens()
            self.active_prefill.add_load(active=-1)
            self.active_prefill.worker.finish_request()
            self.active_prefill.worker.update_idle()
            self.active_prefill = None
            self.decode.worker.start_request()

    def _release_kv_source(self) -> None:
        if self.kv_source:
            self.kv_source.pending_pulls -= 1
            self.kv_source.update_idle()
            self.kv_source = None

    def _clear_pending_tokens(self) -> None:
        self.prompt_target.add_load(prefill_tokens=-self.pending_tokens)
        self.pending_tokens = 0

"""Role changes of SGLang without a restart: `--enable-pd-role-switch` and POST /pd_role_switch.

Contract of SGLang 0.5.23 (srt/disaggregation/role_switch.py, srt/arg_groups/
pd_disaggregation_hook.py, tokenizer_control_mixin.py):

- The transfer backend must support it: mooncake and mori do, NIXL does not. NIXL is the default of
  hpc_dynamo, so a role change restarts the engine unless another backend is set.
- Refused at the start with expert or pipeline parallelism, decode context parallelism, MoE
  all-to-all backends and speculative decoding.
- The instance must be idle: no running, waiting, bootstrapping or transferring request. The caller
  drains it and sends one switch at a time.
- Every instance then runs a bootstrap server, which stays through all changes. So each needs its
  own --disaggregation-bootstrap-port.
- The prefix cache is dropped; weights and KV pool stay. A worker that was started as a decode
  worker has no prefix cache as a prefill worker either, unless it was started with
  --disaggregation-decode-enable-radix-cache.
- prefill to decode: the CUDA graphs are captured then, if the memory that they needed on a decode
  worker (`decode_cuda_graph_memory_gb`, required) is free.
- The answer has `success`, `message` and `safe_to_restore`: the instance still serves its old role.
  If the change fails half-way, the instance must be restarted.
"""

from hpc_dynamo.config import Config, Role
from hpc_dynamo.config.resolve import role_options_differ
from hpc_dynamo.engines.adapter import roles_can_change
from hpc_dynamo.engines.options import user_options
from hpc_dynamo.engines.pd_protocol import Body, field_value

OPTION = "enable-pd-role-switch"
SWITCHING_BACKENDS = ("mooncake", "mori")
UNSUPPORTED = ("ep-size", "expert-parallel-size", "ep", "dcp-size", "speculative-algorithm")
MOE_BACKEND = "moe-a2a-backend"
# Of a decode worker, in /server_info.
GRAPH_SIZES, GRAPH_MEMORY = "decode_cuda_graph_bs", "decode_cuda_graph_memory_gb"


class SglangRoleSwitch:
    """Implements engines.adapter.RoleSwitch."""

    path = "/pd_role_switch"
    busy = "instance is not idle"
    peer_path = "/server_info"

    def body(self, role: Role, peer: Body) -> Body:
        """See RoleSwitch. A new decode worker captures the CUDA graphs that its peer has."""
        if role is not Role.decode:
            return {"new_role": str(role)}
        states = _states(peer)
        sizes = next((state[GRAPH_SIZES] for state in states if state.get(GRAPH_SIZES)), None)
        memory_gb = max((state.get(GRAPH_MEMORY) or 0.0 for state in states), default=0.0)
        body: Body = {"new_role": str(role), GRAPH_MEMORY: memory_gb}
        return body | ({GRAPH_SIZES: sizes} if sizes else {})


def _states(server_info: Body) -> list[Body]:
    """Return the state of each data-parallel rank by an answer of /server_info."""
    found = field_value(server_info.get("internal_states"))
    return [state for state in found if isinstance(state, dict)] if isinstance(found, list) else []


def switches_roles(config: Config) -> bool:
    """Return True if workers are started so that they can change their role.

    `engine.args.enable-pd-role-switch` overrides what is known of the transfer backends.
    """
    planned = roles_can_change(config) and not config.planner.restart_on_role_change
    if not planned or role_options_differ(config):
        return False
    wanted = user_options(config.engine).get(OPTION)
    return _is_supported(config) if wanted is None else bool(wanted)


def has_bootstrap_server(config: Config, role: Role) -> bool:
    """Return True if a worker of this role runs a bootstrap server."""
    both = switches_roles(config) or bool(user_options(config.engine).get(OPTION))
    return role is Role.prefill or (role is Role.decode and both)


def _is_supported(config: Config) -> bool:
    options = user_options(config.engine)
    plain = not any(options.get(name) not in (None, 1, "1", "") for name in UNSUPPORTED)
    plain = plain and options.get(MOE_BACKEND) in (None, "none")
    stages = any(pool.pipeline_parallel > 1 for _, pool in config.topology.pools)
    backend = options.get("disaggregation-transfer-backend")
    return plain and not stages and backend in SWITCHING_BACKENDS

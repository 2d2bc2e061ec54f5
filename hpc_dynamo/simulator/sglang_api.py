"""SGLang's own endpoints: /server_info, /abort_request and /pd_role_switch.

Source: SGLang 0.5.23, srt/entrypoints/http_server.py and srt/disaggregation/role_switch.py. A rank
changes its role only if it is idle, and drops its prefix cache then. Unlike SGLang with NIXL, the
simulator can change its role.
"""

from typing import TypeVar

import msgspec

from hpc_dynamo.http import HttpRequest, ResponseWriter
from hpc_dynamo.simulator.api_error import RequestRejected, send_json
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sglang_bootstrap import SglangRank
from hpc_dynamo.simulator.sglang_requests import SglangRequests

T = TypeVar("T")
ROUTES = {"/abort_request": "POST", "/pd_role_switch": "POST", "/server_info": "GET"}
ROLES = ("prefill", "decode")
DISABLED = "--enable-pd-role-switch is not set on this server"
NOT_IDLE = "instance is not idle; drain all requests before switching"


class AbortRequest(msgspec.Struct):
    """Body of /abort_request."""

    rid: str = ""


class RoleSwitchRequest(msgspec.Struct):
    """Body of /pd_role_switch."""

    new_role: str = ""


class SglangApi:
    """Handles requests to a rank. With `switches_roles` it can change its role."""

    def __init__(
        self, scheduler: Scheduler, requests: SglangRequests, switches_roles: bool
    ) -> None:
        self.requests = requests
        self._scheduler, self._switches_roles = scheduler, switches_roles

    def handle(self, request: HttpRequest, reply: ResponseWriter, rank: SglangRank | None) -> None:
        """Answer a request to one of ROUTES. `rank` is None if it is aggregated."""
        match request.path:
            case "/abort_request":
                self.requests.abort(_read(request, AbortRequest).rid)
                reply.send(200, b"")
            case "/pd_role_switch":
                self._switch_role(_read(request, RoleSwitchRequest).new_role, reply, rank)
            case _ if rank:
                info = {"disaggregation_mode": rank.role, "internal_states": [{}]}
                send_json(reply, info | {"disaggregation_bootstrap_port": rank.port})
            case _:
                send_json(reply, {"disaggregation_mode": "null"})

    def _switch_role(self, new: str, reply: ResponseWriter, rank: SglangRank | None) -> None:
        old = rank.role if rank else "null"
        refusal = self._refusal(new, old)
        if rank and not refusal:
            rank.role = new
        answer = {"success": not refusal, "message": refusal or "ok", "old_role": old}
        answer |= {"new_role": new, "safe_to_restore": bool(refusal)}
        send_json(reply, answer, 400 if refusal else 200)

    def _refusal(self, new: str, old: str) -> str:
        """Return why the role cannot change now. Otherwise the prefix cache is empty afterwards."""
        if not self._switches_roles:
            return DISABLED
        if new not in ROLES:
            return f"invalid new_role={new!r}"
        if old not in ROLES:
            return "instance is not running in PD disaggregation mode"
        return "" if new == old or self._scheduler.reset_cache() else NOT_IDLE


def _read(request: HttpRequest, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(request.body, type=type_)
    except msgspec.DecodeError as e:
        raise RequestRejected(str(e)) from e

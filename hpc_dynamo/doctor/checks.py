"""One pure function a check: the facts of a node, and what is wrong with them if anything."""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from hpc_dynamo.doctor.records import Finding, FindingLevel, NodeFacts
from hpc_dynamo.model_files import Severity

GIB, MIB = 1 << 30, 1 << 20
SHM_BYTES, TMP_BYTES = 64 * MIB, 64 * MIB  # below, engines do not start; below a GiB they may not
NOFILE, NOFILE_GOOD = 1024, 8192  # a stream through the endpoint takes two
MAX_CLOCK_ERROR_S = 5.0
SLOW_READ_GB_S = 0.1  # 70 GB take twelve minutes
NIXL = "pip install --no-deps nixl-cu12 numpy in the engine's environment (or nixl-cu13)"

Check = Callable[[NodeFacts], Finding | None]


def run_checks(facts: NodeFacts, checks: Iterable[Check]) -> tuple[Finding, ...]:
    """What these checks find on the node."""
    found = (check(facts) for check in checks)
    return tuple(replace(finding, host=facts.host) for finding in found if finding)


def fault(check: str, what: str, why: str, fix: str) -> Finding:
    return Finding(check=check, level=FindingLevel.fault, what=what, why=why, fix=fix)


def warning(check: str, what: str, why: str, fix: str) -> Finding:
    return Finding(check=check, level=FindingLevel.warning, what=what, why=why, fix=fix)


def check_model(facts: NodeFacts) -> Finding | None:
    problems = facts.model_problems
    faults = [p for p in problems if p.severity is Severity.error]
    found = faults or [p for p in problems if p.severity is Severity.warning]
    if not found:
        return None
    make = fault if faults else warning
    what, fix = "; ".join(p.what for p in found), "; ".join(p.fix for p in found)
    return make("model", what, "no engine on this node can load it", fix)


def check_shm(facts: NodeFacts) -> Finding | None:
    return _space("/dev/shm", facts.shm_free, SHM_BYTES, "NCCL, UCX and engines share memory in it")


def check_tmp(facts: NodeFacts) -> Finding | None:
    return _space("/tmp", facts.tmp_free, TMP_BYTES, "engines and MPI keep sockets there")


def _space(folder: str, free: int, least: int, why: str) -> Finding | None:
    if free >= GIB:
        return None
    make = fault if free < least else warning
    what = f"{folder} has {free / MIB:.0f} MiB free"
    fix = f"remove what dead jobs left in {folder}, or a larger one (containers: --shm-size)"
    return make(folder, what, why, fix)


def check_open_files(facts: NodeFacts) -> Finding | None:
    if facts.nofile < 0 or facts.nofile >= NOFILE_GOOD:
        return None
    make = fault if facts.nofile < NOFILE else warning
    why = "each stream, engine and link takes some, then connections are refused"
    fix = "ulimit -n 65536 before the job"
    fix += "" if facts.local else ", or in cluster.slurm.setup"
    return make("ulimits", f"at most {facts.nofile} open files (ulimit -n)", why, fix)


def check_locked_memory(facts: NodeFacts) -> Finding | None:
    if not facts.rdma_devices or facts.memlock < 0 or facts.memlock >= GIB:
        return None
    what = f"at most {facts.memlock / MIB:.0f} MiB of locked memory (ulimit -l)"
    why = f"RDMA over {', '.join(facts.rdma_devices)} cannot register the KV cache"
    fix = "ulimit -l unlimited; under Slurm LimitMEMLOCK=infinity in slurmd's unit (your admins)"
    return fault("ulimits", what, why, fix)


def check_ports(facts: NodeFacts) -> Finding | None:
    if not facts.port_error:
        return None
    why = "engines, endpoint and control plane listen there"
    fix = "cluster.interface=… with an address of this node; sysctl net.ipv4.ip_local_port_range"
    return fault("ports", f"no port can be opened: {facts.port_error}", why, fix)


def check_clock(ahead_s: float) -> Finding | None:
    if abs(ahead_s) < MAX_CLOCK_ERROR_S:
        return None
    way = "ahead" if ahead_s > 0 else "behind"
    what = f"its clock is {abs(ahead_s):.1f} s {way}"
    why = "the end of the walltime, hand-overs and certificates go by it"
    return fault("clock", what, why, "chronyc tracking, timedatectl; your admins")


def check_gpu_count(facts: NodeFacts) -> Finding | None:
    have = len(facts.gpus_visible)
    if have >= facts.gpus_wanted:
        return None
    what = f"{have} GPUs are visible ({','.join(facts.gpus_visible) or 'none'})"
    why = f"the layout needs {facts.gpus_wanted} GPUs on this node"
    fix = "cluster.gpus_per_node as Slurm gives them, cluster.slurm.gpu_option=gres"
    if facts.local:
        fewer = f"cluster.gpus_per_node={have} and fewer workers" if have else "engine.device=cpu"
        fix = f"{fewer}, or a machine with more GPUs (`nvidia-smi -L` lists them)"
    return fault("GPUs", f"{what} of {facts.gpus_wanted}", why, fix)


def check_gpu_binding(facts: NodeFacts) -> Finding | None:
    """CUDA_VISIBLE_DEVICES against what the driver lists."""
    if facts.gpus_listed is None:
        return None
    count = len(facts.gpus_listed)
    wrong = [g for g in facts.gpus_visible if g.isdigit() and int(g) >= count]
    if not wrong:
        return None
    what = f"CUDA_VISIBLE_DEVICES names GPU {','.join(wrong)}, nvidia-smi lists {count}"
    fix = "no CUDA_VISIBLE_DEVICES of your own in the job; gres.conf and cgroup.conf (your admins)"
    return fault("GPUs", what, "engines bound to it find no GPU", fix)


def check_read_speed(facts: NodeFacts) -> Finding | None:
    if facts.model_gb_s is None or facts.model_gb_s >= SLOW_READ_GB_S:
        return None
    what = f"model.path is read at {facts.model_gb_s * 1000:.0f} MB/s"
    fix = "a faster file system, wider striping (lfs setstripe -c -1), or a copy on a local disk"
    return warning("model", what, "loading takes minutes a worker", fix)


def check_run_folder(facts: NodeFacts) -> Finding | None:
    if not facts.run_error:
        return None
    why = "results, logs and addresses are written there by every node"
    return fault("run folder", facts.run_error, why, "runs_dir=… on a disk that all nodes share")


def check_engine(facts: NodeFacts) -> Finding | None:
    if not facts.engine_error:
        return None
    fix = "engine.python=… of the environment that has the engine, on a shared disk; "
    fix += "for containers engine.container.image"
    fix += "" if facts.local else ", and cluster.slurm.setup=['module load …']"
    return fault("engine", facts.engine_error, "no worker can start on this node", fix)


def check_nixl(facts: NodeFacts) -> Finding | None:
    if not facts.nixl_error:
        return None
    if facts.contained:
        why = "links are measured outside of the engine's image, and so were not"
        return warning("NIXL", facts.nixl_error, why, "pip install 'hpc-dynamo[nixl]'")
    return fault("NIXL", facts.nixl_error, "no KV cache can move to or from this node", NIXL)


def check_mpi(facts: NodeFacts) -> Finding | None:
    if not facts.mpi_error:
        return None
    why = "with cluster.bootstrap.method=mpi no job starts"
    hint = "srun --mpi=list; pip install 'hpc-dynamo[mpi]'; or cluster.bootstrap.method=tcp"
    return fault("MPI", facts.mpi_error, why, hint)


PREFLIGHT_CHECKS: tuple[Check, ...] = (
    check_model,
    check_ports,
    check_shm,
    check_open_files,
    check_gpu_count,
)
ALL_CHECKS: tuple[Check, ...] = (
    *PREFLIGHT_CHECKS,
    *(check_tmp, check_locked_memory, check_gpu_binding, check_read_speed),
    *(check_run_folder, check_engine, check_nixl, check_mpi),
)

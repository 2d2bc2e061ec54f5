"""Pure functions that check the facts of one node."""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from hpc_dynamo.doctor.records import Finding, FindingLevel, NodeFacts
from hpc_dynamo.model_files import Severity

GIB, MIB = 1 << 30, 1 << 20
SHM_BYTES, TMP_BYTES = 64 * MIB, 64 * MIB  # engines do not start with less
NOFILE, NOFILE_GOOD = 1024, 8192  # a stream through the endpoint needs two files
MAX_CLOCK_ERROR_S = 5.0
SLOW_READ_GB_S = 0.1  # 70 GB take twelve minutes
NIXL = "pip install --no-deps nixl-cu12 numpy in the engine's environment (or nixl-cu13)"

Check = Callable[[NodeFacts], Finding | None]


def run_checks(facts: NodeFacts, checks: Iterable[Check]) -> tuple[Finding, ...]:
    """Return the findings of these checks on the node."""
    found = (check(facts) for check in checks)
    return tuple(replace(finding, host=facts.host) for finding in found if finding)


def fault(check: str, what: str, why: str, fix: str) -> Finding:
    return Finding(check=check, level=FindingLevel.fault, what=what, why=why, fix=fix)


def warning(check: str, what: str, why: str, fix: str) -> Finding:
    return Finding(check=check, level=FindingLevel.warning, what=what, why=why, fix=fix)


def _fault_if(error: str, check: str, why: str, fix: str, prefix: str = "") -> Finding | None:
    return fault(check, f"{prefix}{error}", why, fix) if error else None


def check_model(facts: NodeFacts) -> Finding | None:
    """Report defects of the model's files. Warnings are omitted if there are errors."""
    problems = facts.model_problems
    faults = [p for p in problems if p.severity is Severity.error]
    found = faults or [p for p in problems if p.severity is Severity.warning]
    if not found:
        return None
    make = fault if faults else warning
    what, fix = "; ".join(p.what for p in found), "; ".join(p.fix for p in found)
    return make("model", what, "no engine on this node can load it", fix)


def check_shm(facts: NodeFacts) -> Finding | None:
    why = "NCCL, UCX and engines use it as shared memory"
    return _check_space("/dev/shm", facts.shm_free, SHM_BYTES, why)


def check_tmp(facts: NodeFacts) -> Finding | None:
    return _check_space("/tmp", facts.tmp_free, TMP_BYTES, "engines and MPI create sockets there")


def _check_space(folder: str, free: int, least: int, why: str) -> Finding | None:
    if free >= GIB:
        return None
    make = fault if free < least else warning
    what = f"{folder} has {free / MIB:.0f} MiB free"
    fix = f"remove files of dead jobs from {folder}, or enlarge it (containers: --shm-size)"
    return make(folder, what, why, fix)


def check_open_files(facts: NodeFacts) -> Finding | None:
    """Report a low limit of open files."""
    if facts.nofile < 0 or facts.nofile >= NOFILE_GOOD:
        return None
    make = fault if facts.nofile < NOFILE else warning
    why = "each stream, engine and link needs some; without them connections are refused"
    fix = "ulimit -n 65536 before the job"
    fix += "" if facts.local else ", or in cluster.slurm.setup"
    return make("ulimits", f"at most {facts.nofile} open files (ulimit -n)", why, fix)


def check_locked_memory(facts: NodeFacts) -> Finding | None:
    if not facts.rdma_devices or facts.memlock < 0 or facts.memlock >= GIB:
        return None
    what = f"at most {facts.memlock / MIB:.0f} MiB of locked memory (ulimit -l)"
    why = f"RDMA over {', '.join(facts.rdma_devices)} cannot register the KV cache"
    fix = "ulimit -l unlimited; Slurm admins: LimitMEMLOCK=infinity in the unit of slurmd"
    return fault("ulimits", what, why, fix)


def check_ports(facts: NodeFacts) -> Finding | None:
    why = "engines, endpoint and control plane listen there"
    fix = "cluster.interface=… with an address of this node; sysctl net.ipv4.ip_local_port_range"
    return _fault_if(facts.port_error, "ports", why, fix, "no port can be opened: ")


def check_clock(ahead_s: float) -> Finding | None:
    """Report a clock that differs from the head node's by MAX_CLOCK_ERROR_S or more."""
    if abs(ahead_s) < MAX_CLOCK_ERROR_S:
        return None
    direction = "ahead" if ahead_s > 0 else "behind"
    what = f"its clock is {abs(ahead_s):.1f} s {direction}"
    why = "walltime limits, job hand-overs and certificates depend on it"
    return fault("clock", what, why, "chronyc tracking, timedatectl; ask your admins")


def check_gpu_count(facts: NodeFacts) -> Finding | None:
    """Report fewer visible GPUs than the layout needs."""
    have = len(facts.gpus_visible)
    if have >= facts.gpus_wanted:
        return None
    what = f"{have} GPUs are visible ({','.join(facts.gpus_visible) or 'none'})"
    why = f"the layout needs {facts.gpus_wanted} GPUs on this node"
    fix = "cluster.gpus_per_node as Slurm allocates them, cluster.slurm.gpu_option=gres"
    if facts.local:
        fewer = f"cluster.gpus_per_node={have} and fewer workers" if have else "engine.device=cpu"
        fix = f"{fewer}, or a machine with more GPUs (`nvidia-smi -L` lists them)"
    return fault("GPUs", f"{what} of {facts.gpus_wanted}", why, fix)


def check_gpu_binding(facts: NodeFacts) -> Finding | None:
    """Compare CUDA_VISIBLE_DEVICES with the GPUs that the driver lists."""
    if facts.gpus_listed is None:
        return None
    count = len(facts.gpus_listed)
    wrong = [g for g in facts.gpus_visible if g.isdigit() and int(g) >= count]
    if not wrong:
        return None
    what = f"CUDA_VISIBLE_DEVICES names GPU {','.join(wrong)}, nvidia-smi lists {count}"
    fix = "unset CUDA_VISIBLE_DEVICES in the job; gres.conf and cgroup.conf (admins)"
    return fault("GPUs", what, "engines bound to it find no GPU", fix)


def check_read_speed(facts: NodeFacts) -> Finding | None:
    if facts.model_gb_s is None or facts.model_gb_s >= SLOW_READ_GB_S:
        return None
    what = f"model.path is read at {facts.model_gb_s * 1000:.0f} MB/s"
    fix = "a faster file system, wider striping (lfs setstripe -c -1), or a copy on a local disk"
    return warning("model", what, "each worker needs minutes to load it", fix)


def check_run_folder(facts: NodeFacts) -> Finding | None:
    why = "every node writes results, logs and addresses there"
    return _fault_if(
        facts.run_error, "run folder", why, "runs_dir=… on a disk that all nodes share"
    )


def check_engine(facts: NodeFacts) -> Finding | None:
    fix = "engine.python=… of the engine's environment, on a shared disk; "
    fix += "for containers engine.container.image"
    fix += "" if facts.local else ", and cluster.slurm.setup=['module load …']"
    return _fault_if(facts.engine_error, "engine", "no worker can start on this node", fix)


def check_nixl(facts: NodeFacts) -> Finding | None:
    if facts.nixl_error and facts.contained:
        why = "links are measured outside the engine's container, and therefore were not measured"
        return warning("NIXL", facts.nixl_error, why, "pip install 'hpc-dynamo[nixl]'")
    return _fault_if(facts.nixl_error, "NIXL", "no KV cache can move to or from this node", NIXL)


def check_mpi(facts: NodeFacts) -> Finding | None:
    why = "jobs exchange their addresses over TCP instead"
    fix = "srun --mpi=list; pip install 'hpc-dynamo[mpi]'; or cluster.bootstrap.method=tcp"
    return _fault_if(facts.mpi_error, "MPI", why, fix)


PREFLIGHT_CHECKS: tuple[Check, ...] = (
    *(check_model, check_ports, check_shm, check_open_files, check_gpu_count),
)
ALL_CHECKS: tuple[Check, ...] = (
    *PREFLIGHT_CHECKS,
    *(check_tmp, check_locked_memory, check_gpu_binding, check_read_speed),
    *(check_run_folder, check_engine, check_nixl, check_mpi),
)

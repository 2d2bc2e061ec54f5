"""Capacity of a run: role changes, extra jobs, job handover.

    planner_loop   once per interval: collect signals, decide, start role changes
    role_change    change of one worker's role: drain, switch, ready
    scale_out      extra jobs that the planner submits and releases
    hetero_jobs    extra jobs of other hardware, as essential as the head's own job
    extra_job      one extra job, from submission to its end
    job_handover   next job of a serving run, before the walltime ends

Protocol of an extra job. Its folder in the run folder is `extra_jobs/N` of the attempt.

    head (ExtraJob)                              agents of the extra job (tasks/join)
      writes plan.json, submits through launch/extra_jobs
      membership expects its nodes and ranks      wait for roster.json of the attempt
      ◀───────────────────────── Hello(node) ──   after their preflight checks
      ◀──────────────────────── WorkerReport ──   like any other agent
      polls the scheduler every 5 s, writes state.json
      ◀─────────────────── Preempted ──────────   Slurm ends the job soon
      drains its workers
      ── StopAgent ────────────────────────────▶  stop their engines
      ◀───────────────────── AgentStopped ─────   exit; the job ends
      cancels the job if it is still there 20 s later
"""

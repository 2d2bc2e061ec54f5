"""Entry points of Slurm tasks: `node` in the run's own job, `join` in an extra job."""

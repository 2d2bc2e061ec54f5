"""LLM serving and batch inference inside one Slurm job: see docs/architecture.md."""

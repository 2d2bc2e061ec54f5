"""LLM serving and batch inference inside one Slurm job: see docs/development/architecture.md."""

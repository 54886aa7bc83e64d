"""Stand-ins for gcloud, kubectl, xpk and Slurm, for the launchers' tests (program.py)."""

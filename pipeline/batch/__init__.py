"""Batch jobs: the scripts and manifests by which schedulers run the stages of a run file."""

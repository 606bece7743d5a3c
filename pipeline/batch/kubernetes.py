"""Owns what is written for Kubernetes: one manifest a job, and a script that applies them in turn."""

from __future__ import annotations

from typing import Any

import yaml

from ..stopping import EXIT_CODE
from .job import SUBMIT, Job, Run, with_option
from .settings import KubernetesSettings

#: Where the volume is, and relative paths begin.
FOLDER = "/data"

#: How often a task may fail, beyond those times when it was asked to stop.
TRIES = 3


def kubernetes_files(run: Run, settings: KubernetesSettings) -> dict[str, str]:
    """The manifests and the script, by their names.

    Raises:
        InputError: no image.
    """
    files = {
        f"{job.name}.yaml": f"# {run.name}, {job.name}. Written by `teachonce submit kubernetes`; {SUBMIT} applies it.\n"
        + yaml.safe_dump(manifest(run, job, settings), sort_keys=False, width=120)
        for job in run.jobs
    }
    return {**files, SUBMIT: _submit(run, list(files))}


def manifest(run: Run, job: Job, settings: KubernetesSettings) -> dict[str, Any]:
    """A Job of `batch/v1`, indexed where its work is shared out.

    Raises:
        InputError: no image.
    """
    argv = tuple(word.replace("$", "$$") for word in job.argv)  # Kubernetes expands $(NAME) in arguments
    tasks: dict[str, Any] = {"backoffLimit": TRIES}
    if job.slices is not None:
        argv = with_option(argv, "--slice", f"$(JOB_COMPLETION_INDEX)/{job.slices}")
        tasks = {
            "completionMode": "Indexed",
            "completions": job.slices,
            "parallelism": job.slices,
            "backoffLimitPerIndex": TRIES,
        }
    metadata: dict[str, Any] = {
        "name": f"{run.name}-{job.name}",
        "labels": {"app.kubernetes.io/name": "teachonce", "app.kubernetes.io/part-of": run.name},
    }
    if settings.namespace is not None:
        metadata["namespace"] = settings.namespace
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            **tasks,
            "podFailurePolicy": {
                # A node that is taken away, and a command that says that it resumes, are no failures.
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "Ignore",
                        "onExitCodes": {"containerName": "teachonce", "operator": "In", "values": [EXIT_CODE]},
                    },
                ]
            },
            "template": {"metadata": {"labels": dict(metadata["labels"])}, "spec": _pod(job, argv, settings)},
        },
    }


def _pod(job: Job, argv: tuple[str, ...], settings: KubernetesSettings) -> dict[str, Any]:
    amounts = {"cpu": str(settings.cpus), "memory": f"{settings.memory}Gi"}
    gpus = {"nvidia.com/gpu": str(settings.gpus)} if job.on_gpu and settings.gpus else {}
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]  # a container's own has 64 MiB
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if settings.claim is not None:
        mounts.append({"name": "data", "mountPath": FOLDER})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": settings.claim}})
    container: dict[str, Any] = {
        "name": "teachonce",
        "image": settings.required_image,
        "args": list(argv),
        "workingDir": FOLDER,
        "resources": {"requests": {**amounts, **gpus}, "limits": {"memory": amounts["memory"], **gpus}},
        "volumeMounts": mounts,
    }
    if settings.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    return {
        "restartPolicy": "Never",  # as a policy for failures asks for: the next try is a pod of its own
        "terminationGracePeriodSeconds": job.warning_seconds or 30,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "containers": [container],
        "volumes": volumes,
    }


def _submit(run: Run, manifests: list[str]) -> str:
    calls = "\n".join(f"run {name}" for name in manifests)
    return f"""#!/bin/bash
# Runs the jobs of {run.name} one after another, and waits for each. Run again it goes on: a job that is there is not begun anew.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
run() {{
    kubectl apply -f "$1"
    local state=
    until [[ $state == *Complete* || $state == *Failed* ]]; do
        sleep "${{TEACHONCE_POLL_SECONDS:-10}}"
        state=$(kubectl get -f "$1" -o 'jsonpath={{.status.conditions[?(@.status=="True")].type}}') || state=
    done
    if [[ $state == *Failed* ]]; then
        echo "$1 failed. Look with \\`kubectl describe -f $1\\`, take it away with \\`kubectl delete -f $1\\`, and run this again." >&2
        exit 1
    fi
}}
{calls}
"""

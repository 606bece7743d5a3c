"""Owns what bounds a run, in words, and what to change about it: options of the command, by the kind of time that the rest waits for."""

from __future__ import annotations

#: The kind of a run that was over soon after it had started.
STARTING = "starting"

_WHAT = {
    "read": "reading",
    "decode": "decoding",
    "wait": "reading and decoding",
    "check": "checking",
    "write": "writing",
    "forward": "the teacher",
    "text": "the teacher's texts",
    "train": "training",
    "validate": "validation",
    STARTING: "starting",
}

_FASTER = "put --out on faster storage"
_MORE = "use more --workers with --executor ray"
_START = "--executor serial needs no Ray; else give one command more work"

#: By command and kind of time; "… without a GPU" comes first where the model has none.
_ADVICE: dict[str, dict[str, str]] = {
    "shard": {
        "read": f"{_MORE}, or put the images on faster storage",
        "check": _MORE,
        "write": f"{_FASTER}, or write smaller images with --resize",
    },
    "retry-failed": {
        "read": "put the files of --source on faster storage",
        "check": _MORE,
        "write": _MORE,
    },
    "vectors": {"forward": "use --device cuda, or --precision bf16"},
    "cache": {
        "read": "give each worker more --decode-workers, or put the shards on faster storage",
        "decode": "give each worker more --decode-workers, or shard smaller images (`teachonce shard --resize`)",
        "wait": "give each worker more --decode-workers",
        "forward": "use more GPUs (--workers), --precision bf16, or a larger --batch-size",
        "forward without a GPU": "use --device cuda, or --precision bf16",
        "write": f"{_FASTER}, or store less with another --encoding",
    },
    "pretrain": {
        "wait": "give it more --decode-workers",
        "train": "use --device cuda, or --precision bf16",
        "text": "use --device cuda, or --precision bf16",
    },
    "distill": {
        "wait": "give it more --decode-workers; of shards in a bucket keep copies with --local-cache",
        "train": "use more GPUs (--workers), --precision bf16, or --compile",
        "train without a GPU": "use --use-gpu or --device cuda, --precision bf16, or --compile",
        "validate": "give --validation fewer images",
        "write": "write checkpoints less often with --checkpoint-every",
    },
    "anomalies": {
        "read": _MORE,
        "forward": "use --device cuda, or --precision bf16",
        "forward without a GPU": "use --device cuda, or --precision bf16",
    },
    "verify": {
        "check": f"{_MORE}, or look at less with --quick",
        "forward": "use --device cuda, or compare fewer rows with --teacher",
    },
    "recode": {"read": _MORE, "write": f"{_FASTER}, or {_MORE.removeprefix('use ')}"},
}


def in_words(kind: str) -> str:
    """What a kind of time is."""
    return _WHAT.get(kind, kind)


def advice(command: str, kind: str, *, gpus: bool = True) -> str | None:
    """What to change where a command was bounded by this kind of time; None where no option helps.

    Args:
        gpus: whether its model works on GPUs.
    """
    if kind == STARTING:
        return _START if command in _ADVICE else None
    found = _ADVICE.get(command, {})
    return (None if gpus else found.get(f"{kind} without a GPU")) or found.get(kind)

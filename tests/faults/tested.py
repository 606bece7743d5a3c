"""Faults that tests of the suite provoke: here they are run again, one row each, and named."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from .fault import SAME_BYTES, Fault, Lacking, check
from .room import CHECKOUT, Room

_SAME = "the bytes of an undisturbed run"


def run_tests(room: Room, nodes: Sequence[str]) -> str:
    """Run tests by pytest's names of them."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-n", "0", "-p", "no:cacheprovider", *nodes]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, env={**os.environ})
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-200:]
    failed = [
        *re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.M),
        *re.findall(r"^E  +(.*)$", done.stdout, re.M)[:3],
    ]
    check(done.returncode in (0, 5), f"{last}: {'; '.join(failed)}")
    passed = int((re.findall(r"(\d+) passed", last) or ["0"])[0])
    if not passed:
        raise Lacking(" ".join(re.findall(r"^SKIPPED .*?: (.*)$", done.stdout, re.M)) or last)
    return f"so ({passed} test{'s' if passed > 1 else ''} passed)"


def _fault(kind: str, name: str, provoked: str, must: str, *nodes: str) -> Fault:
    files = sorted({node.partition("::")[0] for node in nodes})
    return Fault(
        name=name,
        kind=kind,
        provoked=f"{provoked} ({', '.join(f'`{file}`' for file in files)})",
        must=must,
        run=functools.partial(run_tests, nodes=nodes),
    )


_BUCKETS, _NODES, _WORKERS, _INPUTS, _SIGNALS = "Buckets", "Nodes", "Workers", "Inputs", "Signals"

FAULTS = (
    _fault(
        _SIGNALS,
        "a stop that takes too long",
        "SIGTERM to `cache` with `--grace 0`; a second signal; a command that still looks at its inputs",
        "what is at hand is given up, exit code 75; the same command resumes",
        "tests/test_batch_jobs.py::test_without_grace_it_is_given_up",
        "tests/test_batch_jobs.py::test_a_command_that_looks_at_its_inputs_stops_at_once",
    ),
    _fault(
        _SIGNALS,
        "ranks of torchrun are stopped and killed",
        "SIGUSR1 to one of two ranks, SIGTERM to torchrun, `kill -9` of a rank and of torchrun",
        f"all ranks stop behind the same step, exit code 75; {_SAME}",
        "tests/stages/training/test_torchrun.py::test_stopped_killed_and_resumed_it_ends_with_the_bytes_of_undisturbed_ranks",
    ),
    _fault(
        _BUCKETS,
        "a bucket's server fails",
        "a proxy answers 500, 503, SlowDown, stalls, cuts bodies and answers, loses requests and answers: every verb, and the main way",
        f"asked again; {_SAME}",
        "tests/pipeline/test_bucket_faults.py::test_every_verb_survives_every_fault",
        "tests/stages/test_bucket_way.py::test_the_main_way_through_a_server_that_fails",
    ),
    _fault(
        _BUCKETS,
        "a bucket's server never answers as it should",
        "the proxy fails always; nobody at the endpoint",
        "one line after some tries, exit code 1",
        "tests/pipeline/test_bucket_faults.py::test_a_server_that_never_answers_as_it_should",
        "tests/pipeline/test_bucket_faults.py::test_nobody_at_the_endpoint",
    ),
    _fault(
        _BUCKETS,
        "a bucket refuses",
        "no such bucket, no permission to read, write or list, wrong or expired keys, another region, a clock that is off",
        "one line that names it; nothing half-written",
        "tests/pipeline/test_bucket_faults.py::test_what_a_server_refuses_is_one_line",
        "tests/pipeline/test_buckets.py::test_what_a_store_refuses_is_one_clear_line",
    ),
    _fault(
        _BUCKETS,
        "a bucket refuses in the middle of a run",
        "credentials expire, permission goes, the store is full or busy, while `shard`, `cache` and `distill` work, one after another",
        SAME_BYTES,
        "tests/stages/test_bucket_way.py::test_what_ends_a_run_in_its_middle",
    ),
    _fault(
        _BUCKETS,
        "kill -9 with outputs in a bucket",
        "`shard`, `cache` and `distill` on an S3 server, killed in the middle",
        f"the same command ends with {_SAME}",
        "tests/stages/test_bucket_way.py::test_killed_in_the_middle_and_resumed",
    ),
    _fault(
        _BUCKETS,
        "two drivers of one store",
        "a second command on an output in a bucket; a holder that died, that sleeps, that lost its lease; first writers whose answers are lost",
        "one at a time: the second is refused by name, or takes over; who lost the lock writes no more",
        "tests/stages/test_bucket_way.py::test_two_drivers_of_one_store",
        "tests/pipeline/test_buckets.py::test_a_process_elsewhere_is_believed_while_it_renews",
        "tests/pipeline/test_buckets.py::test_who_lost_the_lock_writes_no_more",
        "tests/pipeline/test_bucket_faults.py::test_one_driver_at_a_time_whatever_is_lost",
        "tests/pipeline/test_bucket_faults.py::test_of_many_first_writers_one_is_the_first_whatever_is_lost",
    ),
    _fault(
        _BUCKETS,
        "a bucket without conditional writes",
        "the proxy refuses or ignores `If-None-Match` and `If-Match`",
        "it is said, once; the rest works",
        "tests/pipeline/test_bucket_faults.py::test_a_store_without_conditional_writes_has_no_locks",
    ),
    _fault(
        _NODES,
        "a node is killed",
        "three nodes in network namespaces, `cache`; one's worker is halted with a unit at hand, `kill -9` of its raylet",
        f"the others do its units; {_SAME}",
        "tests/test_three_nodes.py::test_a_node_is_lost_in_the_middle[killed]",
    ),
    _fault(
        _NODES,
        "a node is cut off",
        "its network link is set down, its worker halted; it goes on after the end of the run",
        f"{_SAME}, and nothing changes when it comes back",
        "tests/test_three_nodes.py::test_a_node_is_lost_in_the_middle[cut off]",
    ),
    _fault(
        _NODES,
        "the driver of three nodes is killed",
        "`kill -9` of it, then the same command",
        f"it resumes; {_SAME}",
        "tests/test_three_nodes.py::test_the_driver_is_killed_and_run_again",
    ),
    _fault(
        _NODES,
        "nodes come and go",
        "a run with `--workers 1..3` on one node; a second node comes, is killed, and comes back",
        f"workers are added and lost; {_SAME}",
        "tests/test_three_nodes.py::test_nodes_come_and_go",
    ),
    _fault(
        _NODES,
        "a node with other versions",
        "a worker with another Pillow, another library or another weights file",
        "refused by name; the others do its units, and the run ends where all are refused",
        "tests/pipeline/test_site.py::test_a_node_with_other_versions_is_refused_by_name",
        "tests/pipeline/test_worker_range.py::test_a_refused_node_is_told_once_another_works_and_gets_nothing",
        "tests/pipeline/test_worker_range.py::test_the_run_ends_where_all_nodes_are_refused",
    ),
    _fault(
        _NODES,
        "the head ends",
        "the whole cluster is killed in the middle of a run",
        "one line after at most 45 seconds; finished work is kept",
        "tests/pipeline/test_head.py::test_a_cluster_that_ends_is_one_line",
    ),
    _fault(
        _WORKERS,
        "all workers are killed",
        "`kill -9` of both workers of a run, then of the driver",
        f"replaced, then resumed; {_SAME}",
        "tests/test_ray.py::test_a_killed_worker_is_replaced_and_a_killed_driver_resumed",
    ),
    _fault(
        _WORKERS,
        "a unit kills its worker each time",
        "a stage that kills its own process",
        "given up after 4 tries; the others finish",
        "tests/pipeline/test_dispatch.py::test_a_unit_that_ends_its_worker_each_time_is_given_up_and_the_others_finish",
    ),
    _fault(
        _WORKERS,
        "a unit hangs",
        "a stage that sleeps, `--unit-timeout 1.5`",
        "killed, 4 tries, failed as `unit-timeout`; the others finish",
        "tests/pipeline/test_dispatch.py::test_a_unit_that_hangs_is_killed_and_tried_again_and_then_failed",
    ),
    _fault(
        _WORKERS,
        "a node is always short of memory",
        "`RAY_memory_usage_threshold=0.01`; workers that end before they do anything",
        "`node-out-of-memory` or `worker-died` on one line, exit code 1",
        "tests/pipeline/test_dispatch.py::test_a_node_that_is_always_short_of_memory_ends_the_run",
        "tests/pipeline/test_dispatch.py::test_workers_that_end_before_they_do_anything_are_given_up",
    ),
    _fault(
        _WORKERS,
        "an image does not fit into memory",
        "MemoryError while it is decoded",
        "the shard fails and names the image; it is no bad image; the same command tries again",
        "tests/stages/corpora/test_passing_trouble.py::test_memory_errors_fail_the_shard_and_name_the_image",
    ),
    _fault(
        _WORKERS,
        "no shared memory",
        "/dev/shm full, as in a container of 64 MiB",
        "processes that decode work all the same",
        "tests/test_bad_days.py::test_processes_that_decode_need_no_shared_memory_of_the_system",
    ),
    _fault(
        _INPUTS,
        "a server of images goes down",
        "an HTTP server of listed images ends before, or behind, the manifest",
        "its shards fail, no image is recorded as bad; the same command asks again",
        "tests/stages/corpora/test_passing_trouble.py::test_a_server_that_is_down_is_asked_again_by_the_same_command",
        "tests/stages/corpora/test_passing_trouble.py::test_a_server_that_goes_down_behind_the_manifest_fails_its_shards_alone",
    ),
    _fault(
        _INPUTS,
        "a tar that is used in place changes",
        "other bytes, another length or another ETag, before, while and after it is indexed; on the disk and in a bucket",
        "refused by name, or its images are compared; `verify` tells what happened to it",
        "tests/stages/test_in_place.py::test_a_tar_that_changed_is_refused",
        "tests/stages/test_in_place.py::test_a_tar_that_changes_while_it_is_indexed_is_refused",
        "tests/stages/test_in_place.py::test_verify_tells_what_happened_to_a_tar",
        "tests/stages/test_in_place.py::test_in_a_bucket_a_tar_of_another_etag_is_refused_until_its_images_are_compared",
    ),
    _fault(
        _INPUTS,
        "a flipped bit",
        "one bit of each file of shards, store, class vectors and bundle",
        "refused, or no other result",
        "tests/stages/test_flipped_bits.py",
    ),
    _fault(
        _INPUTS,
        "tars cut anywhere, and of strange members",
        "tars cut at every block, links, devices, sparse and hostile headers",
        "refused, or a row with a reason; links lead nowhere outside",
        "tests/stages/corpora/test_tars.py",
        "tests/stages/corpora/test_odd_corpora.py",
    ),
    _fault(
        _INPUTS,
        "images that start programs, or take memory",
        "PostScript by any name, formats that are not named, sizes within a file, 8,000,000 × 1 pixels",
        "no program starts; memory stays bounded",
        "tests/stages/corpora/test_hostile_images.py",
    ),
)

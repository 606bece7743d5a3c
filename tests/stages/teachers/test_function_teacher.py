"""Teachers that are functions: the page's own module against a real server that fails and limits its rate, and what is refused."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages.models.black_box import BlackBox, TryAgain, check_identity
from teachonce.stages.teachers import TeacherConfig
from teachonce.stages.teachers.calling import Caller
from teachonce.stages.teachers.registry import load_teacher
from teachonce.storage_schemas.errors import DamagedError, InputError, MismatchError, WorkerError

PAGE = (Path(__file__).parents[3] / "docs" / "teachers.md").read_text(encoding="utf-8")


class Service(ThreadingHTTPServer):
    """Embeddings: mean colours of the four quarters. Counts; every third request is told to come back, one in five fails."""

    def __init__(self, *, troubled: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.troubled, self.asked, self.refused, self.images, self.version = troubled, 0, 0, 0, "1"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, *_: Any) -> None:
        return None

    def _reply(self, code: int, content: Any = None, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._reply(200, {"model": "quarters", "version": self.server.version, "width": 12})

    def do_POST(self) -> None:
        service = self.server
        images = np.load(io.BytesIO(self.rfile.read(int(self.headers["Content-Length"]))), allow_pickle=False)
        service.asked += 1
        if service.troubled and service.asked % 3 == 1:
            service.refused += 1
            self._reply(429, "slow down", Retry_After="0.01")
        elif service.troubled and service.asked % 5 == 2:
            service.refused += 1
            self._reply(503, "busy", Retry_After="0.02")
        else:
            service.images += len(images)
            self._reply(200, quarters(images).tolist())


def quarters(images_NHWC: np.ndarray) -> np.ndarray:
    half = images_NHWC.shape[1] // 2
    parts = [images_NHWC[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    return np.concatenate([part.mean(axis=(1, 2)) for part in parts], axis=1) / 255


@pytest.fixture
def service() -> Iterator[Any]:
    running = []

    def start(**options: Any) -> Service:
        running.append(Service(**options))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return running[-1]

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[Any]:
    """`module(name, text)`: a module in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    made = []

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        made.append(name)

    yield write
    load_teacher.cache_clear()
    for name in made:
        sys.modules.pop(name, None)


def page_module() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    # The waits of a test are short.
    return code.replace('currency="EUR",', 'currency="EUR",\n        first_wait=0.001,')


def run(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def cache(shards: Any, out: str, *more: Any, views: int = 2) -> Any:
    return run(
        "cache",
        shards.location,
        "--teacher",
        "python:service_teacher:make",
        "--targets",
        "embedding",
        "--views",
        views,
        "--encoding",
        "fp32",
        "--precision",
        "fp32",
        "--threads",
        1,
        "--executor",
        "serial",
        "--out",
        out,
        *more,
    )


def test_a_service_that_fails_and_limits_its_rate(module, service, picture_shards, tmp_path, monkeypatch) -> None:
    module("service_teacher", page_module())
    stores = []
    for troubled in (False, True):
        running = service(troubled=troubled)
        monkeypatch.setenv("SERVICE_URL", f"http://127.0.0.1:{running.server_port}")
        sys.modules.pop("service_teacher", None)
        done = cache(picture_shards, f"{troubled}.zarr")
        assert done.exit_code == 0, done.stderr
        stores.append(zarr.open_array(str(tmp_path / f"{troubled}.zarr" / "embedding"), mode="r")[:])
        usable = int(np.isfinite(stores[-1]).all(axis=2).sum())
        assert running.images == usable  # each view once
        told = re.search(
            r"^cache: (\d+) calls of the teacher so far(?:, (\d+) of which failed)?, (\d+) images sent, cost ([\d.]+) EUR$",
            done.stderr,
            re.M,
        )
        assert told, done.stderr
        assert (int(told[1]), int(told[2] or 0)) == (running.asked, running.refused)
        assert float(told[4]) == pytest.approx(0.0002 * int(told[3]), rel=1e-5)
    assert running.refused > 2
    np.testing.assert_array_equal(stores[0], stores[1])
    again = cache(picture_shards, "True.zarr")  # nothing is left to do, or to pay
    assert again.exit_code == 0, again.stderr
    assert f"cache: {told[1]} calls of the teacher so far" in again.stderr
    verified = run(
        "verify", picture_shards.location, "True.zarr", "--teacher", 4, "--teacher-model", "python:service_teacher:make"
    )
    assert verified.exit_code == 0, verified.stderr
    assert "True.zarr: clean" in verified.output
    asked = running.asked
    grown = cache(picture_shards, "True.zarr", "--grow", views=4)  # what a store grows by is paid too
    assert grown.exit_code == 0, grown.stderr
    assert running.asked > asked
    assert f"cache: {int(told[1]) + running.asked - asked} calls of the teacher so far" in grown.stderr
    running.version = "2"
    load_teacher.cache_clear()
    other = cache(picture_shards, "True.zarr")
    assert other.exit_code != 0
    assert "field 'teacher.weights'" in other.stderr


def test_numbers_are_those_of_the_function(module, service, monkeypatch) -> None:
    running = service(troubled=True)
    monkeypatch.setenv("SERVICE_URL", f"http://127.0.0.1:{running.server_port}")
    module("service_teacher", page_module())
    teacher = load_teacher(TeacherConfig.of("python:service_teacher:make"))
    assert running.asked == 0  # no image is sent before it must be
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    found = teacher.embed(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found, quarters(images), rtol=1e-5)
    assert (teacher.spec.family, teacher.spec.model, teacher.spec.embed_dim) == ("python", "quarters", 12)


# Calls


class Clock:
    """Time that passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def caller(answer: Any, **changes: Any) -> tuple[Caller, Clock]:
    clock = Clock()
    box = BlackBox(**{"name": "n", "version": "1", "embedding": 2, "answer": answer, **changes})
    return Caller(box, {"embedding": (2,)}, "python:m:f", sleep=clock.sleep, clock=clock), clock


def pictures(count: int) -> np.ndarray:
    return np.zeros((count, 4, 4, 3), np.uint8)


def zeros(images: np.ndarray) -> dict[str, np.ndarray]:
    return {"embedding": np.zeros((len(images), 2))}


def test_calls_are_of_so_many_images_and_no_more_a_second() -> None:
    sizes: list[int] = []

    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(images))
        return zeros(images)

    call, clock = caller(answer, batch_size=4, calls_per_second=2.0, price_per_call=3.0, price_per_image=0.5)
    assert call(pictures(10), ("embedding",))["embedding"].shape == (10, 2)
    assert sizes == [4, 4, 2]
    assert clock.slept == [0.5, 0.5]
    assert call.take() == {"calls": 3, "images": 10, "cost": 14.0}
    assert call.take() == {}


def test_waits_double_up_to_the_longest_and_a_server_s_own_word_counts() -> None:
    errors: list[Exception] = [OSError("down"), TryAgain(), TryAgain(50), ConnectionResetError(), TimeoutError()]

    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        if errors:
            raise errors.pop(0)
        return zeros(images)

    call, clock = caller(answer, first_wait=2.0, longest_wait=10.0)
    call(pictures(1), ("embedding",))
    for seconds, longest in zip(clock.slept, (2, 4, 50, 10, 10), strict=True):
        assert longest / 2 <= seconds <= longest
        assert longest != 50 or seconds == 50
    assert call.take() == {"calls": 6, "failed": 5, "images": 6}


def test_a_service_that_stays_silent() -> None:
    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        raise OSError("no route to host")

    call, clock = caller(answer, tries=3)
    with pytest.raises(WorkerError) as error:
        call(pictures(1), ("embedding",))
    assert len(clock.slept) == 2
    assert str(error.value) == (
        "a function teacher gave no answer: python:m:f: expected an answer in 3 tries, found OSError: no route to host. Next: look after the "
        "service, then run the same command again: it goes on where it was"
    )


def test_other_errors_are_not_tried_again() -> None:
    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        raise ValueError("no such model")

    call, _ = caller(answer)
    with pytest.raises(ValueError, match="no such model"):
        call(pictures(1), ("embedding",))
    assert call.take() == {"calls": 1, "failed": 1, "images": 1}


def test_what_a_try_does_to_its_images_the_next_one_does_not_see() -> None:
    seen: list[np.ndarray] = []

    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(images.copy())
        images[:] = 0
        if len(seen) == 1:
            raise TryAgain
        return zeros(images)

    call, _ = caller(answer)
    given = pictures(2) + 7
    call(given, ("embedding",))
    assert [int(images.min()) for images in (*seen, given)] == [7, 7, 7]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({}, "none"),
        ({"embedding": np.zeros((3, 5))}, "shape (3, 5)"),
        ({"embedding": np.zeros((2, 2))}, "shape (2, 2)"),
        ({"embedding": np.full((3, 2), np.nan)}, "NaN or infinity"),
        ({"embedding": [["a", "b"]] * 3}, "could not convert string to float: 'a'"),
        (None, "NoneType in place of arrays by name"),
        (np.zeros((3, 2)), "ndarray in place of arrays by name"),
    ],
)
def test_answers_that_are_not_what_was_declared(answer: Any, found: str) -> None:
    call, _ = caller(lambda images: answer)
    with pytest.raises(DamagedError) as error:
        call(pictures(3), ("embedding",))
    assert str(error.value) == (
        f"a function teacher's answer is not what it declares: python:m:f, embedding: expected finite numbers of shape (3, 2), found {found}. "
        "Next: mend the function; rows that are written are not changed"
    )


# Declarations

HEAD = "import os, numpy as np\nfrom teachonce.stages.models.black_box import BlackBox\n"


def test_logits_are_the_embedding_of_a_teacher_of_classes(module) -> None:
    module(
        "classes",
        HEAD
        + "def make():\n    return BlackBox(name='c', version='1', class_names=('a', 'b', 'c'), size=4, maps={'tokens': (2, 5)},\n"
        "        answer=lambda x: {'logits': x[:, 0, 0].astype(float), 'tokens': np.ones((len(x), 2, 5))})\n",
    )
    teacher = load_teacher(TeacherConfig.of("python:classes:make"))
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    found = teacher.outputs(torch.from_numpy(images).permute(0, 3, 1, 2), ("embedding", "tokens"))
    names = teacher.class_names(None)
    vectors = teacher.class_vectors(names, ())
    np.testing.assert_array_equal(vectors.logits(found["embedding"].numpy()), images[:, 0, 0].astype(np.float32))
    assert names == ("a", "b", "c")
    assert [(o.name, o.axes, o.shape) for o in teacher.offers()] == [
        ("embedding", ("channel",), (3,)),
        ("tokens", ("token", "channel"), (2, 5)),
    ]
    with pytest.raises(InputError, match="the class list is not the one that the function declares"):
        teacher.class_names(("a", "c", "b"))


@pytest.mark.parametrize(
    ("version", "field"), [("str(os.getpid())", "version"), ("str(hash('a'))", "version")], ids=["process", "hash"]
)
def test_an_identity_that_changes_from_process_to_process_is_refused(module, version: str, field: str) -> None:
    module(
        "changing", HEAD + f"def make():\n    return BlackBox(name='c', version={version}, embedding=3, answer=len)\n"
    )
    with pytest.raises(MismatchError) as error:
        load_teacher(TeacherConfig.of("python:changing:make"))
    assert str(error.value).startswith(
        f"a function teacher's identity changes from process to process: python:changing:make, {field}: expected "
    )
    assert error.value.hint == "declare what is the same in each: a digest of weights, the version of the service"


def test_one_that_another_process_cannot_make(module) -> None:
    module("here", HEAD + "def make():\n    return BlackBox(name='c', version='1', embedding=3, answer=len)\n")
    box = BlackBox(name="c", version="1", embedding=3, answer=len)  # type: ignore[arg-type]
    with pytest.raises(InputError) as error:
        check_identity("python:nowhere:make", box)
    assert (
        "found teachonce.storage_schemas.errors.InputError: a function teacher cannot be made: python:nowhere:make"
        in str(error.value)
    )


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (
            "",
            "bad",
            "a function teacher is named by its module and its factory: --teacher python:bad: expected python:MODULE:FACTORY, found python:bad",
        ),
        (
            "",
            "bad:make",
            "a function teacher cannot be made: python:bad:make: expected a module that can be imported, and a function that is called "
            "without arguments, found AttributeError: module 'bad' has no attribute 'make'. Next: install the module, or start the command in its folder",
        ),
        (
            "def make(): return 3",
            "bad:make",
            "a function teacher's factory gives something else: python:bad:make: expected a BlackBox, found int. Next: from "
            "teachonce.stages.models.black_box import BlackBox",
        ),
        (
            "def make(): return BlackBox(name='', version='1', embedding=1, answer=len)",
            "bad:make",
            "a function teacher declares what cannot be: "
            "python:bad:make: expected a name and a version, both texts that are not empty, found '', '1'. Next: see docs/teachers.md",
        ),
        (
            "def make(): return BlackBox(name='a', version='1', answer=len)",
            "bad:make",
            "a function teacher declares what cannot be: python:bad:make: "
            "expected either `embedding` (its channels) or `class_names` (of its logits), found neither. Next: see docs/teachers.md",
        ),
        (
            "def make(): return BlackBox(name='a', version='1', class_names=('a', 'b', 'a'), answer=len)",
            "bad:make",
            "a function teacher declares what cannot be: python:bad:make: expected a sequence of class names, none of them twice, found ('a', 'b', 'a'). "
            "Next: see docs/teachers.md",
        ),
        (
            "def make(): return BlackBox(name='a', version='1', class_names='abc', answer=len)",
            "bad:make",
            "a function teacher declares what cannot be: python:bad:make: expected a sequence of class names, none of them twice, found 'abc'. "
            "Next: see docs/teachers.md",
        ),
        (
            "def make(): return BlackBox(name='a', version='1', embedding=0, batch_size=0, answer=len)",
            "bad:make",
            "a function teacher declares what cannot be: python:bad:make: expected sizes, batches and tries of at least 1, found batch_size 0, embedding 0. "
            "Next: see docs/teachers.md",
        ),
        (
            "def make(): return BlackBox(name='a', version='1', embedding=1, calls_per_second=-1, answer=len)",
            "bad:make",
            "a function teacher declares what cannot be: python:bad:make: expected more than 0 calls a second, or None for no limit, found -1. "
            "Next: see docs/teachers.md",
        ),
    ],
)
def test_what_is_no_function_teacher(module, text: str, name: str, message: str) -> None:
    module("bad", HEAD + text + "\n")
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of(f"python:{name}"))
    assert str(error.value) == message


def test_options_that_are_not_for_it(module) -> None:
    module("own", HEAD + "def make():\n    return BlackBox(name='c', version='1', embedding=3, answer=len)\n")
    with pytest.raises(InputError) as error:
        load_teacher(TeacherConfig.of("python:own:make", "weights.pt"))
    assert str(error.value) == (
        "a function teacher declares its images and weights itself: --teacher python:own:make: expected no --teacher-pretrained, -size, -mean or "
        "-std, found one of them. Next: leave it out"
    )

"""TorchScript archives: the tensors that torch itself finds in them, and nothing of theirs is run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from teachonce.stages.models.weights import read_weights_file
from teachonce.storage_schemas.errors import InputError
from torch import Tensor, nn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.count, self.sizes, self.rate, self.title = 5, [1, 2], 0.5, "a part"
        self.plain = torch.ones(2)
        self.register_buffer("mask", torch.arange(4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.plain.sum() + self.mask.sum() * self.rate + self.sizes[0]
        return self.norm(self.linear(x)) * self.count * scale + len(self.title)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Part(), Part()
        self.again = self.first
        self.second.linear.weight = self.first.linear.weight
        self.parts = nn.ModuleList([nn.Sequential(nn.Linear(3, 3, dtype=torch.float16), nn.GELU())])

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.again(self.first(x)))
        for part in self.parts:
            x = part(x.half()).float()
        return x


def compiled(how: str, module: nn.Module) -> torch.jit.ScriptModule:
    module = module.eval()
    return torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(2, 3))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_same_tensors_as_torch_finds(how: str, tmp_path: Path) -> None:
    path = str(tmp_path / "whole.pt")
    compiled(how, Whole()).save(path)
    file = read_weights_file(path)
    expected = torch.jit.load(path).state_dict()
    assert list(file.weights) == list(expected)
    assert "parts.0.0.weight" in expected
    for name, value in expected.items():
        found = file.weights[name]
        assert (found.dtype, found.requires_grad, type(found)) == (value.dtype, False, Tensor), name
        assert torch.equal(found, value), name
    memory = file.weights["first.linear.weight"].untyped_storage().data_ptr()
    assert file.weights["second.linear.weight"].untyped_storage().data_ptr() == memory
    assert (file.openai, file.entry) == (False, "")
    if how == "script":
        assert (file.beside["second.count"], file.beside["first.rate"]) == (5, 0.5)
        assert torch.equal(file.beside["first.plain"], torch.ones(2))


def test_an_archive_whose_source_is_gone_gives_every_tensor(tmp_path: Path) -> None:
    compiled("script", Whole()).save(str(tmp_path / "whole.pt"))
    path = changed(tmp_path / "whole.pt", lambda name, data: None if "/code/" in name else data)
    assert torch.equal(read_weights_file(path).weights["second.plain"], torch.ones(2))


class Openai(nn.Module):
    """An open_clip model and the three numbers that OpenAI's archives hold as tensors."""

    def __init__(self, model: open_clip.CLIP, numbers: bool) -> None:
        super().__init__()
        self.visual, self.transformer = model.visual, model.transformer
        self.ln_final = model.ln_final
        for name, number in {"input_resolution": 32, "context_length": 8, "vocab_size": 50}.items():
            if numbers:
                self.register_buffer(name, torch.tensor(number))

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.visual(images_NCHW)


@pytest.mark.parametrize(
    ("quick_gelu", "numbers", "openai"),
    [(True, True, True), (True, False, True), (False, False, False)],
)
def test_openais_own_archives_are_recognised(quick_gelu: bool, numbers: bool, openai: bool, tmp_path: Path) -> None:
    model = open_clip.CLIP(
        16,
        {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=quick_gelu,
    )
    module = Openai(model, numbers).eval()
    torch.jit.trace(module, torch.ones(1, 3, 32, 32), check_trace=False).save(str(tmp_path / "clip.pt"))
    file = read_weights_file(str(tmp_path / "clip.pt"))
    expected = torch.jit.load(str(tmp_path / "clip.pt")).state_dict()
    sizes = {"input_resolution": 32, "context_length": 8, "vocab_size": 50} if numbers else {}
    assert file.openai == openai
    assert {name: file.beside.get(name) for name in sizes} == sizes
    assert file.weights.keys() == expected.keys() - sizes.keys()
    assert "transformer.resblocks.0.ln_1.weight" in file.weights


def changed(path: Path, change: Callable[[str, bytes], bytes | None]) -> str:
    """A copy of a zip archive whose records are passed through `change`; None leaves one out."""
    out = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for record in source.infolist():
            data = change(record.filename, source.read(record))
            if data is not None:
                target.writestr(zipfile.ZipInfo(record.filename), data, record.compress_type)
    return str(out)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    compiled("script", Part()).save("part.pt")
    return Path("part.pt")


def refusal(path: str) -> str:
    with pytest.raises(InputError) as error:
        read_weights_file(path)
    return str(error.value)


def with_pickle(archive: Path, pickled: bytes) -> str:
    return changed(archive, lambda name, data: pickled if name.endswith("/data.pkl") else data)


@pytest.mark.parametrize(
    ("call", "name"), [(b"cos\nsystem\n", "os.system"), (b"cbuiltins\neval\n", "eval"), (b"cio\nopen\n", "io.open")]
)
def test_other_names_are_refused_and_not_run(call: bytes, name: str, archive: Path) -> None:
    text = b"touch ran" if b"system" in call else b"open('ran','w')" if b"eval" in call else b"ran"
    pickled = b"\x80\x02" + call + b"(X" + len(text).to_bytes(4, "little") + text + b"X\x01\0\0\0w"
    pickled = (pickled if b"open\n" in call else pickled[:-6]) + b"tR."
    path = with_pickle(archive, pickled)
    assert refusal(path).startswith(
        f"cannot read weights: {path}: found a pickled object ({name}), and nothing in a file is run. Next: "
    )
    assert not Path("ran").exists()


class Packed(nn.Module):
    """Takes itself apart by code of its own, as quantized modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight + 1, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        assert state[0].sum() < 0, "the archive's code was run"
        self.weight = state[0]
        self.training = state[1]


def test_an_objects_own_unpacking_is_never_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(nn.Sequential(nn.Linear(3, 3), Packed())).save("packed.pt")
    with pytest.raises(torch.jit.Error, match="code was run"):
        torch.jit.load("packed.pt")
    assert refusal("packed.pt") == (
        "cannot read weights: packed.pt: found an object that only the file's own code can unpack (1.). Next: where you "
        "trust the file, save its weights alone: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
    )


def test_absurd_sizes_are_refused(archive: Path) -> None:
    def numel(name: str, data: bytes) -> bytes:
        if not name.endswith("/data.pkl"):
            return data
        at = data.index(b"K", data.index(b"X\x03\0\0\0cpu"))
        return data[:at] + b"\x8a\x06" + (10**12).to_bytes(6, "little") + data[at + 2 :]

    assert "does not match expected size" in refusal(changed(archive, numel))

    with zipfile.ZipFile(archive) as source, zipfile.ZipFile("deflated.pt", "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, b"\0" * (64 << 20) if name.endswith("data/0") else source.read(name))
    assert refusal("deflated.pt") == "cannot read weights: deflated.pt: found a compressed record (part/data/0)"

    # One stored record that two entries of the directory name.
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile("twice.pt", "w") as out:
        for name in source.namelist():
            out.writestr(name, b"\0" * (1 << 20) if name.endswith("data/0") else source.read(name))
        (large,) = (record for record in out.infolist() if record.filename == "part/data/0")
        for record in out.infolist():
            if record.filename == "part/data/1":
                record.header_offset, record.file_size = large.header_offset, large.file_size
                record.compress_size, record.CRC = large.compress_size, large.CRC
    size = Path("twice.pt").stat().st_size
    assert refusal("twice.pt").endswith(f"bytes in a file of {size}")


def test_modules_without_end_are_refused(archive: Path) -> None:
    own = b"c__torch__\nPart\n)\x81"
    itself = b"\x80\x02" + own + b"q\0}(X\x01\0\0\0ah\0ub."
    assert refusal(with_pickle(archive, itself)).endswith(": found modules without end")
    doubled = b"\x80\x02" + own + b"}("
    for level in range(40):  # each object holds the one before it twice
        inside = b"X\x01\0\0\0ah" + bytes([level - 1]) + b"X\x01\0\0\0bh" + bytes([level - 1]) if level else b""
        doubled += b"X\x02\0\0\0" + b"%02d" % level + own + b"q" + bytes([level]) + b"}(" + inside + b"ub"
    assert refusal(with_pickle(archive, doubled + b"ub.")).endswith(": found modules without end")


def test_damaged_archives_are_refused(archive: Path) -> None:
    whole = archive.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 10):
        Path("cut.pt").write_bytes(whole[:length])
        assert refusal("cut.pt").startswith("cannot read weights: cut.pt: found "), length
    path = changed(archive, lambda name, data: data[:-4] if name.endswith("/data/0") else data)
    assert "does not match expected size" in refusal(path)
    assert refusal(with_pickle(archive, b"\x80\x02K\x05.")).endswith(": expected a module, found int")

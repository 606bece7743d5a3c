"""What is read of a checkpoint's file: weights and plain values; nothing in it is run. And the command as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.stages.models.weights import read_weights_file
from teachonce.storage_schemas.errors import InputError


def test_what_coops_trainer_pickles_beside_the_weights_is_left_unbuilt(authors, tmp_path) -> None:
    weights = {"a": torch.ones(3), "b": torch.zeros((), dtype=torch.float16)}
    torch.save(authors.training_state(weights, epoch=7), tmp_path / "m.pth.tar-7")
    before = set(torch.serialization.get_safe_globals())
    file = read_weights_file(str(tmp_path / "m.pth.tar-7"))
    assert set(torch.serialization.get_safe_globals()) == before
    assert file.weights.keys() == weights.keys()
    assert torch.equal(file.weights["a"], weights["a"])
    assert (file.beside["epoch"], file.beside["val_result"]) == (7, 85.5)
    assert vars(file.beside["scheduler"]["successor"]) == {}


def test_other_objects_are_refused_and_not_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for place in ("scheduler", "state_dict"):
        torch.save({"state_dict": {"a": torch.ones(1)}, place: {"a": Evil()}}, "m.pth.tar-1")
        with pytest.raises(InputError) as error:
            read_weights_file("m.pth.tar-1")
        assert error.value.fields == {
            "code": "weights-unreadable",
            "where": "m.pth.tar-1",
            "found": "a pickled object (io.open), and nothing in a file is run",
            "hint": "where you trust the file, save its weights alone: torch.save({'state_dict': checkpoint['state_dict']}, NEW_FILE)",
        }
    assert not (tmp_path / "ran").exists()


def test_an_optimiser_in_place_of_weights_is_no_file_of_weights(tmp_path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    torch.save({"state_dict": {"a": optimizer}}, tmp_path / "m.pth")
    with pytest.raises(InputError) as error:
        read_weights_file(str(tmp_path / "m.pth"))
    assert error.value.code == "weights-malformed"
    assert str(error.value.where).endswith("m.pth")
    assert str(error.value.expected).startswith("tensors by name")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command(tiny, make_teacher, authors, classes, tmp_path: Path) -> None:
    _, state = make_teacher(tiny, drift=0.002)
    file = tmp_path / "model.pth.tar-20"
    torch.save(authors.training_state(state), file)
    out = tmp_path / "prompts"
    words = ["import", file, "--teacher", tiny.name, "--classes", classes, "--out", out]
    code, stdout, stderr = run(*words)
    assert (code, stdout) == (0, "")
    assert "  kind            PromptSRC teacher, epoch 20\n" in stderr
    assert "import: learned on 3 of 5 classes, by the class texts in the file\n" in stderr
    assert stderr.endswith(f"import: 1 of 1 unit done; {len(state)} tensors now. Output: {out}\n")
    code, stdout, _ = run(*words, "--json")
    said = json.loads(stdout)
    assert (code, said["done_before"], said["done_now"]) == (0, 1, 0)
    assert said["checkpoint"]["prompts"]["text"] == {"layers": 3, "tokens": 4, "channels": 16}
    assert said["checkpoint"]["class_texts"] == {"count": 3, "in_class_list": 3}
    assert said["checkpoint"]["frozen"]["relative"] == pytest.approx(0.002, rel=0.3)
    code, stdout, stderr = run("status", out)
    assert (code, f"tensors      {len(state)} done" in stdout) == (0, True)
    store = tmp_path / "v.zarr"
    code, _, stderr = run("vectors", "--teacher", f"teachonce:{out}", "--out", store)
    assert code == 0, stderr
    code, _, stderr = run(*words, "--weights", "backbone")
    assert code == 1
    assert stderr.startswith(f"Error: {out} holds the output of another import: ")

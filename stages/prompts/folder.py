"""Owns writing learned prompts to their folder, and reading them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import safetensors
import safetensors.torch
from torch import Tensor

from ...pipeline.contents import Kind, how_to_make, kind_of
from ...pipeline.storage import Location
from ...storage_schemas.errors import DamagedError, IncompleteError, InputError
from ...storage_schemas.folder_config import check_file, file_digest
from ...storage_schemas.prompts import CONFIG, PROMPTS, TOWERS, PromptsConfig
from .clip import PromptShape


@dataclass(frozen=True, kw_only=True)
class LoadedPrompts:
    """Prompts from their folder.

    Attributes:
        config: the content of `config.json`.
        prompts: `vision_prompts_LPD` and `text_prompts_LPD`, fp32 (layer, prompt, channel).
        towers: weights of the model that go with them, by open_clip's names; None where they are the backbone's own.
    """

    config: PromptsConfig
    prompts: Mapping[str, Tensor]
    towers: Mapping[str, Tensor] | None

    @property
    def shape(self) -> PromptShape:
        return PromptShape(**self.config.shape)


def write_prompts(
    location: Location,
    prompts: Mapping[str, Tensor],
    config: PromptsConfig,
    towers: Mapping[str, Tensor] | None = None,
) -> tuple[str, ...]:
    """Write the files, `config.json` last, since it alone makes a folder one of prompts. Returns their names."""
    files = {PROMPTS: _encode(prompts)}
    if towers is not None:
        files[TOWERS] = _encode(towers)
    (location / CONFIG).remove()
    (location / TOWERS).remove()
    for name, data in files.items():
        (location / name).write_bytes(data)
    digests = {name: file_digest(data) for name, data in files.items()}
    (location / CONFIG).write_bytes(replace(config, files=digests).to_bytes())
    return (CONFIG, *files)


def read_prompts(location: Location | str) -> LoadedPrompts:
    """Read a folder of prompts.

    Raises:
        InputError: there is none.
        IncompleteError: `teachonce pretrain` has not finished there.
        DamagedError: files that do not belong together or cannot be read.
        MismatchError: prompts of another version.
    """
    folder = Location.of(location)
    if not (folder / CONFIG).exists():
        if (folder / "run").exists():
            raise IncompleteError(
                "the prompts are not finished",
                code="prompts-unfinished",
                where=folder,
                hint="run the same `teachonce pretrain` command again",
            )
        raise InputError(
            "no prompts here",
            code="prompts-missing",
            where=folder,
            expected=Kind.PROMPTS,
            found=kind_of(folder),
            hint=how_to_make(folder, "teachonce pretrain IMAGES --teacher …"),
        )
    config = PromptsConfig.from_bytes((folder / CONFIG).read_bytes(), where=folder / CONFIG)
    prompts = _decode(folder / PROMPTS, config)
    with_towers = TOWERS in config.files if config.files is not None else (folder / TOWERS).exists()
    towers = _decode(folder / TOWERS, config) if with_towers else None
    loaded = LoadedPrompts(config=config, prompts=prompts, towers=towers)
    try:
        shape = loaded.shape
        found = {name: tuple(prompts[f"{name}_prompts_LPD"].shape[:2]) for name in ("vision", "text")}
    except (KeyError, TypeError) as error:
        raise DamagedError(
            "prompts and their config do not belong together",
            code="prompts-do-not-fit",
            where=folder,
            found=f"no {error}",
        ) from error
    expected = {"vision": (shape.vision_depth, shape.vision_length), "text": (shape.text_depth, shape.text_length)}
    if found != expected:
        raise DamagedError(
            "prompts and their config do not belong together",
            code="prompts-do-not-fit",
            where=folder,
            expected=expected,
            found=found,
        )
    return loaded


def _encode(tensors: Mapping[str, Tensor]) -> bytes:
    data: bytes = safetensors.torch.save(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, {"format": "pt"}
    )
    return data


def _decode(location: Location, config: PromptsConfig) -> dict[str, Tensor]:
    try:
        data = location.read_bytes()
        check_file(
            data,
            location.name,
            config.files,
            where=location,
            hint="copy the folder again, or run `teachonce pretrain` again",
        )
        return dict(safetensors.torch.load(data))
    except (FileNotFoundError, safetensors.SafetensorError) as error:
        raise DamagedError(
            "a file of prompts is missing or damaged",
            code="prompts-damaged",
            where=location,
            found=str(error),
            hint="copy the folder again, or run `teachonce pretrain` again",
        ) from error

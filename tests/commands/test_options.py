"""Options say what the fields of a settings class say: name, type, range, default, choices, unit, help and section."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from teachonce.cli import main
from teachonce.commands.command import LAST, Subcommand, command
from teachonce.commands.options import options_of
from teachonce.commands.recipe_options import options_of_recipes
from teachonce.pipeline.settings import check, setting, settings_of, with_default
from teachonce.stages.models.settings import ComputeSettings, PreprocessSettings
from teachonce.stages.pretraining.settings import PretrainSettings
from teachonce.stages.recipes.registry import own_settings
from teachonce.stages.settings.cache import CacheSettings
from teachonce.stages.settings.distill import DistillSettings
from teachonce.stages.settings.evaluate import EvaluateSettings
from teachonce.stages.settings.few_shot import FewShotSettings
from teachonce.stages.settings.shard import ShardSettings
from teachonce.stages.views.settings import RandomViews
from teachonce.storage_schemas.errors import InputError

SETTINGS = (
    ShardSettings,
    FewShotSettings,
    PretrainSettings,
    CacheSettings,
    DistillSettings,
    EvaluateSettings,
    ComputeSettings,
    PreprocessSettings,
    RandomViews,
    *own_settings().values(),
)


@dataclass(frozen=True, kw_only=True)
class Baking:
    """One field of each type."""

    oven: str = setting(option="", help="Which oven.")
    minutes: int = setting(45, least=1, most=90, unit="MINUTES", help="How long.")
    sugar: float = setting(0.5, above=0, below=1, help="Share of sugar.")
    heat: str = setting("top", choices=("top", "bottom"), group="Heat", help="Where heat comes from.")
    shelf: Literal["low", "high"] | None = setting(
        None, choices=("low", "high"), default_text="the middle", help="Which shelf."
    )
    size: tuple[int, int] = setting((20, 30), least=1, help="Of the tin.")
    salts: tuple[float, ...] = setting((0.25,), least=0, help="Portions of salt.")
    notes: tuple[str, ...] = setting((), option="note", help="Any number of them.")
    file: str | None = setting(None, unit="PATH", help="A recipe.")
    fan: bool = setting(False, help="Whether it blows.")


def run(*words: str, prefix: str = "cake", **options: Any) -> tuple[Any, str]:
    """What a command gets for these words, and what it prints."""
    got = []

    @command()
    @options_of("baking", Baking, prefix=prefix, **options)
    def bake(**values: Any) -> None:
        got.append(values)

    result = CliRunner().invoke(bake, words, terminal_width=300)
    return (got[0] if got else None), result.output


def test_what_is_given_is_in_the_settings_and_the_rest_at_its_default() -> None:
    assert run("--cake", "gas") == ({"baking": Baking(oven="gas")}, "")
    words = [
        "--cake=gas",
        "--cake-minutes=90",
        "--cake-sugar=0.1",
        "--cake-heat=bottom",
        "--cake-shelf=low",
        "--cake-size=1,2",
        "--cake-salts=1,2.5,0",
        "--cake-note=a",
        "--cake-note=b",
        "--cake-file=~",
        "--cake-fan",
    ]
    got, _ = run(*words)
    assert got["baking"] == Baking(
        oven="gas",
        minutes=90,
        sugar=0.1,
        heat="bottom",
        shelf="low",
        size=(1, 2),
        salts=(1.0, 2.5, 0.0),
        notes=("a", "b"),
        file=got["baking"].file,
        fan=True,
    )
    assert not got["baking"].file.startswith("~")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--minutes=0", "Invalid value for '--minutes': 0 is not in the range 1<=x<=90."),
        ("--minutes=91", "Invalid value for '--minutes': 91 is not in the range 1<=x<=90."),
        ("--sugar=0", "Invalid value for '--sugar': 0.0 is not in the range 0<x<1."),
        ("--sugar=1", "Invalid value for '--sugar': 1.0 is not in the range 0<x<1."),
        ("--sugar=nan", "Invalid value for '--sugar': 'nan' is not a finite number."),
        ("--size=1", "Invalid value for '--size': '1' is not 2 numbers with commas between them"),
        ("--salts=1,-1", "Invalid value for '--salts': -1.0 is not in the range x>=0."),
        (
            "--heat=botom",
            "Invalid value for '--heat': 'botom' is not one of 'top', 'bottom'. Did you mean bottom?",
        ),
        ("--minutes=5", "Missing option '--oven'."),
    ],
)
def test_what_cannot_be_is_one_line(word: str, message: str) -> None:
    @command()
    @options_of("baking", Oven)
    def bake(baking: Oven) -> None:
        raise AssertionError(baking)

    result = CliRunner().invoke(bake, [word])
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"Error: {message}")


@dataclass(frozen=True, kw_only=True)
class Oven(Baking):
    """Named by its own option."""

    oven: str = setting(help="Which oven.")


def test_help_says_all_of_it_in_sections() -> None:
    _, text = run("--help", section="Cakes")
    wanted = [
        "Options:",
        "--help Show this message and exit.",
        "Cakes:",
        "--cake TEXT Which oven. [required]",
        "--cake-minutes MINUTES How long. [default: 45; 1<=x<=90]",
        "--cake-sugar NUMBER Share of sugar. [default: 0.5; 0<x<1]",
        "--cake-shelf [low|high] Which shelf. [default: the middle]",
        "--cake-size INTEGER,INTEGER Of the tin. [default: 20,30]",
        "--cake-salts NUMBER,… Portions of salt. [default: 0.25]",
        "--cake-note TEXT Any number of them.",
        "--cake-file PATH A recipe.",
        "--cake-fan Whether it blows.",
        "Heat:",
        "--cake-heat [top|bottom] Where heat comes from. [default: top]",
        "Where files lie:",
        "--endpoint URL Server of s3:// URLs that is not AWS, such as http://127.0.0.1:9000. [default: AWS_ENDPOINT_URL]",
    ]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert [line for line in lines if line and not line.startswith("Usage")] == wanted


def test_only_some_fields_and_another_way_to_make_the_settings() -> None:
    got, _ = run("--cake-minutes", "2", only=("minutes",), make=lambda **given: given)
    assert got == {"baking": {"minutes": 2}}


def test_a_field_once_more_says_what_it_said_but_for_what_is_new() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Slow(Oven):
        minutes: int = with_default(Baking, "minutes", 80, help="Longer.")

    said = {field.name: said for field, said in settings_of(Slow)}["minutes"]
    assert (Slow(oven="a").minutes, said.help, said.most, said.unit) == (80, "Longer.", 90, "MINUTES")


@pytest.mark.parametrize("cls", SETTINGS)
def test_python_is_refused_what_the_command_line_is(cls: Any) -> None:
    """A step beyond each end of each setting of a number, and a word that is no choice."""
    needed = {f.name: f.default for f in fields(cls)}
    tried = 0
    for field, said in settings_of(cls):
        beyond = [end - 1 for end in (said.least, said.above) if end is not None]
        beyond += [end + 1 for end in (said.most, said.below) if end is not None]
        beyond += [end for end in (said.above, said.below) if end is not None]
        for value in [*beyond, *(["no such word"] if said.choices else [])]:
            settings = cls(**(needed | {field.name: value}))
            with pytest.raises(InputError) as error:
                check(settings, "x")
            assert (error.value.code, str(error.value.where)) == (
                "setting-impossible",
                f"--x-{field.name.replace('_', '-')}",
            )
            tried += 1
    check(cls(**needed))
    assert tried


def test_one_option_for_what_several_recipes_have() -> None:
    @dataclass(frozen=True, kw_only=True)
    class First:
        speed: int = setting(1, least=0, help="How fast.")
        weight: float = setting(2.0, least=0, help="How heavy.")

    @dataclass(frozen=True, kw_only=True)
    class Second:
        speed: int = with_default(First, "speed", 0)
        colour: str = setting("red", choices=("red", "blue"), help="Of what colour.")

    options = {option.name: option for option in options_of_recipes({"a": First, "b": Second})}
    assert {name: (option.help, option.shown) for name, option in options.items()} == {
        "speed": ("How fast.", "a 1, b 0"),
        "weight": ("a: how heavy.", "2"),
        "colour": ("b: of what colour.", "red"),
    }
    parsed = click.Command("x", params=list(options.values())).make_context("x", ["--weight", "0"]).params
    assert parsed == {"speed": None, "weight": 0.0, "colour": None}


def test_common_options_come_first_and_where_it_runs_last() -> None:
    for name, subcommand in main.commands.items():
        if isinstance(subcommand, Subcommand):
            sections = list(subcommand.sections(click.Context(subcommand, info_name=name)))
            assert sections[0] == "Options"
            technical = [section for section in sections if section in LAST]
            assert sections[len(sections) - len(technical) :] == technical
    assert list(main.commands["cache"].sections(click.Context(main.commands["cache"]))) == [  # type: ignore[attr-defined]
        "Options",
        "Encoding",
        "Random views",
        *LAST,
    ]

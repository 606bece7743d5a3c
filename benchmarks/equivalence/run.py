"""Shows that a student from the store is the student from the teacher in the loop: step by step, and over K views."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

sys.path.append(str(Path(__file__).parents[1]))  # what all benchmarks share

if TYPE_CHECKING:
    from proof import Proof
    from task import Task
    from trial import Trial, TrialBook

RECIPES = ("promptkd", "kd")
CORPORA = ("cifar10", "demo")
VIEWS = (20, 10, 5, 2, 1)


@click.group(context_settings={"max_content_width": 100})
def main() -> None:
    """Compare training from the store with training with the teacher in the loop."""


threads_option = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads.")
recipes_option = click.option(
    "--recipe", "recipes", multiple=True, type=click.Choice(RECIPES), default=RECIPES, show_default=True
)


@main.command()
@recipes_option
@click.option("--images", default=300, show_default=True, type=click.IntRange(1))
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(2), help="And views.")
@click.option("--batch-size", default=20, show_default=True, type=click.IntRange(2))
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--from-scratch/--from-weights",
    default=True,
    show_default=True,
    help="Whether kd's student starts from random weights.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    type=click.Choice(("fp32", "bf16")),
    help="The teacher's.",
)
@click.option("--as-published", is_flag=True, help="The recipes' own settings, not the demo's: SGD in promptkd.")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: every loss, and weights' differences.")
def steps(
    recipes: tuple[str, ...],
    images: int,
    epochs: int,
    batch_size: int,
    seed: int,
    from_scratch: bool,
    as_published: bool,
    precision: str,
    threads: int,
    as_json: bool,
) -> None:
    """Follow losses and weights step by step, on the demo's images, with as many views as epochs.

    The training with the teacher in the loop is compared with trainings from the store: targets in fp32; in the
    default encoding (fp16); in fp32 with the last bit of every logit moved at random, as a teacher on another
    machine might; and with targets of a wrong view, which must show.
    """
    _few_threads(threads)
    from demo_task import demo_task
    from proof import prove

    found = []
    with tempfile.TemporaryDirectory(prefix="teachonce-steps-") as folder:
        task = demo_task(Path(folder), num_images=images, num_held_out=0, views=epochs, threads=threads)
        task = task.adjusted(
            batch_size=batch_size,
            from_scratch=("kd",) if from_scratch else (),
            as_published=as_published,
            precision=precision,
        )
        for encoding in ("fp32", "fp16"):
            task.make_store(encoding)
        for recipe in recipes:
            proof = prove(task, recipe, epochs=epochs, seed=seed, scratch=Path(folder))
            found.append(_proof_json(proof))
            if not as_json:
                click.echo("\n".join(_proof_text(proof)))
    if as_json:
        json.dump(found, sys.stdout, indent=1)
        print()


@main.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of finished trials; resumed.")
@click.option(
    "--corpus",
    "corpora",
    multiple=True,
    type=click.Choice(CORPORA),
    help="[default: both; without --cifar10 the demo's images]",
)
@click.option(
    "--cifar10",
    type=click.Path(exists=True, path_type=Path),
    help="Folder with train.tar and test.tar of CLASS/NAME.jpg.",
)
@recipes_option
@click.option("--views", multiple=True, type=click.IntRange(1), default=VIEWS, show_default=True)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds 0 to N - 1.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1))
@click.option("--images", default=1000, show_default=True, type=click.IntRange(10), help="Without labels.")
@click.option("--held-out", default=4000, show_default=True, type=click.IntRange(10))
@click.option("--fp32", is_flag=True, help="The most views also with targets in fp32.")
@threads_option
@click.option("--print-only", is_flag=True, help="The table of what is there; train nothing.")
def table(
    out: Path,
    corpora: tuple[str, ...],
    cifar10: Path | None,
    recipes: tuple[str, ...],
    views: tuple[int, ...],
    seeds: int,
    epochs: int,
    images: int,
    held_out: int,
    fp32: bool,
    threads: int,
    print_only: bool,
) -> None:
    """Train from K cached views and with the teacher in the loop, several seeds; print the table.

    Every finished training is a line in OUT/CORPUS/trials.jsonl, and is not done again.
    """
    _few_threads(threads)
    corpora = corpora or (CORPORA if cifar10 or print_only else ("demo",))
    if "cifar10" in corpora and cifar10 is None and not print_only:
        raise click.UsageError("--corpus cifar10 needs --cifar10 FOLDER")
    if max(views) > epochs:
        raise click.UsageError(
            f"--views {max(views)} is more than --epochs {epochs}: no epoch would read the last ones"
        )
    from comparison import rows
    from comparison import table as text
    from trial import TrialBook, trials

    settings = None if print_only else {"epochs": epochs, "images": images, "held_out": held_out}
    books = {corpus: TrialBook(out / corpus, settings) for corpus in corpora}
    if not print_only:
        tasks = {c: _prepared(c, out / c, cifar10, images, held_out, epochs, threads) for c in corpora}
        if fp32:
            for task in tasks.values():
                task.make_store("fp32")
        _run(
            tasks,
            books,
            epochs,
            [
                trial
                for seed in range(seeds)
                for corpus in corpora
                for trial in trials(corpus, recipes, views, seed, fp32=fp32)
            ],
        )
    for book in books.values():
        click.echo("\n".join(text(list(rows(book)))))


def _prepared(
    corpus: str, folder: Path, cifar10: Path | None, images: int, held_out: int, views: int, threads: int
) -> Task:
    from teachonce.stages.models.compute import keep_freed_memory

    keep_freed_memory()
    sizes: Any = {"num_images": images, "num_held_out": held_out, "views": views, "threads": threads}
    _say(f"{corpus}: prepare images, teacher and store")
    if corpus == "demo":
        from demo_task import demo_task

        task = demo_task(folder, **sizes)
    else:
        from cifar10_task import cifar10_task

        assert cifar10 is not None
        task = cifar10_task(folder, cifar10, **sizes)
    task.make_store("fp16")
    task.make_held_out()
    return task


def _run(tasks: dict[str, Task], books: dict[str, TrialBook], epochs: int, wanted: Sequence[Trial]) -> None:
    from held_out import HeldOut
    from trial import run_trial

    measures = {corpus: HeldOut(task) for corpus, task in tasks.items()}
    for trial in wanted:
        book, task = books[trial.corpus], tasks[trial.corpus]
        if trial in book:
            continue
        facts, logits_NC = run_trial(
            trial, task, measures[trial.corpus], epochs=epochs, scratch=task.folder / "scratch"
        )
        book.add(trial, facts, logits_NC)
        found = f"accuracy {facts['accuracy']:.3f}, KL {facts['kl']:.3f}, {facts['cpu_seconds']:.0f} CPU s"
        _say(f"{trial.name}: {found}")


def _proof_json(proof: Proof) -> dict[str, Any]:
    from proof import round_steps

    ways = {
        way: {
            "losses": record.losses,
            "difference_until_step": {
                str(step): {
                    "loss": proof.loss_difference(way, step),
                    "weights": proof.weight_difference(way, step),
                    "all_weights": proof.weight_difference(way, step, acting=False),
                }
                for step in round_steps(proof.steps)
            },
        }
        for way, record in proof.others.items()
    }
    return {
        "recipe": proof.recipe,
        "target_difference": proof.target_difference,
        "online": {"losses": proof.online.losses},
        **ways,
    }


def _proof_text(proof: Proof) -> Iterator[str]:
    from proof import round_steps

    losses = proof.online.losses
    yield f"{proof.recipe}: {proof.steps} steps, online loss {losses[0]:.4g} to {losses[-1]:.4g}"
    yield f"Between the store and the teacher in the loop, logits differ by {proof.target_difference:.1e} at most."
    yield "Relative difference to online: largest of any loss so far, and of the weights that act (in norm)"
    yield ""
    yield f"| step | {' | '.join(proof.others)} |"
    yield "| --- |" + " --- |" * len(proof.others)
    for step in round_steps(proof.steps):
        cells = [
            f"{proof.loss_difference(way, step):.1e}, {proof.weight_difference(way, step):.1e}" for way in proof.others
        ]
        yield f"| {step} | {' | '.join(cells)} |"
    every = ", ".join(f"{way} {proof.weight_difference(way, acting=False):.1e}" for way in proof.others)
    yield f"\nOf all weights in the end, with biases that cancel: {every}\n"


def _few_threads(threads: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

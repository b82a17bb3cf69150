"""The commands `train`, `evaluate` and `pack`.

torch is imported when a command runs, not before: help answers at once, and on machines without torch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from training.errors import TrainingError

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Train, measure and pack networks.")

@commands.callback()
def _commands() -> None:
    """Train, measure and pack networks."""


P = ParamSpec("P")
T = TypeVar("T")

USER_ERROR = 2
SIGNAL_BASE = 128


def _user_errors(command: Callable[P, T]) -> Callable[P, T]:
    """End with one line on stderr and status 2 where the user can put something right."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from None

    return guarded


Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="FOLDER", help="Where the data set lies. Else the recipe's data.root, else $SIGNET_DATA."
    ),
]


@commands.command()
@_user_errors
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file; see training/recipes/.")],
    data: Data = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe; may be repeated."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="FILE|auto", help="Go on from a checkpoint; auto: from the output folder's last.ckpt."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For checkpoints and logs. [default: runs/<name>]")
    ] = None,
) -> None:
    """Train a network as a recipe says.

    Writes `last.ckpt` after each epoch, `best.ckpt` (highest validation top-1), `metrics.csv` and TensorBoard
    logs. Ctrl-C saves before it ends.

    Examples:

    `signet train training/recipes/cifar10_resnet18_cpu.yaml --data ~/data`

    `signet train recipe.yaml --set training.epochs=2 --set model.latent.kind=plain --output runs/plain`

    `signet train recipe.yaml --resume auto`
    """
    from training.recipe import load_recipe
    from training.train import train as run

    outcome = run(load_recipe(recipe, set_ or ()), data_root=data, output=output, resume=resume)
    if outcome.signal is not None:
        print(f"stopped; saved {outcome.folder / 'last.ckpt'}. To go on, repeat the command with --resume auto")
        raise typer.Exit(SIGNAL_BASE + outcome.signal)
    top1 = outcome.metrics.get("val_top1")
    print(f"done: {outcome.folder / 'best.ckpt'}" + ("" if top1 is None else f" (last epoch top-1 {top1:.2f} %)"))


def main() -> None:
    """Run the commands (`python -m training.commands`)."""
    commands()


if __name__ == "__main__":
    main()

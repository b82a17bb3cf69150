"""The commands `train`, `ablate`, `evaluate`, `pack` and `data preview`.

torch is imported when a command runs, not before: help answers at once, and on machines without torch.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from training.errors import TrainingError

if TYPE_CHECKING:
    from PIL import Image

commands = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
data_commands = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
commands.add_typer(data_commands, name="data", help="Look at data sets.")

P = ParamSpec("P")
T = TypeVar("T")

USER_ERROR = 2
SIGNAL_BASE = 128
MODEL_FILE = "model.safetensors"
OWN_PICTURES = Path(__file__).parent / "recipes" / "imagefolder.yaml"


class StemChoice(StrEnum):
    """What becomes of a real stem's weights when a network is packed."""

    FLOAT32 = "float32"
    INT8 = "int8"
    AUTO = "auto"


@commands.callback()
def _commands() -> None:
    """Train, measure and pack networks."""


def _user_errors(command: Callable[P, T]) -> Callable[P, T]:
    """End with one line on stderr and status 2 where the user can put something right."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except TrainingError as error:
            for line in str(error).splitlines():
                print(f"signet: {line}", file=sys.stderr)
            raise typer.Exit(USER_ERROR) from None

    return guarded


Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="FOLDER", help="Where the data set lies; else data.root of the recipe, else $SIGNET_DATA."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe (repeatable)."),
]


@commands.command()
@_user_errors
def train(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="[RECIPE]", show_default=False, help="A YAML file such as those in training/recipes."),
    ] = OWN_PICTURES,
    data: Data = None,
    settings: Settings = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="FILE|auto", help="Go on from a checkpoint; auto: the output folder's last one, if any."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="For checkpoints and logs; default: runs/<name>."),
    ] = None,
) -> None:
    """Train a network from a recipe; without one, on a folder of pictures with one sub-folder a class.

    Writes last.ckpt after each epoch, best.ckpt (highest validation top-1; for pose PCK, PCKh or AP, as the data set
    has it), epochs.csv and TensorBoard logs.
    Ctrl-C saves last.ckpt before it ends.

    Example: signet train --data my-pictures

    Example: signet train training/recipes/cifar10_resnet18_cpu.yaml --data ~/data

    Example: signet train recipe.yaml --set training.epochs=2 --set model.latent.kind=plain -o runs/plain

    Example: signet train recipe.yaml --resume auto
    """
    from training.recipe import load_recipe
    from training.reporting import SHOWN
    from training.train import train as run

    outcome = run(load_recipe(recipe, settings or ()), data_root=data, output=output, resume=resume)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    if outcome.signal is not None:
        if first:
            print(f"stopped; saved {outcome.last}. To go on, repeat the command with --resume auto", file=sys.stderr)
        raise typer.Exit(SIGNAL_BASE + outcome.signal)
    if first:
        found = f", {SHOWN[outcome.metric][0]} {outcome.best_value:.2f} %" if outcome.best else ""
        print(f"done: {outcome.best or outcome.last}{found}")


@commands.command()
@_user_errors
def ablate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file such as those in training/ablations.")],
    data: Data = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="For results; default: runs/ablations/<name>."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Runs at once, which share the machine's GPU.")] = 1,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints of finished runs.")] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Only write tables and plots of what is done.")] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,  # one of the jobs: writes no report
) -> None:
    """Train all runs of an ablation and compare them.

    Runs that are done are skipped, an interrupted one goes on where it stood, and the same command may be started
    several times at once. Afterwards results.csv, table.md and the plots (signet[ablation]) are written anew.

    Example: signet ablate training/ablations/cifar10.yaml --data ~/data --jobs 4

    Example: timeout -s TERM 9m signet ablate training/ablations/cifar10.yaml; signet ablate ... --report
    """
    from training.ablation.plan import Ablation
    from training.ablation.report import write_report
    from training.ablation.work import work, work_in_parallel

    ablation = Ablation(file)
    folder = output or Path("runs") / "ablations" / ablation.config.name
    number = None
    if jobs > 1 and not report_only:
        command = ["ablate", str(file), "--worker", "--output", str(folder), *(["--keep"] if keep else [])]
        status = work_in_parallel(jobs, [*command, *(["--data", str(data)] if data else [])])
        number = status - SIGNAL_BASE if status > SIGNAL_BASE else None
        if status and number is None:
            raise typer.Exit(status)
    elif not report_only:
        number = work(ablation, folder, data, keep=keep)
    for path in () if worker else write_report(ablation, folder):
        print(path)
    if number is not None:
        raise typer.Exit(SIGNAL_BASE + number)


@commands.command()
@_user_errors
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint (.ckpt) or packed model (.safetensors).")],
    data: Data = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RECIPE", help="Take the data set from here, not from the file's own recipe.")
    ] = None,
    settings: Settings = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Measure on the first N images alone.")] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="For pose: average the heatmaps of each picture and of its mirror image.")
    ] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For pose: also draw 24 of the people, chosen at random, into a picture."),
    ] = None,
) -> None:
    """Measure a checkpoint or a packed model on a data set.

    Prints top-1 and top-5 over the validation images; for pose a table of PCK@0.2 of the torso and PCKh@0.5, a joint
    and in the mean, over all and over upright people, and OKS-AP where the data set has it. A checkpoint runs in
    torch (float32), a packed model in the xnor engine, on the very same pixels.

    Example: signet evaluate runs/cifar10_resnet18_cpu/best.ckpt --data ~/data

    Example: signet evaluate zoo/my-model/1/model.safetensors --data ~/data --limit 1000

    Example: signet evaluate zoo/my-people/1/model.safetensors --flip --sheet people.jpg
    """
    from training.evaluate import draw
    from training.evaluate import evaluate as run
    from training.pose.metrics import PoseScores
    from training.recipe import load_recipe

    if settings and recipe is None:
        raise TrainingError("--set: overrides fields of --recipe, which is not given")
    chosen = None if recipe is None else load_recipe(recipe, settings or ()).data
    result = run(file, data_root=data, data=chosen, limit=limit, flip=flip)
    if isinstance(result, PoseScores):
        print(result.table())
    print(f"{file}: {result}")
    if sheet is not None:
        _save(draw(file, data_root=data, data=chosen, flip=flip), sheet)


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be written: {error}") from error
    print(f"{path}: {picture.width} x {picture.height} px")


@commands.command()
@_user_errors
def pack(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="What signet train wrote (.ckpt).")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE|FOLDER",
            help="A .safetensors file, or a model repository; default: model.safetensors beside the checkpoint.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name in the repository; default: the recipe's.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Its version there; default: one above the highest.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Keep real weights (stem, shortcuts, head) in float16: smaller, rounded.")
    ] = False,
    stem: Annotated[
        StemChoice,
        typer.Option(
            help="A real stem's weights: as trained, rounded to 8 bits, or rounded if on the data set's validation "
            "pictures at least 99.5 % get the same class."
        ),
    ] = StemChoice.FLOAT32,
    data: Data = None,
) -> None:
    """Pack a trained network to one bit a weight.

    Into a model repository it is written as <folder>/<name>/<version>/model.safetensors, which signet serve finds.

    Example: signet pack runs/cifar10_resnet18_cpu/best.ckpt -o zoo --name cifar10

    Example: signet pack best.ckpt -o model.safetensors
    """
    from models.packing.file import PackedFileError
    from models.packing.pack import PackingError, pack_checkpoint

    target = _pack_target(checkpoint, output, name, version)
    try:
        if stem is StemChoice.AUTO:
            from training.agreement import pack_with_better_stem

            packed, found = pack_with_better_stem(
                lambda path, kind: pack_checkpoint(checkpoint, path, half=half, stem=kind), target, data
            )
            print(f"stem: {found}, so it stays {'rounded to 8 bits' if found.enough else 'real'}")
        else:
            packed = pack_checkpoint(
                checkpoint, target, half=half, stem="int8" if stem is StemChoice.INT8 else "float32"
            )
    except (PackingError, PackedFileError) as error:
        raise TrainingError(str(error)) from error
    except OSError as error:
        raise TrainingError(f"{target}: cannot be written: {error.strerror or error}") from error
    sizes = packed.header.sizes
    print(
        f"{target}: {sizes.packed_bytes / 1e6:.2f} MB, in float32 {sizes.float32_bytes / 1e6:.2f} MB "
        f"({sizes.float32_bytes / max(sizes.packed_bytes, 1):.1f} times as much)"
    )


def _pack_target(checkpoint: Path, output: Path | None, name: str | None, version: int | None) -> Path:
    """The file to write; see `pack`."""
    if output is None or output.suffix == ".safetensors":
        if name is not None or version is not None:
            raise TrainingError("--name, --version: belong to a model repository; give its folder as --output")
        return output or checkpoint.parent / MODEL_FILE
    if name is None:
        from training.checkpoints import load_checkpoint

        name = str(load_checkpoint(checkpoint)["hyper_parameters"]["recipe"]["name"])
    if version is None:
        taken = [int(path.name) for path in (output / name).glob("*") if path.name.isdigit()]
        version = max(taken, default=0) + 1
    return output / name / str(version) / MODEL_FILE


@data_commands.command()
@_user_errors
def preview(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe of the task pose.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The picture to write.")] = Path(
        "preview.png"
    ),
    data: Data = None,
    settings: Settings = None,
    people: Annotated[int, typer.Option(min=1, max=600, metavar="N", help="People of each split.")] = 12,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which people, and how they are augmented.")] = 0,
) -> None:
    """Draw people of a recipe's data set as the network sees them, with their joints and limbs.

    Above are training people, augmented; below are validation people.

    Example: signet data preview training/recipes/lspet_hourglass.yaml --data ~/data -o people.png
    """
    from training.pose.config import PoseData
    from training.pose.data import load
    from training.pose.preview import contact_sheet
    from training.recipe import load_recipe

    chosen = load_recipe(recipe, settings or ())
    if not isinstance(chosen.data, PoseData):
        raise TrainingError(f"{recipe}: task: is {chosen.task!r}, expected 'pose'")
    _save(contact_sheet(load(chosen.data, data), chosen.data, people=people, seed=seed), output)


def main() -> None:
    """Run the commands (`python -m training.commands`)."""
    commands()


if __name__ == "__main__":
    main()

"""The command line `signet`. Commands import what they need when they run, so that `signet --help` is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from app.repository import Repository, Session
    from app.settings import Settings

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
TRAINING_COMMANDS = {
    "train": "Train a network from a recipe.",
    "evaluate": "Measure a checkpoint or a packed model on a data set.",
    "pack": "Pack a trained network to one bit a weight.",
    "data": "Look at the data sets.",
}
TRAINING_MODULES = frozenset(
    {"lightning", "rich", "safetensors", "tensorboard", "tensorly", "torch", "torchmetrics", "yaml"}
)

cli = typer.Typer(
    name="signet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Binary neural networks with latent decompositions: train, pack to one bit a weight, serve on CPUs.

    From a recipe to an answer:

        signet train training/recipes/cifar10_resnet18.yaml

        signet pack runs/cifar10_resnet18/best.ckpt -o my-zoo --name my-model

        signet inspect my-zoo/my-model/1/model.safetensors

        signet serve --models my-zoo

        curl -F image=@photo.jpg http://127.0.0.1:8000/v1/classify
    """,
)

Models = Annotated[
    list[Path] | None,
    typer.Option("--models", metavar="DIR", help="Model repository (repeatable); default: the models that ship."),
]


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on  [default: 8000]")] = None,
    models: Models = None,
    default_model: Annotated[str | None, typer.Option(help="Model that answers where a request names none.")] = None,
) -> None:
    """Serve packed models over HTTP.

    Every setting is also an environment variable SIGNET_*, such as SIGNET_MAX_QUEUE_IMAGES; an option wins over it.

    Example: signet serve --port 9000 --models my-zoo
    """
    from app.server import serve as run

    raise typer.Exit(run(_settings(host=host, port=port, models=models, default_model=default_model)))


@cli.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures, or folders of pictures.")],
    model: Annotated[
        str | None, typer.Option(help="Name in the repository, or path of a packed file; default: the default model.")
    ] = None,
    models: Models = None,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="Predictions for each picture.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of a table.")] = False,
) -> None:
    """Classify pictures offline, exactly as the service would.

    A picture that cannot be read is reported on its line, the others are answered, and the exit status is 1.

    Example: signet predict photo.jpg holiday/ --top-k 1 --json > answers.jsonl
    """
    settings = _settings(models=models)
    session = _open_session(settings, model)
    width = 0 if as_json else max((len(str(path)) for path in _pictures(paths)), default=0)
    failed = False
    for path in _pictures(paths):
        answer = _predict(session, path, top_k, settings)
        failed = failed or "error" in answer
        if as_json:
            typer.echo(json.dumps(answer))
        else:
            shown = answer.get("error") or "  ".join(f"{p['label']} {p['score']:.3f}" for p in answer["predictions"])
            typer.echo(f"{path!s:<{width}}  {shown}")
    raise typer.Exit(1 if failed else 0)


@cli.command()
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed model.")]) -> None:
    """Show a packed model: each layer, 1-bit or float and why, its size and operations, and where it came from.

    Example: signet inspect models/zoo/cifar10-resnet18/1/model.safetensors
    """
    from models.packing.file import PackedFileError
    from models.packing.summary import summarize

    try:
        typer.echo(summarize(file))
    except PackedFileError as error:
        _fail(str(error))


@cli.command(name="models")
def list_models(models: Models = None) -> None:
    """List the models of a repository, <dir>/<name>/<version>/model.safetensors.

    Example: signet models --models my-zoo
    """
    from app.repository import State

    repository = _repository(_settings(models=models))
    repository.load_all()
    rows = [("NAME", "VERSION", "STATE", "TASK", "PACKED", "FLOAT32")]
    for entry in repository:
        if entry.session is None:
            rows.append((entry.name, str(entry.version), entry.state, f"{entry.path}: {entry.error}", "", ""))
            continue
        header = entry.session.file.header
        sizes = header.sizes
        rows.append(
            (
                entry.name,
                str(entry.version),
                entry.state,
                header.task,
                f"{sizes.packed_bytes / 1e6:.2f} MB",
                f"{sizes.float32_bytes / 1e6:.2f} MB",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip())
    raise typer.Exit(1 if any(entry.state is State.FAILED for entry in repository) else 0)


def _settings(**given: object) -> Settings:
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"])
        _fail(f"SIGNET_{name.upper()} or --{name.replace('_', '-')}: {first['msg']}")


def _repository(settings: Settings) -> Repository:
    from app.engine import loader
    from app.repository import Repository

    return Repository(settings.models, loader(settings.threads), settings.default_model)


def _open_session(settings: Settings, model: str | None) -> Session:
    from app.engine import loader
    from app.errors import ServiceError
    from models.packing.file import PackedFileError

    try:
        if model is not None and (model.endswith(".safetensors") or "/" in model):
            return loader(settings.threads)(Path(model))
        repository = _repository(settings)
        repository.load_all()
        return repository.find(model).ready_session()
    except (PackedFileError, ServiceError) as error:
        _fail(str(error))


def _pictures(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*") if found.suffix.lower() in PICTURES)
        else:
            yield path


def _predict(session: Session, path: Path, top_k: int, settings: Settings) -> dict[str, Any]:
    from app.errors import ServiceError
    from app.service import prepare_bytes, session_labels, top_predictions

    answer: dict[str, Any] = {"path": str(path)}
    try:
        prepared = prepare_bytes(path.read_bytes(), session.file.header.input, settings.max_pixels)
        logits = session.run(prepared.pixels[None])["logits"][0]
        found = top_predictions(logits, session_labels(session), top_k)
    except (OSError, ServiceError) as error:
        return answer | {"error": error.strerror or str(error) if isinstance(error, OSError) else str(error)}
    return answer | {
        "image": {"width": prepared.width, "height": prepared.height},
        "predictions": [{"label": p.label, "index": p.index, "score": round(p.score, 6)} for p in found],
    }


def _fail(message: str) -> NoReturn:
    typer.echo(f"signet: {message}", err=True)
    raise typer.Exit(2)


def _add_training_commands() -> None:
    """Add the commands of training; where their libraries are missing, commands that say what to install."""
    try:
        from training.commands import commands
    except ModuleNotFoundError as error:
        missing = error.name or "training"
        for name, purpose in TRAINING_COMMANDS.items():
            lenient = {"ignore_unknown_options": True, "allow_extra_args": True}
            explained = f"{purpose} (needs: pip install 'signet[train]')"
            cli.command(name, help=explained, context_settings=lenient)(_needs_training(missing))
    else:
        cli.registered_commands.extend(commands.registered_commands)
        cli.registered_groups.extend(commands.registered_groups)


def _needs_training(missing: str) -> Any:
    def command() -> None:
        _say_what_is_missing(missing)

    return command


def _say_what_is_missing(module: str) -> NoReturn:
    typer.echo(
        f"signet: training needs the package {module!r}, which serving does not; install signet[train]:\n"
        "    pip install 'signet[train]'      (in a source checkout: pip install -e '.[train]')",
        err=True,
    )
    sys.exit(1)


def main() -> None:
    """Entry point of the command `signet`."""
    _add_training_commands()
    try:
        cli()
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root not in TRAINING_MODULES:
            raise
        _say_what_is_missing(root)


if __name__ == "__main__":
    main()

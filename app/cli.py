"""The command line `signet`. Commands import what they need when they run, so that `signet --help` is instant."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from app.predict.output import Format

if TYPE_CHECKING:
    from app.predict.answers import Predictor
    from app.repository import Repository
    from app.settings import Settings

TRAINING_COMMANDS = {
    "train": "Train a network from a recipe.",
    "ablate": "Train all runs of an ablation and compare them.",
    "evaluate": "Measure a checkpoint or a packed model on a data set.",
    "pack": "Pack a trained network to one bit a weight.",
    "data": "Look at the data sets.",
}
TRAINING_MODULES = frozenset(
    {"lightning", "rich", "safetensors", "tensorboard", "tensorly", "torch", "torchmetrics", "yaml"}
)

GRPC_MODULES = frozenset({"google", "grpc"})
SERVE_OPTIONS = frozenset({"host", "port", "grpc_port", "models", "default_model", "workers"})
"""Settings that are options of `signet serve` too."""

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


def _tell_version(wanted: bool) -> None:
    if wanted:
        from app.about import program_version

        typer.echo(f"signet {program_version()}")
        raise typer.Exit


@cli.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on  [default: 8000]")] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port for gRPC, which takes the extra of that name  [default: none]"),
    ] = None,
    models: Models = None,
    default_model: Annotated[str | None, typer.Option(help="Model that answers where a request names none.")] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Serve on the Ray cluster of this machine or RAY_ADDRESS, else on one of its own."),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that answer  [default: 1]")] = None,
) -> None:
    """Serve packed models over HTTP.

    Every setting is also an environment variable SIGNET_*, such as SIGNET_MAX_QUEUE_IMAGES; an option wins over it.

    Example: signet serve --port 9000 --models my-zoo
    """
    settings = _settings(
        host=host, port=port, grpc_port=grpc_port, models=models, default_model=default_model, workers=workers
    )
    if settings.otel:
        _check_tracing()
    if ray:
        if settings.grpc_port is not None:
            _fail("SIGNET_GRPC_PORT or --grpc-port: gRPC is not served on a Ray cluster")
        raise typer.Exit(_serve_on_cluster(settings))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads: not used here, and in the way of a fork
    from app.server import serve as run

    try:
        raise typer.Exit(run(settings))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in GRPC_MODULES:
            raise
        _fail(
            f"SIGNET_GRPC_PORT or --grpc-port: gRPC needs the package {error.name!r}; install signet[grpc]:\n"
            "    pip install 'signet[grpc]'      (in a source checkout: pip install -e '.[grpc]')"
        )


@cli.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures, or folders of pictures.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Name in the repository or on the server, or path of a packed file; default: the default model."
        ),
    ] = None,
    models: Models = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Let this server answer, such as http://127.0.0.1:8000.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SIGNET_API_KEY", show_envvar=True, help="Key for the server; better in the variable."),
    ] = None,
    pose: Annotated[
        bool, typer.Option("--pose", help="Find people's keypoints: the default model is one that does.")
    ] = False,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="Classes for each picture.")] = 3,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y,W,H", help="Where a person is (repeatable); default: the whole picture is one."),
    ] = None,
    kind: Annotated[
        Format | None,
        typer.Option("--format", help="Default: what the name of --out says (.jsonl, .csv), or a table."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format jsonl.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write there; default: the standard output. A .png, .jpg or .webp is the picture with its people.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=256, help="Pictures at once; with --url requests. Default: the CPUs; 4.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            max=86_400,
            help="How long the server's answer to a request is awaited; it computes nothing later.  [default: 60]",
        ),
    ] = None,
) -> None:
    """Answer pictures: offline, exactly as the service would, or through a server.

    A model of classes gives the best ones, a pose model people's keypoints. A picture that has no answer is reported on
    its line, the others are answered, and the exit status is 1; 2 where nothing could be begun. A server that is full
    or not ready is asked again for a minute.

    Example: signet predict photo.jpg holiday/ --top-k 1 --out answers.csv

    Example: signet predict --pose photo.jpg -o drawn.png
    """
    from app.predict.answers import PredictError
    from app.predict.drawing import SUFFIXES, Drawing
    from app.predict.output import format_of
    from app.predict.pictures import find_pictures
    from app.predict.run import run

    _log_plainly()
    pictures = list(find_pictures(paths))
    if not pictures:
        _fail(f"{', '.join(map(str, paths))}: no pictures there")
    drawn = None
    if out is not None and out.suffix.lower() in SUFFIXES:
        if len(pictures) != 1:
            _fail(f"--out: {out} is a picture, of one; there are {len(pictures)}")
        drawn, out = out, None
    chosen = kind or (Format.JSONL if as_json else None) or (format_of(out) if out else None) or Format.TABLE
    try:
        with _predictor(
            url, api_key, model, models, "pose" if pose else None, top_k, box or [], jobs, timeout
        ) as predictor:
            if (box or pose) and predictor.task != "pose":
                _fail(f"{'--box' if box else '--pose'} is for pose models; this one does {predictor.task}.")
            if drawn is not None:
                predictor = Drawing(predictor, drawn, _settings().max_pixels)
            failures = run(predictor, pictures, chosen, out)
    except PredictError as error:
        _fail(str(error))
    except BrokenPipeError:  # whoever read the lines has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except OSError as error:
        _fail(f"{error.filename or 'standard output'}: {error.strerror}")
    raise typer.Exit(1 if failures else 0)


def _predictor(
    url: str | None,
    api_key: str | None,
    model: str | None,
    models: list[Path] | None,
    task: str | None,
    top_k: int,
    box: list[str],
    jobs: int | None,
    timeout_s: float | None,
) -> AbstractContextManager[Predictor]:
    from app.poses import read_boxes

    try:
        boxes = read_boxes(box)
    except ValueError as error:
        _fail(f"--box: {error}")
    if url is None:
        if timeout_s is not None:
            _fail("--timeout is for answers from a server; without --url there is none.")
        from app.predict.local import Local

        settings = _settings(models=models)
        return nullcontext(Local.open(settings, model, top_k=top_k, boxes=boxes, jobs=jobs, task=task))
    from app.keys import check_key

    try:
        check_key(api_key or "")
    except ValueError as error:
        _fail(f"--api-key or SIGNET_API_KEY: {error}")
    if models:
        _fail("--models is for answers without a server; with --url the server has its own.")
    from app.predict.remote import TIMEOUT_S, Remote

    return Remote(
        url,
        model,
        api_key=api_key,
        top_k=top_k,
        boxes=boxes,
        jobs=jobs,
        task=task,
        timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
    )


@cli.command()
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed model.")]) -> None:
    """Show a packed model: each layer, 1-bit or float and why, its size and operations, and where it came from.

    Example: signet inspect models/zoo/cifar10-resnet18/1/model.safetensors
    """
    from models.packing.file import PackedFileError, read
    from models.packing.summary import summarize
    from models.xnor import EngineError
    from models.xnor.plan import make_plan

    try:
        typer.echo(summarize(file))
        typer.echo(
            f"\narena                 {make_plan(read(file)).arena_bytes:,} bytes for the activations of one image"
        )
    except (PackedFileError, EngineError) as error:
        _fail(str(error))


@cli.command()
def bench(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed model.")],
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads that compute at once; default: the CPUs granted.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Images a call.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.01, max=3600, help="How long to run it.")] = 3.0,
    isa: Annotated[
        str | None, typer.Option(help="Instruction set, such as avx2; default: the fastest here, or SIGNET_ISA.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a packed model here: latency, throughput, each step's rate and share of the machine's ceiling, memory.

    Example: signet bench models/zoo/cifar10-resnet18/1/model.safetensors --threads 1
    """
    import dataclasses
    import json

    from models.packing.file import PackedFileError
    from models.xnor import EngineError
    from models.xnor import bench as benches

    try:
        result = benches.bench(file, threads=threads, batch=batch, seconds=seconds, isa=isa)
    except (PackedFileError, EngineError) as error:
        _fail(str(error))
    typer.echo(json.dumps(dataclasses.asdict(result), indent=2) if as_json else benches.table(result))


@cli.command(name="models")
def list_models(models: Models = None) -> None:
    """List the models of a repository, <dir>/<name>/<version>/model.safetensors.

    Example: signet models --models my-zoo
    """
    from app.repository import State

    _log_plainly()
    settings = _settings(models=models)
    repository = _repository(settings)
    repository.load_all()
    if not list(repository):
        _fail(f"{', '.join(map(str, settings.models))}: no models there")
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
        option = f" or --{name.replace('_', '-')}" if first["loc"][0] in SERVE_OPTIONS else ""
        _fail(f"SIGNET_{name.upper()}{option}: {first['msg'].removeprefix('Value error, ')}")


def _check_tracing() -> None:
    try:
        from app.otel import exporter

        exporter()
    except ValueError as error:
        _fail(str(error))


def _serve_on_cluster(settings: Settings) -> int:
    try:
        from app.cluster import run
    except ModuleNotFoundError as error:
        _fail(
            f"serving on a Ray cluster needs the package {error.name!r}; install signet[ray]:\n"
            "    pip install 'signet[ray]'      (in a source checkout: pip install -e '.[ray]')"
        )
    from pydantic import ValidationError

    from app.cluster_settings import ClusterSettings

    try:
        return run(settings, ClusterSettings())
    except ValidationError as error:
        first = error.errors()[0]
        _fail(": ".join(["_".join(["SIGNET_RAY", *map(str, first["loc"])]).upper(), first["msg"]]))
    except ValueError as error:
        _fail(str(error))


def _repository(settings: Settings) -> Repository:
    from app.engine import loader
    from app.repository import Repository

    return Repository(settings.models, loader(settings.threads), settings.default_model, settings.policies)


def _log_plainly() -> None:
    """Warnings as lines for people: what happened, to which file, and why.

    Each line once, though roots are read twice: to list the models, and to load them.
    """
    import logging

    told: set[str] = set()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            parts = [record.getMessage(), *(getattr(record, name, None) for name in ("path", "reason"))]
            line = "signet: " + ": ".join(str(part) for part in parts if part)
            if line not in told:
                told.add(line)
                typer.echo(line, err=True)

    logging.getLogger("signet").handlers = [Lines(logging.WARNING)]


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

"""`hivemint model pull | info | list`: the models on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from hivemint.cli.console import JsonFlag, emit, err, out, table
from hivemint.contracts.errors import ModelError
from hivemint.contracts.ids import BlockIndex
from hivemint.swarm import models
from hivemint.swarm.models import LocalModel

app = typer.Typer(help="Models on this machine: pull, info, list.")

STAGES = {"download": "downloading", "check": "checking digests", "convert": "converting", "digest": "taking digests"}
ModelArgument = Annotated[str, typer.Argument(help="A pulled model's name, a Hugging Face folder, or a hub id.")]


@app.command()
def pull(model: ModelArgument = models.DEMO, as_json: JsonFlag = False) -> None:
    """Fetch a model, the demo model by default. Checked by digest; a second pull checks it again."""
    with _progress(as_json) as progress:
        found = models.pull(model, progress=progress)
        document = _describe(found, progress)
    if as_json:
        emit(document)
    else:
        out.print(f"[green]ready[/] {found.name}  model id 0x{found.model_id.hex()}", soft_wrap=True)
        out.print(f"      {found.folder}", highlight=False, soft_wrap=True)


@app.command()
def info(
    model: ModelArgument = models.DEMO,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every byte with the manifest.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What a model is: blocks, sizes, id."""
    with _progress(as_json) as progress:
        found = models.resolve(model, progress=progress)
        document = _describe(found, progress)
        if verify:
            found.check(progress)
            document["verified"] = True
    if as_json:
        emit(document)
        return
    for name, value in document.items():
        out.print(f"[dim]{name.replace('_', ' '):>16}[/]  {_readable(name, value)}", highlight=False, soft_wrap=True)


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """The pulled models, damaged ones too."""
    rows = [_row(model) for model in models.installed()]
    if as_json:
        emit(rows)
    elif not rows:
        out.print("no models yet: `hivemint model pull` fetches the demo model")
    else:
        lines = [
            (row["name"], str(row["blocks"] or "-"), _mb(row["bytes"]), _short(row["model_id"]), row["state"])
            for row in rows
        ]
        table("Models", "name", ">blocks", ">size", "model id", "state", rows=lines)


def _describe(model: LocalModel, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    anatomy, manifest = model.anatomy, model.read_manifest(progress)
    return {
        "name": model.name,
        "model_id": "0x" + manifest.model_id.hex(),
        "folder": str(model.folder),
        "family": anatomy.family,
        "blocks": anatomy.num_blocks,
        "hidden_size": anatomy.hidden_size,
        "context": anatomy.max_positions,
        "dtypes": sorted({tensor.dtype for tensor in manifest.tensors.values()}),
        "tensors": len(manifest.tensors),
        "bytes": manifest.nbytes,
        "bytes_per_block": anatomy.block_bytes(BlockIndex(0)),
    }


def _row(model: LocalModel) -> dict[str, Any]:
    try:
        anatomy, manifest = model.anatomy, model.manifest
    except ModelError as error:
        return {
            "name": model.name,
            "blocks": None,
            "bytes": None,
            "model_id": None,
            "state": f"damaged: {error.why or error.what}",
        }
    model_id = "0x" + manifest.model_id.hex()
    whole = {"blocks": anatomy.num_blocks, "bytes": manifest.nbytes, "model_id": model_id, "state": "ok"}
    return {"name": model.name, **whole}


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per stage on stderr; nothing with `--json` or where stderr is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES.get(stage, stage), total=total or None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield tell


def _readable(name: str, value: Any) -> str:
    if name.startswith("bytes"):
        return _mb(value)
    return ", ".join(value) if isinstance(value, list) else str(value)


def _mb(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:,.1f} MB"


def _short(model_id: str | None) -> str:
    return "-" if model_id is None else f"{model_id[:18]}..."

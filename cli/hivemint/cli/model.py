"""`hivemint model pull | info | list`: the models on this machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from hivemint.cli.console import JsonFlag, emit, err, out, shown, table
from hivemint.model import local_models
from hivemint.model.families import FAMILIES
from hivemint.model.footprint import PRECISIONS, fit, footprint
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import BlockIndex

app = typer.Typer(help="Models on this machine: pull, info, list.")

STAGES = {"download": "downloading", "check": "checking digests", "convert": "converting", "digest": "taking digests"}
SESSION = 8192
"""Tokens of the session that must have room beside a span that is said to fit, unless the model has fewer positions."""
ModelArgument = Annotated[str, typer.Argument(help="A pulled model's name, a Hugging Face folder, or a hub id.")]


@app.command()
def pull(model: ModelArgument = local_models.DEMO, as_json: JsonFlag = False) -> None:
    """Fetch a model, the demo model by default. Checked by digest; a second pull checks it again."""
    with _progress(as_json) as progress:
        found = local_models.pull(model, progress=progress)
        document = _describe(found, progress)
    if as_json:
        emit(document)
    else:
        out.print(f"[green]ready[/] {shown(found.name)}  model id 0x{found.model_id.hex()}", soft_wrap=True)
        out.print(f"      {shown(str(found.folder))}", highlight=False, soft_wrap=True)


@app.command()
def info(
    model: ModelArgument = local_models.DEMO,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every byte with the manifest.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """What a model is, what a block of it takes at each precision, and what span of it fits this machine."""
    with _progress(as_json) as progress:
        found = local_models.resolve(model, progress=progress)
        document = _describe(found, progress)
        if verify:
            found.check(progress)
            document["verified"] = True
        machine = _machine(found)
    if as_json:
        emit(document | {"machine": machine})
        return
    for name, value in document.items():
        text = shown(_readable(name, value))
        out.print(f"[dim]{name.replace('_', ' '):>16}[/]  {text}", highlight=False, soft_wrap=True)
    for device in machine:
        _show_device(device, found.anatomy.num_blocks)


@app.command("list")
def list_models(as_json: JsonFlag = False) -> None:
    """The pulled models, damaged ones too."""
    rows = [_row(model) for model in local_models.installed()]
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
        "served": anatomy.family in FAMILIES,
        "blocks": anatomy.num_blocks,
        "hidden_size": anatomy.hidden_size,
        "context": anatomy.max_positions,
        "dtypes": sorted({tensor.dtype for tensor in manifest.tensors.values()}),
        "tensors": len(manifest.tensors),
        "bytes": manifest.nbytes,
        "bytes_per_block": anatomy.block_bytes(BlockIndex(0)),
    }


def _machine(model: LocalModel) -> list[dict[str, Any]]:
    """For each device here: its free memory, and by precision what a block takes and what fits."""
    import torch

    from hivemint.node.kv.cache import CPU_SHARE, GPU_SHARE, free_memory
    from hivemint.node.span.linear import can_pack

    context = min(model.anatomy.max_positions, SESSION)
    devices = [("cpu", free_memory(), CPU_SHARE)]
    for index in range(torch.cuda.device_count()):
        devices.append((f"cuda:{index}", torch.cuda.mem_get_info(index)[0], GPU_SHARE))
    found = []
    for name, free, share in devices:
        kind, _, _ = name.partition(":")
        precisions: dict[str, Any] = {}
        for weights in PRECISIONS:
            need = footprint(model.anatomy, weights, kind, wide=kind == "cpu" and can_pack(torch.bfloat16))
            fits = fit(model.anatomy, need, free, share, context)
            precisions[weights] = {
                "bytes_per_block": need.block,
                "kv_bytes_per_1000_tokens": need.kv,
                "fits_blocks": 0 if need.refused else fits.blocks,
                "fits_tokens": 0 if need.refused else fits.kv_tokens,
                "refused": need.refused or None,
            }
        found.append({"device": name, "free_bytes": free, "precisions": precisions})
    return found


def _show_device(device: dict[str, Any], blocks: int) -> None:
    rows = []
    for weights, need in device["precisions"].items():
        if need["refused"]:
            fits, tokens = f"refused: {need['refused']}", ""
        else:
            fits, tokens = f"{need['fits_blocks']} of {blocks} blocks", f"{need['fits_tokens']:,}"
        rows.append((weights, _mb(need["bytes_per_block"]), _mb(need["kv_bytes_per_1000_tokens"]), fits, tokens))
    columns = ("weights", ">a block", ">1,000 tokens in a block", "fits", ">tokens beside")
    out.print()
    table(f"{device['device']}, {_mb(device['free_bytes'])} free", *columns, rows=rows)


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

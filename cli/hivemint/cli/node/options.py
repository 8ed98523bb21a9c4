"""What `hivemint node start` can be told: one option a line, each with its help."""

from typing import Annotated

import typer

ModelArgument = Annotated[str, typer.Argument(help="A pulled model, or a Hugging Face folder.")]
BlocksOption = Annotated[
    str | None,
    typer.Option(help="Blocks to serve, FIRST:END, e.g. 0:15; else those that help most, which may change later."),
]
AskOption = Annotated[
    str | None,
    typer.Option(help="Price per token and block, e.g. '20 nHMC' or '5 wei'; auto = as the other nodes ask."),
]
YesFlag = Annotated[bool, typer.Option("--yes", help="Agree to what would be asked: registering, bonding, a change.")]
ListenOption = Annotated[list[str] | None, typer.Option(help="Multiaddress to listen on.")]
AnnounceOption = Annotated[list[str] | None, typer.Option(help="Multiaddress to tell others instead.")]
BootstrapOption = Annotated[list[str] | None, typer.Option(help="More bootstrap peers.")]
ThreadsOption = Annotated[int | None, typer.Option(help="Compute threads; 0 = the cores that are free.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="Of weights: fp32, bf16, fp16, int8, nf4; or with the computation's, nf4/fp16.")
]
WireOption = Annotated[str | None, typer.Option(help="Of rows between hops: fp32, bf16, fp16; default: as computed.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu or cuda.")]
MetricsPortOption = Annotated[int | None, typer.Option(help="Prometheus on 127.0.0.1; 0 = any free port.")]
NewBooksFlag = Annotated[
    bool, typer.Option("--new-books", help="Begin new books where the old ones are of a chain that began anew.")
]
SettleMinOption = Annotated[
    str | None, typer.Option(help="Settle as soon as so many credits have come together.", metavar="AMOUNT")
]
DustOption = Annotated[
    str | None, typer.Option(help="Never settle an account for less, not even before it is lost.", metavar="AMOUNT")
]
CreditPriceOption = Annotated[
    str | None,
    typer.Option(help="Coin that a credit is worth to you: a settlement then must bring what it costs."),
]
MaxFeeOption = Annotated[float | None, typer.Option(help="Gwei per gas that own transactions offer at most (100).")]
MaxTipOption = Annotated[float | None, typer.Option(help="Gwei per gas of it that is tip at most (3).")]
CoinADayOption = Annotated[
    str | None, typer.Option(help="Coin that own transactions may risk on one day (0.1).", metavar="AMOUNT")
]

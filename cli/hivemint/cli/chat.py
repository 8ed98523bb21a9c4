"""`hivemint generate` and `hivemint chat`: text through the swarm, streamed as it comes."""

import math
import sys
from typing import Annotated, Any

import typer

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption
from hivemint.cli.talk.answers import Asking, ask, encode
from hivemint.cli.talk.banner import show_banner, show_terms
from hivemint.cli.talk.joining import joined
from hivemint.cli.talk.keeping import opened
from hivemint.cli.talk.lines import Lines, PipedLines, TerminalLines, history_file, message_of
from hivemint.cli.talk.loop import COMMANDS, Talk
from hivemint.cli.talk.views import show, show_plan
from hivemint.protocol.errors import BadInput
from hivemint.protocol.home import Home

ModelOption = Annotated[str | None, typer.Option("--model", help="Default: the network's first model.")]
TokensOption = Annotated[int, typer.Option("--max-tokens", min=1, help="Length of the answer at most.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 = always the likeliest token.")]
TopKOption = Annotated[int | None, typer.Option(min=1, help="Sample among this many tokens.")]
TopPOption = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Sample within this share.")]
BidOption = Annotated[
    str | None, typer.Option(help="auto, free, ask, 2x (times the ask), or credits per token and block.")
]
PriceOption = Annotated[str | None, typer.Option("--max-price", help="Ceiling: credits per token, all blocks.")]
KeyOption = Annotated[
    str | None, typer.Option("--session-key", help="A keystore that may sign for the wallet; the wallet stays locked.")
]
DryFlag = Annotated[bool, typer.Option("--dry-run", help="Show the route and its price, compute nothing.")]
HistoryFlag = Annotated[bool, typer.Option("--no-history", help="Keep nothing of what is typed on this machine.")]

_COLDEST = 1e-6
"""Below it logits divided by the temperature are no finite numbers any more."""


def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")],
    model: ModelOption = None,
    max_tokens: TokensOption = 200,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Go on with the prompt itself, without a chat template.")] = False,
    bid: BidOption = None,
    max_price: PriceOption = None,
    dry_run: DryFlag = False,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    session_key: KeyOption = None,
    password_file: PasswordFileOption = None,
    as_json: JsonFlag = False,
) -> None:
    """One answer to one prompt, streamed."""
    text = message_of(sys.stdin.read if prompt == "-" else lambda: prompt)
    if not text.strip():
        raise BadInput("The prompt is empty", next_step="write something to answer")
    sampling = _sampling(temperature, top_k, top_p)
    joining = joined(network, wallet, session_key, password_file, model, quiet=as_json, bid=bid, max_price=max_price)
    with joining as place:
        from hivemint.client.generation.bill import Bill

        ids = encode(place.tokenizer, [{"role": "user", "content": text}], text if raw else None)
        if dry_run:
            show_plan(place.model.dry_run(ids, max_new_tokens=max_tokens), as_json)
        else:
            how = Asking(place.model, place.tokenizer, max_tokens, sampling, as_json)
            if sys.stderr.isatty() and not as_json:
                show_terms(how, ids)
            show(ask(how, ids, Bill()), as_json)


def chat(
    model: ModelOption = None,
    max_tokens: TokensOption = 400,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    system: Annotated[str | None, typer.Option(help="What the model should know before the first question.")] = None,
    bid: BidOption = None,
    max_price: PriceOption = None,
    network: NetworkOption = None,
    wallet: WalletOption = None,
    session_key: KeyOption = None,
    password_file: PasswordFileOption = None,
    no_history: HistoryFlag = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the last chat, which was not ended.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Talk with a model. Ctrl-C ends an answer, twice or Ctrl-D the chat; /help names what else there is.

    Without a terminal each line of standard input is a message. What begins with / is never sent, and never paid.
    """
    sampling = _sampling(temperature, top_k, top_p)
    first = message_of(lambda: system or "")
    at_terminal = not as_json and sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())
    history = history_file(Home.open()) if at_terminal and not no_history else None
    joining = joined(
        network,
        wallet,
        session_key,
        password_file,
        model,
        quiet=as_json,
        banner=at_terminal,
        bid=bid,
        max_price=max_price,
    )
    keep = resume or (at_terminal and not no_history)
    with joining as place, opened(place.model, keep, resume) as kept:
        how = Asking(place.model, place.tokenizer, max_tokens, sampling, as_json)
        lines: Lines = TerminalLines.open(history, list(COMMANDS)) if at_terminal else PipedLines()
        if at_terminal:
            show_banner(place, how)
        talk = Talk(place, how, lines, kept, first)
        if resume:
            talk.resume()
        talk.run()


def _sampling(temperature: float, top_k: int | None, top_p: float | None) -> dict[str, Any]:
    if temperature == 0:
        if top_k is not None or top_p is not None:
            raise BadInput("--top-k and --top-p need a temperature", next_step="add e.g. --temperature 0.7")
        return {"do_sample": False}
    if not _COLDEST <= temperature < math.inf:
        raise BadInput(f"{temperature:g} is no temperature to sample at", next_step="pass e.g. --temperature 0.7")
    if top_p is not None and top_p <= 0:
        raise BadInput(f"{top_p:g} is no share to sample within", next_step="pass e.g. --top-p 0.9")
    chosen = {"top_k": top_k, "top_p": top_p}
    return {"do_sample": True, "temperature": temperature} | {k: v for k, v in chosen.items() if v is not None}

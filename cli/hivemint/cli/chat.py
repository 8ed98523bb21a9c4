"""`hivemint generate` and `hivemint chat`: text through the swarm, streamed as it comes."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from hivemint.cli.console import JsonFlag, NetworkOption, PasswordFileOption, WalletOption, emit, err, need, out, table
from hivemint.protocol.credits import exact_credits, format_credits
from hivemint.protocol.errors import BadInput, HivemintError, ModelError
from hivemint.protocol.keystore import Keystores, read_password
from hivemint.protocol.network import Network
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from hivemint.client import SwarmModelForCausalLM
    from hivemint.client.pipeline import Plan

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
    text = _text(sys.stdin.read if prompt == "-" else lambda: prompt)
    if not text.strip():
        raise BadInput("The prompt is empty", next_step="write something to answer")
    sampling = _sampling(temperature, top_k, top_p)
    joining = _joined(network, wallet, session_key, password_file, model, quiet=as_json, bid=bid, max_price=max_price)
    with joining as (swarm_model, tokenizer):
        ids = _encode(tokenizer, [{"role": "user", "content": text}], text if raw else None)
        if dry_run:
            _show_plan(swarm_model.dry_run(ids, max_new_tokens=max_tokens), as_json)
        else:
            _show(_answer(swarm_model, tokenizer, ids, max_tokens, sampling, as_json), as_json)


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
    as_json: JsonFlag = False,
) -> None:
    """Talk with a model. Ctrl-C ends an answer, Ctrl-D (or an empty line) the talk. With --json: questions by line."""
    sampling = _sampling(temperature, top_k, top_p)
    turns = [{"role": "system", "content": _text(lambda: system or "")}] if system else []
    joining = _joined(network, wallet, session_key, password_file, model, quiet=as_json, bid=bid, max_price=max_price)
    with joining as (swarm_model, tokenizer), swarm_model.conversation() as talk:
        for question in _questions(as_json):
            turns.append({"role": "user", "content": question})
            ids = _encode(tokenizer, turns, None)
            answer = _answer(swarm_model, tokenizer, ids, max_tokens, {**sampling, "conversation": talk}, as_json)
            turns.append({"role": "assistant", "content": answer["text"]})
            _show(answer, as_json)


@contextmanager
def _joined(
    network: Path | None,
    wallet: str | None,
    session_key: str | None,
    password_file: Path | None,
    model: str | None,
    *,
    quiet: bool,
    **settings: Any,
) -> "Iterator[tuple[SwarmModelForCausalLM, Any]]":
    """The model, joined to its network, and its tokenizer. Cheap checks come before the slow imports."""
    from hivemint.client.settings import ClientSettings

    path = need(network, "No network file", "pass --network FILE or set HIVEMINT_NETWORK")
    place = Network.load(path)
    name = model or (place.models[0].name if place.models else None)
    name = need(name, "No model", "pass --model NAME: the network file names none")
    if place.models and not Path(name).is_dir() and "/" not in name:
        place.model(name)
    password = None
    chosen = ClientSettings.load(**settings)
    if wallet is None:
        _check_unpaid(str(chosen.bid), session_key, quiet)
    else:
        signing = session_key or wallet
        for needed in (wallet, signing):
            Keystores().find(needed)
        password = read_password(signing, file=password_file)
    with ExitStack() as open_now:
        with _spinner("joining the swarm", quiet):
            from hivemint.client.generation import words
            from hivemint.client.generation.causal_lm import SwarmModelForCausalLM

            open_now.enter_context(words.by_options())
            joined = SwarmModelForCausalLM.from_pretrained(
                name,
                network=path,
                wallet=wallet,
                session_key=session_key,
                password=password,
                progress=False,
                **settings,
            )
        open_now.enter_context(joined)
        yield joined, _tokenizer(joined.folder)


def _check_unpaid(bid: str, session_key: str | None, quiet: bool) -> None:
    """Nobody pays without a wallet, and it is said. Raises BadInput where something else was asked for."""
    asked = "a session key signs for one" if session_key else f"the bid is {bid}" if bid not in ("auto", "free") else ""
    if asked:
        raise BadInput("No wallet", why=asked, next_step="pass --wallet NAME or set HIVEMINT_WALLET")
    if not quiet:
        err.print("[dim]no wallet: asking for donated work (--wallet NAME pays, and is served first)[/]")


def _tokenizer(folder: Path) -> Any:
    """The model's own. Raises ModelError where its files are missing or damaged."""
    from transformers import AutoTokenizer

    try:
        # The library tells a damaged one by a bare Exception.
        if not isinstance(json.loads((folder / "tokenizer.json").read_bytes()), dict):
            raise _no_tokenizer(folder, "tokenizer.json is no JSON object")
    except FileNotFoundError:
        pass  # some models have an older form
    except ValueError as error:
        raise _no_tokenizer(folder, f"tokenizer.json is no JSON ({error})") from None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _no_tokenizer(folder, str(error).splitlines()[0]) from None


def _no_tokenizer(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"{folder} has no usable tokenizer", why=why, next_step="remove the folder and fetch the model again"
    )


def _answer(
    model: "SwarmModelForCausalLM", tokenizer: Any, ids: Any, max_tokens: int, sampling: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    """Generate and stream. Ctrl-C ends the answer where it is: what was computed is paid, nothing more."""
    from hivemint.client.generation.sequences import Bill

    clock = _Clock(tokenizer, quiet)
    bill = Bill()
    started = time.monotonic()
    stopped = False
    try:
        model.generate(ids, max_new_tokens=max_tokens, streamer=clock, bill=bill, **sampling)
    except KeyboardInterrupt:
        stopped = True
        clock.end()
    except HivemintError:
        if clock.ids:
            clock.end()  # what had come stays on the terminal, the error on lines of its own
        raise
    first = (clock.times[0] - started) if clock.times else None
    several = len(clock.times) > 1
    return {
        "text": tokenizer.decode(clock.ids, skip_special_tokens=True),
        "prompt_tokens": int(ids.shape[1]),
        "tokens": len(clock.ids),
        "stopped": stopped,
        "first_token_s": None if first is None else round(first, 3),
        "tokens_per_s": round((len(clock.times) - 1) / (clock.times[-1] - clock.times[0]), 2) if several else None,
        "spent_wei": bill.wei,
        **_way(bill.plans),
    }


def _way(plans: "list[Plan]") -> dict[str, Any]:
    """Where the answer came from, on which lane, and why on that one; a node's own words as one line."""
    if not plans:
        return {"lane": None, "nodes": [], "unpaid": ""}
    return {"lane": plans[0].lane, "nodes": _hops(plans[0]), "unpaid": plain(plans[0].unpaid)}


class _Clock:
    """A transformers streamer: prints words as they are complete, notes when tokens came."""

    def __init__(self, tokenizer: Any, quiet: bool) -> None:
        from transformers import TextStreamer

        class Printed(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if not quiet:
                    sys.stdout.write(plain(text, keep="\n\t") + ("\n" if stream_end else ""))
                    sys.stdout.flush()

        self.streamer: Any = Printed(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self.times: list[float] = []
        self._prompt_came = False

    def put(self, value: Any) -> None:
        if self._prompt_came:
            self.times.append(time.monotonic())
            self.ids.extend(value.reshape(-1).tolist())
        self._prompt_came = True
        self.streamer.put(value)

    def end(self) -> None:
        self.streamer.end()


def _encode(tokenizer: Any, turns: list[dict[str, str]], raw: str | None) -> Any:
    if raw is not None or not tokenizer.chat_template:
        text = raw if raw is not None else turns[-1]["content"]
        return tokenizer(text, return_tensors="pt").input_ids
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
        "input_ids"
    ]


def _text(read: Callable[[], str]) -> str:
    """Raises BadInput for bytes that are no text: an argument carries them as surrogates, which nobody can encode."""
    try:
        text = read()
        text.encode()
    except UnicodeError:
        raise BadInput(
            "The prompt is no text", why="it has bytes that are not UTF-8", next_step="convert it, e.g. with iconv"
        ) from None
    return text


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


def _questions(quiet: bool) -> Iterator[str]:
    asking = sys.stdin.isatty() and not quiet
    while True:
        try:
            line = _text(lambda: input("> " if asking else "")).strip()
        except EOFError:
            return
        if not line:
            return
        yield line


@contextmanager
def _spinner(text: str, quiet: bool) -> Iterator[None]:
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(text):
        yield


def _show_plan(plan: "Plan", as_json: bool) -> None:
    if as_json:
        emit(
            {
                "lane": plan.lane,
                "tokens": plan.tokens,
                "cost_wei": int(plan.cost),
                "reserved_wei": int(plan.reserved),
                "hops": _hops(plan),
                "notes": list(plan.notes),
                "unpaid": plan.unpaid,
            }
        )
        return
    lines = [(hop.name, f"{hop.first}:{hop.end}", exact_credits(hop.price), f"{hop.wait_ms:.0f}") for hop in plan.hops]
    table("Route", "node", "blocks", ">credits a token", ">wait ms", rows=lines)
    out.print(
        f"{plan.lane} lane, {plan.tokens} tokens: {format_credits(plan.cost)} "
        f"(sessions for at most {format_credits(plan.reserved)}). {plain('; '.join(plan.notes))}",
        highlight=False,
        markup=False,
    )


def _hops(plan: "Plan") -> list[dict[str, Any]]:
    from hivemint.swarm.identity import peer_text

    return [
        {
            "node": peer_text(hop.peer),
            "first": hop.first,
            "end": hop.end,
            "price_wei": int(hop.price),
            "wait_ms": round(hop.wait_ms, 1),
        }
        for hop in plan.hops
    ]


def _show(answer: dict[str, Any], as_json: bool) -> None:
    """The text is on the terminal already: what remains are its figures."""
    if as_json:
        return emit(answer)
    rate = f", {answer['tokens_per_s']:.1f} tokens/s" if answer["tokens_per_s"] else ""
    paid = answer["spent_wei"] or answer["lane"] == "paid"
    cost = (f", {format_credits(answer['spent_wei'])}" if paid else "") + (
        ", donated lane" if answer["lane"] == "donated" else ""
    )
    why = f": {answer['unpaid']}" if answer["unpaid"] else ""
    ended = " (stopped)" if answer["stopped"] else ""
    line = Text(f"{answer['tokens']} tokens{rate}{cost}{ended}{why}", style="dim")
    return err.print(line, highlight=False, soft_wrap=True)

"""A talk: messages go to the model and are paid, what begins with / is for this program and never is."""

import difflib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hivemint.cli.console import emit, err, show_error
from hivemint.cli.talk.answers import Asking, ask, encode
from hivemint.cli.talk.joining import Joined
from hivemint.cli.talk.keeping import ChatMemory
from hivemint.cli.talk.lines import Lines, unseen
from hivemint.cli.talk.means import means_of
from hivemint.cli.talk.views import say, show, two_columns
from hivemint.protocol.credits import format_credits
from hivemint.protocol.errors import BadInput, HivemintError
from hivemint.protocol.home import write_private
from hivemint.protocol.text import plain

if TYPE_CHECKING:
    from hivemint.client.generation.sequences import Turns

COMMANDS = {
    "/help": "show these words",
    "/bye": "leave; so does Ctrl-D, or Ctrl-C twice",
    "/cost": "what this chat has cost, and what may still be spent",
    "/lane": "lane, nodes and price of the next answer; /lane BID sets the bid",
    "/system": "what the model is told first; /system TEXT changes it",
    "/save": "write the chat down; /save FILE names it (.json for JSON)",
    "/clear": "forget what was said, and begin anew",
}
_KEYS = "Ctrl-C ends an answer. Alt-Enter begins a new line, a paste is one message. Arrows bring back earlier ones."


class Talk:
    """`run` until the messages end. A person sees an error and goes on; without one it ends the talk."""

    def __init__(self, place: Joined, how: Asking, lines: Lines, kept: "Turns", system: str = "") -> None:
        """`kept`: the conversation that keeps the sessions of an answer open for the next."""
        from hivemint.client.generation.bill import Bill

        self._place, self._how, self._lines, self._kept = place, how, lines, kept
        self._memory = ChatMemory(kept, how.tokenizer)
        self._earlier = self._memory.found()
        self._system = system
        self._turns: list[dict[str, str]] = []
        self._bill, self._answers = Bill(), 0
        self._verbs: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/cost": self._cost,
            "/lane": self._lane,
            "/system": self._set_system,
            "/save": self._save,
            "/clear": self._clear,
        }

    def resume(self) -> None:
        """Go on with the chat that broke off; with its last answer first, if that did. Raises BadInput: there is none.

        As at any message, a person sees what goes wrong.
        """
        found, self._earlier = self._earlier, None
        if found is None:
            raise BadInput("There is no chat to go on with", why="the last one was ended, or nothing of it was kept")
        self._system, self._turns = found.system or self._system, found.turns
        say(f"going on with a chat of {len(found.turns)} messages")
        if found.turns and found.turns[-1]["role"] == "user":
            message = self._turns.pop()["content"]
            self._guarded(lambda: self._ask(message, resumed=True))

    def run(self) -> None:
        if self._earlier is not None and self._lines.interactive:
            say("an earlier chat broke off: hivemint chat --resume goes on with it, a message here takes its place")
        while (message := self._lines.next()) is not None:
            if message == "/bye":
                return
            if message:
                self._take(message)

    def _take(self, message: str) -> None:
        self._guarded(lambda: self._command(message) if message.startswith("/") else self._ask(message))

    def _guarded(self, act: Callable[[], None]) -> None:
        """Raises what went wrong, unless a person can read it and go on."""
        try:
            with unseen(self._lines.interactive):
                act()
        except KeyboardInterrupt:
            if not self._lines.interactive:
                raise
            self._lines.interrupted = True
        except HivemintError as error:
            if not self._lines.interactive:
                raise
            show_error(error)

    def _ask(self, message: str, *, resumed: bool = False) -> None:
        """`resumed`: a part of the answer may have come to an earlier process."""
        from hivemint.client.generation.bill import Bill

        if self._earlier is not None:
            self._earlier = None
            self._kept.close()
        bill = Bill()
        turns = [*self._turns, {"role": "user", "content": message}]
        try:
            ids = encode(self._how.tokenizer, self._told_first() + turns)
            already = self._memory.already(ids) if resumed else None
            self._memory.keep(self._told_first() + turns)
            answer = ask(self._how, ids, bill, already=already, conversation=self._kept)
        except HivemintError:
            if bill.tokens and not self._how.quiet:
                say(f"broke off: {bill}")
            raise
        finally:
            self._bill.add(bill)  # what failed half-way has cost something too
        self._answers += 1
        self._turns = [*turns, {"role": "assistant", "content": answer.text}]
        self._memory.keep(self._told_first() + self._turns)
        self._lines.interrupted = answer.stopped
        show(answer, self._how.quiet)

    def _told_first(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self._system}] if self._system else []

    # ---- what begins with /

    def _command(self, message: str) -> None:
        """Raises BadInput for a word that there is none of: nothing is guessed, nothing sent."""
        word, _, rest = message.partition(" ")
        verb = self._verbs.get(word)
        if verb is None:
            near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.7)
            raise BadInput(
                f"There is no {plain(word.splitlines()[0][:40])}" + (f", did you mean {near[0]}?" if near else ""),
                why="what begins with / is for this program: nothing was sent, and nothing paid",
                next_step="/help names the words that there are",
            )
        if not self._lines.interactive and (word == "/save" or (word == "/lane" and rest.strip())):
            raise BadInput(
                f"{word} is for a terminal",
                why="in a pipe a line may be a stranger's: it writes no file and sets no price",
                next_step="keep the output of `hivemint chat --json`" if word == "/save" else "pass --bid",
            )
        verb(rest.strip())

    def _tell(self, word: str, text: str, **document: Any) -> None:
        """To a person on stderr, so that answers alone are on stdout; to a program one document."""
        if self._how.quiet:
            emit({"command": word, **(document or {"text": text})})
        else:
            say(text)

    def _help(self, _: str) -> None:
        if self._how.quiet:
            return emit({"command": "/help", "commands": COMMANDS})
        err.print(two_columns(COMMANDS))
        return say(_KEYS)

    def _cost(self, _: str) -> None:
        bill, means = self._bill, means_of(self._place.model, self._place.network) if self._place.wallet else None
        text = (
            f"{self._answers} answer{'' if self._answers == 1 else 's'}: {bill.prompt_tokens} tokens in, "
            f"{bill.tokens} out, {format_credits(bill.spent)} spent"
        )
        told = {"answers": self._answers, "prompt_tokens": bill.prompt_tokens, "tokens": bill.tokens}
        told |= {"spent_wei": bill.spent, **(means.document() if means else {})}
        self._tell("/cost", text + (f"; {means}" if means else "; no wallet: nothing is paid"), **told)

    def _lane(self, bid: str) -> None:
        from hivemint.client.generation.bill import hops
        from hivemint.client.settings import Bid

        swarm: Any = self._place.model.swarm
        if bid:
            chosen = Bid.parse(bid)
            if self._place.wallet is None and chosen.kind not in ("free", "auto"):
                raise BadInput("No wallet", why=f"the bid is {chosen}", next_step="begin again with --wallet NAME")
        before = swarm.settings
        if bid and self._place.wallet is not None:
            swarm.settings = before.model_copy(update={"bid": chosen})
        ids = encode(self._how.tokenizer, [*self._told_first(), *self._turns, {"role": "user", "content": "Hello"}])
        try:
            plan = self._place.model.dry_run(ids, max_new_tokens=self._how.max_tokens)
        except HivemintError:
            swarm.settings = before  # a bid that finds no way would end every later answer
            raise
        if bid:
            self._kept.close()  # the next answer opens its sessions anew, at the new price
        told: dict[str, Any] = {"bid": str(swarm.settings.bid), "lane": plan.lane, "unpaid": plain(plan.unpaid)}
        told |= {"notes": [plain(note) for note in plan.notes], "nodes": hops(plan.hops), "tokens": plan.tokens}
        self._tell("/lane", f"bid {told['bid']}: {plain(str(plan))}", **told, cost_wei=int(plan.cost))

    def _set_system(self, text: str) -> None:
        if text:
            self._system = text
        self._tell("/system", self._system or "nothing is told before the first question", system=self._system)

    def _save(self, name: str) -> None:
        """Raises BadInput where there is nothing to save, or a file already."""
        if not self._turns:
            raise BadInput("Nothing was said yet", next_step="/save when there is something to keep")
        turns = self._told_first() + self._turns
        try:
            path = Path(name or time.strftime("chat-%Y%m%d-%H%M%S.md")).expanduser()
            text = json.dumps(turns, indent=1) if path.suffix == ".json" else self._as_text(turns)
            write_private(path, (text + "\n").encode())
        except FileExistsError:
            raise BadInput(f"{path} is there already", next_step="name another file: /save FILE") from None
        except (OSError, ValueError, RuntimeError) as error:  # no such user's home, a name with a zero byte
            why = getattr(error, "strerror", None) or str(error)
            raise BadInput(
                f"{plain(name)} cannot be written", why=why, next_step="name another file: /save FILE"
            ) from None
        self._tell("/save", f"saved in {path}", file=str(path))

    def _as_text(self, turns: list[dict[str, str]]) -> str:
        who = {"system": "System", "user": "You", "assistant": self._place.name}
        said = [(who[one["role"]], plain(one["content"], keep="\n\t").strip()) for one in turns]
        return "\n\n".join(f"## {name}\n\n{text}" for name, text in said)

    def _clear(self, _: str) -> None:
        self._turns = []
        self._kept.close()
        self._tell("/clear", "what was said is forgotten; the nodes may have kept it", cleared=True)

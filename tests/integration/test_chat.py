"""`hivemint chat` on a terminal and in a pipe, with real nodes that are paid: what is sent, and what never is."""

import json
import os
import re
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from hivemint.protocol.home import Home
from hivemint.protocol.keystore import Keystores
from hivemint.protocol.node_name import node_name
from hivemint.protocol.signing import Signer
from hivemint.testnet.localnet import CHEAP_SCRYPT, PASSWORD
from hivemint.testnet.processes import hivemint
from support.localnet import RealNet
from support.terminal import Terminal, paste

pytest_plugins = ["support.localnet"]
PROMPT, BILL = r"\n>", r"\d+ tokens[^>]*->[^>]*\sHMC"

BEGUN = r"the sea\.\s*\n\s*\w"


@dataclass
class Chatter:
    """Somebody with a home and a funded wallet of his own."""

    net: RealNet
    wallet: Signer
    home: Home
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        base = {name: value for name, value in os.environ.items() if not name.startswith("HIVEMINT_")}
        return base | {
            "HIVEMINT_HOME": str(self.home.root),
            "HIVEMINT_PASSWORD": PASSWORD,
            "HIVEMINT_NETWORK": str(self.net.net.network_file),
        }

    def command(self, *words: str, wallet: bool = True) -> list[str]:
        paying = ("--wallet", "eve") if wallet else ()
        return hivemint("chat", "--model", str(self.net.net.model.folder), *paying, *words)

    def chat(self, *words: str, columns: int = 100, wallet: bool = True) -> Terminal:
        return Terminal(self.command(*words, wallet=wallet), self.environment, columns=columns)

    def piped(self, text: str, *words: str, wallet: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words, wallet=wallet),
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def sessions(self) -> int:
        return sum(len(self.net.sessions(plan, self.wallet)) for plan in self.net.nodes)


@pytest.fixture
def eve(localnet: RealNet, tmp_path: Path) -> Chatter:
    wallet, home = localnet.payer(), Home.open(tmp_path / "home")
    Keystores(home.keystores).add("eve", wallet, PASSWORD, n=CHEAP_SCRYPT)
    return Chatter(localnet, wallet, home, tmp_path)


def test_a_chat_on_a_terminal(eve: Chatter) -> None:
    """Banner, words with / that nobody pays, a paste as one message, Ctrl-C, and the way out."""
    saved = eve.folder / "talk.json"
    with eve.chat("--max-tokens", "8") as terminal:
        banner = terminal.wait(PROMPT)
        assert re.search(r"^lane +paid, 2 nodes: 0\.\d+ HMC a token", banner, re.MULTILINE)
        assert re.search(r"^balance +eve: 0 HMC in the wallet, .* may still be spent", banner, re.MULTILINE)
        assert "the nodes can read what you type" in banner
        assert "docs/trust-model.md" in banner
        assert "/bye or Ctrl-D" in banner

        terminal.answer("\r", PROMPT)
        terminal.answer("   \r", PROMPT)
        told = terminal.answer("/cots\r", r"next .*")
        assert "There is no /cots, did you mean /cost?" in told
        terminal.answer(paste("/* code\rthat begins so */") + "\r", "There is no /\\*")
        assert "0 answers" in terminal.answer("/cost\r", "may still be spent")
        assert eve.sessions() == 0, "nothing was sent"

        terminal.answer(paste("Name one colour.\r\nOnly one."), "Only one")
        bill = terminal.answer("\r", BILL)
        assert f"by {node_name(eve.net.operator(eve.net.first).address)} 0:15 -> " in bill.replace("\n", " ")
        assert "1 answer:" in terminal.answer("/cost\r", "may still be spent")
        assert eve.sessions() == 2, "one message, at two nodes"
        terminal.answer(f"/save {saved}\r", "saved in")
        turns = json.loads(saved.read_text())
        assert [turn["role"] for turn in turns] == ["user", "assistant"]
        assert turns[0]["content"] == "Name one colour.\nOnly one."

        terminal.answer("\x03", "Ctrl-C again")
        terminal.press("\x03")
        assert terminal.ended() == 0
        assert "Traceback" not in terminal.shown


def test_one_answer_at_a_terminal_tells_its_price_and_its_readers_first(eve: Chatter) -> None:
    words = ["Name one colour.", "--max-tokens", "8", "--model", str(eve.net.net.model.folder), "--wallet", "eve"]
    with Terminal(hivemint("generate", *words), eve.environment, columns=100) as terminal:
        bill = terminal.wait(BILL)
        assert terminal.ended() == 0
        first, _, _ = bill.partition("docs/trust-model.md")
        assert re.search(r"^lane +paid, 2 nodes: 0\.\d+ HMC a token", first, re.MULTILINE)
        assert "the nodes can read what you type" in first
    aside = hivemint("generate", *words)
    quiet = subprocess.run(aside, env=eve.environment, capture_output=True, text=True, timeout=180, check=True)
    assert "lane  " not in quiet.stderr + quiet.stdout, "nobody watches: the bill has it"


def test_ctrl_c_ends_an_answer_and_what_is_pasted_meanwhile_is_one_message(eve: Chatter) -> None:
    with eve.chat("--max-tokens", "60", columns=60) as terminal:
        banner = terminal.wait(PROMPT).partition("model  ")[2]
        assert max(map(len, banner.splitlines())) <= 60
        since = terminal.press("Tell me of the sea.\r")
        terminal.wait(BEGUN, since)
        terminal.press(paste("and\rthen?"))
        assert "then?" not in terminal.wait(BILL, since).partition("HMC")[0], "unseen until the next prompt"
        terminal.wait(r"> ?and\n *then\?", since)
        assert eve.sessions() == 2, "nothing was sent"
        terminal.answer("\x03", PROMPT)  # it clears what was typed

        since = terminal.press("Tell me more of the sea.\r")
        terminal.wait(BEGUN, since)
        terminal.press("\x03")
        terminal.wait(r"\(stopped\)", since)
        told = re.sub(r"\s+", " ", terminal.answer("/cost\r", "answers: [^;]*;"))
        assert int(re.search(r"(\d+) out", told)[1]) < 120  # type: ignore[index]
        terminal.press("/bye\r")
        assert terminal.ended() == 0


def test_what_was_typed_comes_back_unless_nothing_is_kept(eve: Chatter) -> None:
    path = eve.home.client / "chat-history"
    with eve.chat("--no-history", wallet=False) as terminal:
        terminal.wait(PROMPT)
        terminal.answer("/system secret\r", r"\nsecret\s*\n>")
        terminal.press("\x04")
        assert terminal.ended() == 0
    assert not path.exists()
    for keys, expected in (("/system Be brief.\r", r"\nBe brief\.\s*\n>"), ("\x1b[A\r", r"\nBe brief\.\s*\n>")):
        with eve.chat(wallet=False) as terminal:
            assert "no wallet, nothing is paid" in terminal.wait(PROMPT).replace("\n", " ")
            terminal.answer(keys, expected)
            terminal.press("\x04")
            assert terminal.ended() == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_pipe_is_a_message_a_line_without_codes(eve: Chatter) -> None:
    done = eve.piped("Hello\n\n/cost\nAnd you?\n", "--max-tokens", "3")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 2, done.stdout
    bills = [line for line in done.stderr.splitlines() if " by " in line]
    assert len(bills) == 2
    assert all("HMC" in line for line in bills)
    assert "1 answer: " in done.stderr

    before = eve.sessions()
    refused = eve.piped("/quit\nHello\n", "--max-tokens", "3")
    assert refused.returncode != 0
    assert "There is no /quit" in refused.stderr
    assert eve.sessions() == before

    free = eve.piped("Hello\n/bye\nnever\n", "--max-tokens", "3", "--json", wallet=False)
    (told,) = map(json.loads, free.stdout.splitlines())
    assert (told["lane"], told["spent_wei"], told["tokens"]) == ("donated", 0, 3)
    assert [one["name"] for one in told["nodes"]] == [
        node_name(eve.net.operator(plan).address) for plan in (eve.net.first, eve.net.last)
    ]


@pytest.mark.slow
def test_a_chat_that_was_killed_goes_on_in_mid_answer(eve: Chatter) -> None:
    """kill -9: the answer is that of a chat that nobody killed, and no more than the step under way is paid again."""
    words, question = ("--max-tokens", "48"), "Tell me of the sea."

    def signed() -> list[int]:
        """Tokens by node, once all that was under way has ended."""
        seen: list[list[int]] = []

        def settled() -> bool:
            found = [eve.net.sessions(plan, eve.wallet) for plan in eve.net.nodes]
            seen.append([sum(one["signed_tokens"] for one in each) for each in found])
            return len(seen) > 10 and seen[-1] == seen[-10] and min(seen[-1]) > 0

        eve.net.until(settled, "end of all sessions")
        return seen[-1]

    done = eve.piped(question + "\n", *words)
    assert done.returncode == 0, done.stderr
    undisturbed, kept = signed(), eve.home.client / "chat-talk"
    with eve.chat(*words) as terminal:
        terminal.wait(PROMPT)
        terminal.wait(BEGUN, terminal.press(question + "\r"))
        terminal.kill()
    signed()  # a step under way at a node is no state to begin with
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert question.encode() not in kept.read_bytes()
    with eve.chat(*words, "--resume") as terminal:
        told = terminal.wait(BILL)
        assert "going on with a chat of 1 messages" in told
        assert "computed again" not in told
        assert " ".join(done.stdout.split()) in " ".join(told.split())
        terminal.press("/bye\r")
        assert terminal.ended() == 0
    assert not kept.exists()
    for before, after in zip(undisturbed, signed(), strict=True):
        assert before <= after - before <= before + 2
    none = eve.piped("", *words, "--resume")
    assert none.returncode != 0
    assert "There is no chat to go on with" in none.stderr

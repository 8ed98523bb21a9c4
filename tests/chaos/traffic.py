"""A client of a run, in a process of its own: asks for one thing after the other and compares each with the library.

    python -m chaos.traffic JOB.json

Reads words from stdin, a line each, and answers each with one line of JSON: `donate`, `go`, `stop`, `sessions COUNT`,
`end`. What it asks for is in the job's file; a line goes to the job's results as each thing begins and as it ends, so
that a client that was killed goes on with the next one.
"""

import faulthandler
import json
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from chaos.job import Job
from chaos.schedule import Ask, Item
from hivemint.client import SwarmModelForCausalLM
from hivemint.client.generation.bill import Bill
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.home import Home
from hivemint.protocol.signing import Signer

TRIES = 5
"""Of what has no fail-over of its own: a bare pipeline."""
AT_ONCE = 4
"""Short answers at a time."""
SHARED = 24
"""Tokens that the texts of a batch begin with alike."""
RELATIVE, ABSOLUTE = 1e-3, 1e-5
"""What states may differ by: batches of other sizes round otherwise."""
TIE = 2e-5
"""Of logits about 10: some twenty roundings of one."""
REST = 1.0
"""Seconds until a thread asks again after an error, as people do."""


class Differs(Exception):
    """What came is not what an undisturbed run gives."""


class Asker:
    """The swarm's model and the library's own, side by side; of one thread.

    `bill`: of what was asked for last. `bare`: wei that bare pipelines have cost, which the model does not count.
    """

    def __init__(self, model: Any, whole: Any) -> None:
        self._model, self._whole = model, whole
        self.bill, self.bare = Bill(), 0

    def ask(self, item: Item) -> None:
        """Raises Differs; HivemintError where the swarm cannot go on."""
        self.bill = Bill()
        kinds: dict[Ask, Callable[[Item, torch.Generator], None]] = {
            Ask.GREEDY: self._greedy,
            Ask.SAMPLED: self._sampled,
            Ask.FORKED: self._forked,
            Ask.BATCH: self._batch,
            Ask.TALK: self._talk,
            Ask.CROPPED: self._cropped,
            Ask.WHOLE: self._logits,
            Ask.TRAINED: self._trained,
        }
        kinds[item.ask](item, torch.Generator().manual_seed(item.seed))

    def _greedy(self, item: Item, dice: torch.Generator) -> None:
        self._compare(self._tokens(dice, 1, item.prompt), item, do_sample=False)

    def _sampled(self, item: Item, dice: torch.Generator) -> None:
        self._compare(self._tokens(dice, 1, item.prompt), item, do_sample=True, temperature=0.9, top_k=40)

    def _forked(self, item: Item, dice: torch.Generator) -> None:
        """Three answers to one prompt, which is computed once."""
        ids = self._tokens(dice, 1, item.prompt)
        self._compare(ids, item, do_sample=True, num_return_sequences=3)

    def _batch(self, item: Item, dice: torch.Generator) -> None:
        start = self._tokens(dice, 1, SHARED).expand(3, -1)
        self._compare(torch.cat([start, self._tokens(dice, 3, 5)], 1), item, do_sample=False)

    def _talk(self, item: Item, dice: torch.Generator) -> None:
        """A next turn, then another one in its place: what was said is cut off there."""
        ids, few = self._tokens(dice, 1, item.prompt), Item(0, item.ask, item.seed, item.prompt, item.tokens // 3 + 2)
        with self._model.conversation() as talk:
            said = self._compare(ids, few, do_sample=False, conversation=talk)
            turn = torch.cat([said, self._tokens(dice, 1, 6)], 1)
            longer = self._compare(turn, few, do_sample=False, conversation=talk)
            other = torch.cat([longer[:, : said.shape[1] + 2], self._tokens(dice, 1, 4)], 1)
            self._compare(other, few, do_sample=False, conversation=talk)

    def _compare(self, ids: torch.Tensor, item: Item, conversation: Any = None, **how: Any) -> torch.Tensor:
        how = {"max_new_tokens": item.tokens, "min_new_tokens": item.tokens, "pad_token_id": 0, **how}
        samples, mask = how["do_sample"], torch.ones_like(ids)
        if samples:  # there is one source of random numbers: who draws none leaves it alone
            torch.manual_seed(item.seed)
        ours: torch.Tensor = self._model.generate(
            ids, conversation=conversation, bill=self.bill, attention_mask=mask, **how
        )
        if samples:
            torch.manual_seed(item.seed)
        theirs = self._whole.generate(ids, attention_mask=mask, **how)
        if not torch.equal(ours, theirs) and (samples or not self._as_good(ours, ids.shape[1])):
            where = (ours != theirs).nonzero().tolist()[:1] if ours.shape == theirs.shape else [ours.shape]
            raise Differs(f"the text differs from {where} on, after a prompt of {ids.shape[1]} tokens")
        return ours

    def _as_good(self, ours: torch.Tensor, start: int) -> bool:
        """Whether each token of a greedy answer `[rows, length]` is one that the library could have taken: its logit is
        the greatest there, within what batches of other sizes round otherwise. From a tie on both texts are right."""
        with torch.no_grad():
            logits = self._whole(ours).logits[:, start - 1 : -1]
        taken = logits.gather(-1, ours[:, start:, None]).squeeze(-1)
        return bool((logits.amax(-1) - taken <= TIE).all())

    def _cropped(self, item: Item, dice: torch.Generator) -> None:
        """A bare pipeline goes back to an earlier position and on with other tokens."""
        ids, other = self._tokens(dice, 1, item.prompt)[0], self._tokens(dice, 1, 12)[0]
        back = item.prompt // 2
        for left in reversed(range(TRIES)):
            pipeline = self._model.run(self._model.swarm.open(item.prompt + 40))
            try:
                first = self._model.run(pipeline.forward(self._model.embed(ids), rows="all"))
                pipeline.crop(back)
                second = self._model.run(pipeline.forward(self._model.embed(other, back), rows="all"))
            except HivemintError as error:
                if not left or not self._model.swarm.another_way(error):
                    raise
            else:
                self._same_states(first, ids)
                self._same_states(second, torch.cat([ids[:back], other]))
                return
            finally:
                with suppress(HivemintError):
                    self._model.run(pipeline.close())
                self.bare += pipeline.spent

    def _same_states(self, states: torch.Tensor, ids: torch.Tensor) -> None:
        """`states` are the last rows of the last block, before the norm, over the text `ids`."""
        with torch.no_grad():
            ours, theirs = self._model.logits(states), self._whole(ids.unsqueeze(0)).logits[0, -len(states) :]
        if not torch.allclose(ours, theirs, rtol=RELATIVE, atol=ABSOLUTE):
            raise Differs(f"states differ by {(ours - theirs).abs().max():.3g} at {len(ids)} tokens")

    def _logits(self, item: Item, dice: torch.Generator) -> None:
        ids = self._tokens(dice, 2, item.prompt)
        ours = self._model(ids).logits
        with torch.no_grad():
            theirs = self._whole(ids).logits
        if not torch.allclose(ours, theirs, rtol=RELATIVE, atol=ABSOLUTE):
            raise Differs(f"logits differ by {(ours - theirs).abs().max():.3g}")

    def _trained(self, item: Item, dice: torch.Generator) -> None:
        """Two passes forward and back; the gradient is that of the whole model."""
        length = min(item.prompt, 32)
        with self._model.blocks(tokens=length, sequences=2, rounds=2) as blocks:
            for _ in range(2):
                hidden = torch.randn(2, length, blocks.hidden_size, generator=dice)
                ours = self._gradient(lambda x: self._model.logits(blocks(x)), hidden)
                theirs = self._gradient(lambda x: self._whole(inputs_embeds=x).logits, hidden)
                if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max())):
                    raise Differs(f"gradients differ by {(ours - theirs).abs().max():.3g}")

    @staticmethod
    def _gradient(run: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.clone().requires_grad_(True)
        return torch.autograd.grad((run(x) ** 2).mean(), x)[0]

    def _tokens(self, dice: torch.Generator, rows: int, count: int) -> torch.Tensor:
        return torch.randint(3, self._whole.config.vocab_size, (rows, count), generator=dice)


class Client:
    """The process."""

    def __init__(self, job: Job, model: Any) -> None:
        self._job, self._model = job, model
        auto: Any = AutoModelForCausalLM
        self._whole = auto.from_pretrained(job.model).eval()
        self._results, self._writing = Path(job.results), threading.Lock()
        self._promised = self._totals()
        self._threads: list[threading.Thread] = []
        self._askers: list[Asker] = []
        self._over = threading.Event()

    def serve(self) -> None:
        """Words from stdin, until `end` or the end of it."""
        self._say({"event": "ready", "name": self._job.name})
        for line in sys.stdin:
            word, *numbers = line.split()
            if word == "end":
                break
            if word == "donate":
                self._model.generate(torch.full((1, 400), 5), max_new_tokens=2, min_new_tokens=2, do_sample=False)
                self._say({"event": "donated"})
            elif word == "go":
                self._go()
            elif word == "stop":
                self._stop()
                self._say({"event": "stopped"})
            elif word == "sessions":
                self._say({"event": "had", "failed": self._sessions(int(numbers[0]))})

    def tell_end(self) -> None:
        grown = {node: total - self._promised.get(node, 0) for node, total in self._totals().items()}
        spent = int(self._model.spent) + sum(asker.bare for asker in self._askers)
        self._say({"event": "ended", "spent": spent, "promised": sum(grown.values())})

    def _totals(self) -> dict[str, int]:
        """What this wallet has promised each node."""
        return {str(node): int(total) for node, (total, _) in self._model.swarm.payer.book.totals().items()}

    def _go(self) -> None:
        self._over.clear()
        self._threads = [threading.Thread(target=self._work, args=one) for one in enumerate(self._job.threads)]
        for thread in self._threads:
            thread.start()

    def _stop(self) -> None:
        """When what is under way has ended."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self, thread: int, items: list[Item]) -> None:
        asker = Asker(self._model, self._whole)
        self._askers.append(asker)
        for item in items[self._begun(thread) :]:
            if self._over.is_set():
                return
            self._note({"began": time.monotonic(), "thread": thread, "number": item.number, "ask": item.ask})
            error, told = "", ""
            try:
                asker.ask(item)
            except Differs as found:
                error, told = "differs", str(found)
            except HivemintError as found:
                error, told = "refused", f"{type(found).__name__}: {found} {getattr(found, 'why', '')}"
            except Exception:  # noqa: BLE001 - that is what is looked for
                error, told = "traceback", traceback.format_exc()
            self._note(
                {
                    "ended": time.monotonic(),
                    "thread": thread,
                    "number": item.number,
                    "ask": item.ask,
                    "error": error,
                    "told": told,
                    "replayed": asker.bill.replayed,
                    "paid again": asker.bill.paid_again,
                }
            )
            if error:
                self._over.wait(REST)

    def _begun(self, thread: int) -> int:
        """How many things this thread has begun in this life and those before."""
        if not self._results.exists():
            return 0
        lines = [json.loads(line) for line in self._results.read_text().splitlines()]
        return sum("began" in line and line["thread"] == thread for line in lines)

    def _sessions(self, count: int) -> int:
        """So many short answers, one session a node each, some at a time; how many failed."""
        ids = torch.arange(10, 18).unsqueeze(0)

        def failed(_: int) -> bool:
            try:
                self._model.generate(ids, max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
            except HivemintError:
                return True
            return False

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return sum(pool.map(failed, range(count)))

    def _note(self, line: dict[str, Any]) -> None:
        with self._writing, self._results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @staticmethod
    def _say(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def main(path: str) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    torch.set_num_threads(1)
    job = Job.read(Path(path))
    wallet = Signer(bytes.fromhex(job.wallet)) if job.wallet else None
    home = Home.open(Path(job.home))
    model = SwarmModelForCausalLM.from_pretrained(
        job.model, network=job.network, wallet=wallet, home=home, progress=False, **job.settings
    )
    with model:
        client = Client(job, model)
        client.serve()
    client.tell_end()


if __name__ == "__main__":
    main(sys.argv[1])

"""`SwarmModelForCausalLM`: transformers' own `generate`, with the blocks computed by the swarm.

    with SwarmModelForCausalLM.from_pretrained("SmolLM2-135M-Instruct", network="network.toml", wallet="bob") as model:
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
        ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
        print(model.dry_run(ids, max_new_tokens=20))
        print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))
        print(model.last_call)

There is no local K/V cache: each row of a batch has its sessions, and a step sends only the positions that are new.
"""

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from transformers import GenerationConfig, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from hivemint.client.generation import full_pass
from hivemint.client.generation.bill import Bill
from hivemint.client.generation.decoding import SessionDecoding
from hivemint.client.generation.drop_in import DropIn, known_to_pipelines, place_of
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.joining import progress_line
from hivemint.client.generation.loop import LoopThread
from hivemint.client.generation.membership import Membership
from hivemint.client.generation.sequences import Sequences, Turns, padding, summed
from hivemint.client.generation.spending import Spending
from hivemint.client.generation.tuning import ROUNDS, RemoteBlocks
from hivemint.client.generation.words import in_python
from hivemint.client.kept import KeptTalk
from hivemint.client.pipeline import Plan, Swarm
from hivemint.model import local_models
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput, HivemintError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer

T = TypeVar("T")


class SwarmModelForCausalLM(DropIn, SessionDecoding):
    """A causal language model whose ends are here and whose blocks are at the swarm's nodes.

    Synchronous, as transformers is; the network runs in a thread of its own. Close it, or use it as a context manager;
    one that is dropped, or alive when the interpreter ends, leaves the network by itself. Several threads may call
    `generate` at once: each call has its own sessions. A fork can't use it: load it where it is used.
    """

    def __init__(self, model: LocalModel, ends: Ends, swarm: Swarm, loop: LoopThread) -> None:
        """`from_pretrained` makes one."""
        self.folder: Path = model.folder
        self.config: PretrainedConfig = ends.config
        self.generation_config: GenerationConfig = ends.generation_config(model.folder)
        self.swarm = swarm
        self._local, self._ends, self._loop = model, ends, loop
        self._spending = Spending()
        self._membership = Membership(self, swarm, loop)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        network: str | Path | Network | None = None,
        wallet: str | Signer | None = None,
        password: str | None = None,
        home: Home | None = None,
        adapter: str | Path | None = None,
        progress: bool | None = None,
        **settings: Any,
    ) -> Self:
        """Load the ends of `model` and join `network` with the keystore `wallet`.

        `model` is the name of a pulled model, a folder, or a hub's id; None: the first that the network names.
        `network` is a network.toml; None: that of `$HIVEMINT_NETWORK`. Without a wallet a throw-away key asks for
        donated work; `password` opens the keystore, else `$HIVEMINT_PASSWORD` or the terminal. `adapter` is the folder
        of a PEFT LoRA adapter: each node loads its part for the sessions of this model alone. `progress` None tells on
        stderr what is waited for, on a terminal or in a notebook only; False never, True always. `dtype` and
        `device_map` mean embeddings and head, as in `to`. `settings` are those below, e.g. `bid="2x"`, `max_price`.

        Raises `ConfigError` (settings, network), `ModelError`, `WalletError`, `ChainError` or `SwarmError`.
        """
        from hivemint.client.sessions.swarm_client import connect

        device, dtype = place_of(settings)
        try:
            place = Network.of(network)
            name = model if model is not None else _first_of(place)
            with progress_line(progress) as tell:
                tell(f"hivemint: reading embeddings and head of {name}")
                local = local_models.resolve(name, home=home)
                ends, loop = Ends.load(local), LoopThread()
                try:
                    tell(f"hivemint: joining the network {place.name}")
                    chosen = {"wallet": wallet, "password": password, "home": home, "adapter": adapter} | settings
                    made = cls(local, ends, loop.run(lambda: connect(local, network=place, **chosen)), loop)
                except BaseException:
                    loop.stop()
                    raise
        except HivemintError as error:
            in_python(error)
            raise
        return made if (device, dtype) == (None, None) else made.to(device=device, dtype=dtype)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        bid: str | int | float | None = None,
        max_price: str | int | float | None = None,
        conversation: Turns | None = None,
        bill: Bill | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`: greedy or sampled, streamer, stop criteria; `[batch, length]` of token ids out.

        `bid` and `max_price` are this call's, in place of the settings' (see there). Each row is a sequence with its
        own sessions; left padding needs its `attention_mask`. What rows begin with alike (num_return_sequences, a
        common prompt) is computed and paid once where the nodes can share it. `conversation` (see there) keeps the
        sessions of a single row for the next prompt. `last_call` tells what it has cost, also if it fails; `bill` adds
        up several calls. Ctrl-C cancels the steps under way and closes the sessions.

        Raises `BadInput` for beams and other modes, a prompt beyond the model's context, a mask with holes;
        `SwarmError`, `Refusal` or `ProofError` when a node fails that no other can replace.
        """
        if kwargs.get("inputs_embeds") is not None or kwargs.get("past_key_values") is not None:
            raise BadInput("generate takes token ids only", why="embeddings and caches of another model don't fit")
        full_pass.check_ids(kwargs.get("input_ids") if inputs is None else inputs, self.config.vocab_size)
        with self._counted(bid, max_price, conversation, bill) as sequences:
            return super().generate(inputs, *args, sequences=sequences, **kwargs)

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        logits_to_keep: int | torch.Tensor = 0,
        bid: str | int | float | None = None,
        max_price: str | int | float | None = None,
        sequences: Sequences | None = None,
        **kwargs: Any,
    ) -> Any:
        """`model(input_ids)`: one pass over whole texts `[batch, length]`, paid as `generate` is; logits of all
        positions out, `[batch, length, vocabulary]`, zeros where the mask shows padding.

        `labels` of the same shape give `loss`, as in transformers. `logits_to_keep`: only the last so many positions.
        There is no gradient: see `blocks` for training. Raises what `generate` raises.
        """
        if sequences is not None:  # a step of `generate`
            return self._step(input_ids, sequences, attention_mask)
        full_pass.check_arguments(kwargs)
        if input_ids is None:
            raise BadInput("No input_ids", next_step="pass token ids: model(**tokenizer(text, return_tensors='pt'))")
        full_pass.check_ids(input_ids, self.config.vocab_size)
        texts = full_pass.texts_of(input_ids, attention_mask, self._ends.context)
        keep: int | torch.Tensor = 0 if labels is not None else logits_to_keep
        with self._counted(bid, max_price) as sequences:
            logits = full_pass.logits_of(sequences, self._ends, input_ids, texts, keep)
        loss = None if labels is None else full_pass.loss_of(logits, labels)
        if labels is not None and isinstance(logits_to_keep, int) and logits_to_keep:
            logits = logits[:, -logits_to_keep:]
        output = CausalLMOutputWithPast(loss=loss, logits=logits)
        return output.to_tuple() if kwargs.get("return_dict") is False else output

    __call__ = forward

    @property
    def last_call(self) -> Bill | None:
        """What the call that ended last was and has cost; None before the first one."""
        return self._spending.last

    @property
    def spent(self) -> Credits:
        """What all calls and trainings of this model have cost so far, in wei (10**-18 credits); not the wallet's life.

        A call counts when it has ended, a training as its passes are signed."""
        return self._spending.total

    def conversation(self, keep: str | Path | None = None) -> Turns:
        """For a talk: `generate(ids, conversation=talk)` computes only what an answer before has not yet.

        Its sessions stay open between the answers; close it, or use it as a context manager. What nodes have given to
        others meanwhile is computed again, and the bill says so (`replayed`).

        `keep`: a file in which it outlives its process. After a crash, `conversation(keep=...)` with the same file and
        the same wallet finds the text so far as `talk.ids`, and `generate(talk.ids, conversation=talk)` goes on with
        it: nothing is computed or paid again of what its nodes still hold (some two minutes). The file has the token
        ids, which are the text to anybody who has the tokenizer, and no keys; closing the talk removes it. Without a
        wallet the key is thrown away with the process, and the text is computed again.
        Raises BadInput for a file that can't be used.
        """
        vocabulary = self.config.vocab_size
        return Turns(self._loop, KeptTalk(Path(keep), self._local.model_id, vocabulary) if keep else None)

    def dry_run(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        bid: str | int | float | None = None,
        max_price: str | int | float | None = None,
    ) -> Plan:
        """The route of `generate` for `input_ids` `[batch, length]` and what it would cost. Nothing is paid.

        Tokens and sums are those of all rows together; what rows begin with alike counts once. Raises `SwarmError`
        where no route is.
        """
        full_pass.check_ids(input_ids, self.config.vocab_size)
        batch, length = input_ids.shape
        pads = [0] * batch if attention_mask is None else padding(attention_mask, batch, length)
        answer = max_new_tokens or self.generation_config.max_new_tokens or 20  # transformers' own default
        limit, swarm = min(self._ends.context, length + answer), self._offered(bid, max_price)
        plans = [self._loop.run(swarm.plan, limit - 1 - pad) for pad in pads]
        return summed(plans, [row[pad:] for row, pad in zip(input_ids, pads, strict=True)])

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of `swarm` in the network's thread and return its result."""
        return self._loop.run_made(coroutine)

    def embed(self, ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Token ids `[..., count]` of the positions `start ..` to what enters block 0, `[..., count, hidden]`."""
        if ids.dim() == 1:
            return self._ends.embed(ids, start)
        return torch.stack([self.embed(row, start) for row in ids])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last block's outputs `[..., hidden]` to logits `[..., vocabulary]`; differentiable."""
        flat = self._ends.logits(hidden.reshape(-1, hidden.shape[-1]))
        return flat.view(*hidden.shape[:-1], -1)

    def blocks(
        self,
        *,
        tokens: int,
        sequences: int = 1,
        rounds: int = ROUNDS,
        max_amount: Credits | None = None,
        bid: str | int | float | None = None,
        max_price: str | int | float | None = None,
    ) -> RemoteBlocks:
        """All blocks as one frozen, differentiable module for training what stands before and after them.

        `tokens`: the longest sequence. `sequences`: how many are under way at once. `rounds`: passes that a session is
        signed for. `max_amount`: wei that all of it may cost. See `Blocks` below.
        """
        swarm, hidden = self._offered(bid, max_price), self._ends.hidden_size
        made = RemoteBlocks(
            swarm, self._loop, hidden, tokens=tokens, sequences=sequences, rounds=rounds, max_amount=max_amount
        )
        made.owner = self
        self._spending.watch(made.ceiling)
        return made

    def close(self) -> None:
        """Leave the network. Harmless when called again."""
        self._membership.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _offered(self, bid: object, max_price: object) -> Swarm:
        if bid is None and max_price is None:
            return self.swarm
        try:
            return self.swarm.offering(bid=bid, max_price=max_price)
        except HivemintError as error:
            in_python(error)
            raise

    @contextmanager
    def _counted(
        self, bid: object, max_price: object, conversation: Turns | None = None, bill: Bill | None = None
    ) -> Iterator[Sequences]:
        """The sequences of one call, which becomes the last one as they end."""
        swarm, own = self._offered(bid, max_price), Bill()
        sequences = Sequences(swarm, self._ends, self._loop, conversation, own)
        try:
            with self._loop.call(), sequences:
                yield sequences
        finally:
            self._spending.note(own)
            if bill is not None:
                bill.add(own)


def _first_of(network: Network) -> str:
    """The model that is meant where none is named. Raises ConfigError."""
    return network.model(network.models[0].name if network.models else "").name


known_to_pipelines(SwarmModelForCausalLM.__name__)

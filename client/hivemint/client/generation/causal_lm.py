"""`SwarmModelForCausalLM`: transformers' own `generate`, with the blocks computed by the swarm.

    with SwarmModelForCausalLM.from_pretrained("SmolLM2-135M-Instruct", network="network.toml", wallet="bob") as model:
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
        ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
        print(model.dry_run(ids, max_new_tokens=20))
        print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))

There is no local K/V cache: each row of a batch has its sessions, and a step sends only the positions that are new.
"""

from collections.abc import Coroutine
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from hivemint.client.generation.bill import Bill
from hivemint.client.generation.ends import Ends
from hivemint.client.generation.head import largest_only
from hivemint.client.generation.loop import LoopThread
from hivemint.client.generation.sequences import Sequences, Turns, alike, padding
from hivemint.client.generation.tuning import ROUNDS, RemoteBlocks
from hivemint.client.pipeline import Plan, Swarm
from hivemint.model import local_models
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput, ModelError
from hivemint.protocol.home import Home
from hivemint.protocol.ids import Credits
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer

T = TypeVar("T")
_Mixin: Any = GenerationMixin  # typed for PreTrainedModel alone, which would bring the blocks' whole machinery
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


class SwarmModelForCausalLM(_Mixin):  # type: ignore[misc]
    """A causal language model whose ends are here and whose blocks are at the swarm's nodes.

    Synchronous, as transformers is; the network runs in a thread of its own. Close it, or use it as a context manager.
    Several threads may call `generate` at once: each call has its own sessions.
    """

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = True  # no cache that could be cropped or shared: transformers then refuses assisted decoding
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, model: LocalModel, ends: Ends, swarm: Swarm, loop: LoopThread) -> None:
        self.folder: Path = model.folder
        self.config: PretrainedConfig = ends.config
        self.generation_config: GenerationConfig = ends.generation_config(model.folder)
        self.swarm = swarm
        self._ends, self._loop = ends, loop

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        network: str | Path | Network | None = None,
        wallet: str | Signer | None = None,
        password: str | None = None,
        home: Home | None = None,
        adapter: str | Path | None = None,
        **settings: Any,
    ) -> Self:
        """Load the ends of `model` and join `network` with the keystore `wallet`.

        `network` is a network.toml; None: that of `$HIVEMINT_NETWORK`.

        `password` opens the keystore, else `$HIVEMINT_PASSWORD`. Without a wallet a throw-away key asks, unpaid.
        `adapter` is the folder of a PEFT LoRA adapter: each node loads its part for the sessions of this model alone.
        `settings` are those of `client.settings` (bid, price ceiling ...). Raises `ModelError`, `ConfigError`,
        `WalletError`, `ChainError` or `SwarmError`.
        """
        from hivemint.client.sessions.swarm_client import connect

        local = local_models.resolve(model, home=home)
        ends, loop = Ends.load(local), LoopThread()
        try:
            joining = connect(
                local, network=network, wallet=wallet, password=password, home=home, adapter=adapter, **settings
            )
            return cls(local, ends, loop.run(joining), loop)
        except BaseException:
            loop.stop()
            raise

    @torch.no_grad()
    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`: greedy or sampled, streamer, stop criteria; `[batch, length]` of token ids out.

        Each row is a sequence with its own sessions; left padding needs its `attention_mask`. Raises `BadInput` for
        beams and other modes, a prompt beyond the model's context, a mask with holes; `SwarmError`, `Refusal` or
        `ProofError` when a node fails that no other can replace. Ctrl-C cancels the steps under way and closes the
        sessions.

        What rows begin with alike (num_return_sequences, a common prompt) is computed and paid once where the nodes
        can share it. `conversation` (see there) keeps the sessions of a single row for the next prompt. `bill` gets
        what this call has cost, also if it fails.
        """
        if kwargs.get("inputs_embeds") is not None or kwargs.get("past_key_values") is not None:
            raise BadInput("generate takes token ids only", why="embeddings and caches of another model don't fit")
        conversation: Turns | None = kwargs.pop("conversation", None)
        bill: Bill | None = kwargs.pop("bill", None)
        with Sequences(self.swarm, self._ends, self._loop, conversation, bill) as sequences:
            return super().generate(inputs, *args, sequences=sequences, **kwargs)

    def conversation(self) -> Turns:
        """For a talk: `generate(ids, conversation=talk)` computes only what an answer before has not yet."""
        return Turns(self._loop)

    def dry_run(
        self, input_ids: torch.Tensor, *, attention_mask: torch.Tensor | None = None, max_new_tokens: int | None = None
    ) -> Plan:
        """The route of `generate` for `input_ids` `[batch, length]` and what it would cost. Nothing is paid.

        Tokens and sums are those of all rows together; what rows begin with alike counts once.
        """
        batch, length = input_ids.shape
        pads = [0] * batch if attention_mask is None else padding(attention_mask, batch, length)
        answer = max_new_tokens or self.generation_config.max_new_tokens or 20  # transformers' own default
        limit = min(self._ends.context, length + answer)
        plans = [self._loop.run(self.swarm.plan(limit - 1 - pad)) for pad in pads]
        groups = alike([row[pad:] for row, pad in zip(input_ids, pads, strict=True)])
        spared = sum((len(group) - 1) * count for group, count in groups)
        return replace(
            plans[0],
            tokens=sum(plan.tokens for plan in plans) - spared,
            cost=Credits(sum(plan.cost for plan in plans) - spared * sum(hop.price for hop in plans[0].hops)),
            reserved=Credits(sum(plan.reserved for plan in plans)),
        )

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of `swarm` in the network's thread and return its result."""
        return self._loop.run(coroutine)

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
        self, *, tokens: int, sequences: int = 1, rounds: int = ROUNDS, max_amount: Credits | None = None
    ) -> RemoteBlocks:
        """All blocks as one frozen, differentiable module for training what stands before and after them.

        See `client.generation.tuning.RemoteBlocks`.
        """
        return RemoteBlocks(
            self.swarm,
            self._loop,
            self._ends.hidden_size,
            tokens=tokens,
            sequences=sequences,
            rounds=rounds,
            max_amount=max_amount,
        )

    def close(self) -> None:
        """Leave the network. Harmless when called again."""
        loop = self._loop
        try:
            if loop.alive:
                loop.run(self.swarm.close())
        finally:
            loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forward(
        self, input_ids: torch.Tensor, sequences: Sequences, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> CausalLMOutputWithPast:
        """One step of `generate`: all ids so far in, the logits after the last out, `[batch, 1, vocabulary]`."""
        hidden = sequences.advance(input_ids, attention_mask)
        with largest_only() if sequences.greedy else nullcontext():
            logits = self._ends.logits(hidden)
        if not bool(
            torch.isfinite(logits.amax(-1)).all()
        ):  # the hidden states are: that was checked where they came in
            raise ModelError(
                "The head of this model makes no numbers of the last hidden states",
                why="its largest logit is NaN or infinite, though all nodes have sent finite states",
                next_step="pull the model again; if that changes nothing, it is not made for fp32",
            )
        return CausalLMOutputWithPast(logits=logits.unsqueeze(1))

    __call__ = forward

    # What follows are the places where transformers' loop asks about caches and masks, answered for sessions.

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        mask = kwargs.get("attention_mask") if is_first_iteration else None
        return {"input_ids": input_ids, "sequences": kwargs["sequences"], "attention_mask": mask}

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **_: Any) -> Any:
        return model_kwargs  # no mask to lengthen: what is cached needs none

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], mode: Any, batch: int, length: int
    ) -> None:
        """Sessions instead of a cache, for prompt and answer and at most the model's context."""
        generation_config.max_length = min(generation_config.max_length, self._ends.context)
        generation_config._sequences = model_kwargs["sequences"]
        generation_config._sequences.limit = generation_config.max_length

    def _get_logits_processor(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        """Where nothing looks at the numbers but the search for the largest, the head may spare itself the others."""
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        shown = generation_config.do_sample or generation_config.output_scores or generation_config.output_logits
        generation_config._sequences.greedy = not processors and not shown
        return processors

    def _get_stopping_criteria(self, generation_config: Any, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        return _Watched(criteria, generation_config._sequences)

    def _validate_generation_mode(self, mode: GenerationMode, config: GenerationConfig, kwargs: Any) -> None:
        if mode not in _MODES:
            raise BadInput(
                f"the swarm does not generate by {mode.value.replace('_', ' ')} yet",
                why="every sequence has sessions of its own, and a beam would need to fork them",
                next_step="use greedy search (num_beams=1, do_sample=False) or sampling (do_sample=True)",
            )
        if config.output_attentions or config.output_hidden_states:
            raise BadInput("attentions and inner hidden states are not here to give", why="the nodes keep them")

    def get_experts_implementation(self) -> dict[str, str]:
        return {}  # no block is here, so no expert


class _Watched(StoppingCriteriaList):
    """Stop criteria that also tell the sequences which rows have ended, so that nobody computes their padding."""

    def __init__(self, criteria: StoppingCriteriaList, sequences: Sequences) -> None:
        super().__init__(criteria)
        self._sequences = sequences

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        met = super().__call__(input_ids, scores, **kwargs)
        self._sequences.finish(met)
        return met

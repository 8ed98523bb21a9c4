"""transformers' loop of `generate` over sessions: where it asks about caches and masks, sessions answer."""

from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from hivemint.client.generation.ends import Ends
from hivemint.client.generation.head import largest_only
from hivemint.client.generation.sequences import Sequences
from hivemint.protocol.errors import BadInput, ModelError

_Mixin: Any = GenerationMixin  # typed for PreTrainedModel alone, which would bring the blocks' whole machinery
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)


class SessionDecoding(_Mixin):  # type: ignore[misc]
    """`generate` where every row of a batch has sessions, and a step sends only the positions that are new."""

    main_input_name = "input_ids"
    base_model_prefix = ""
    _is_stateful = True  # no cache that could be cropped or shared: transformers then refuses assisted decoding
    _ends: Ends

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

    def _step(self, ids: Any, sequences: Sequences, mask: torch.Tensor | None) -> CausalLMOutputWithPast:
        """All ids so far in, the logits after the last out, `[batch, 1, vocabulary]`."""
        hidden = sequences.advance(ids, mask)
        with largest_only() if sequences.greedy else nullcontext():
            logits = self._ends.logits(hidden)
        if not bool(torch.isfinite(logits.amax(-1)).all()):  # the hidden states are: that was seen where they came in
            raise ModelError(
                "The head of this model makes no numbers of the last hidden states",
                why="its largest logit is NaN or infinite, though all nodes have sent finite states",
                next_step=f"pull the model again; if that changes nothing, it is not made for {self.dtype}",
            )
        return CausalLMOutputWithPast(logits=logits.unsqueeze(1))


class _Watched(StoppingCriteriaList):
    """Stop criteria that also tell the sequences which rows have ended, so that nobody computes their padding."""

    def __init__(self, criteria: StoppingCriteriaList, sequences: Sequences) -> None:
        super().__init__(criteria)
        self._sequences = sequences

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self._sequences.noted(input_ids)
        met = super().__call__(input_ids, scores, **kwargs)
        self._sequences.finish(met)
        return met

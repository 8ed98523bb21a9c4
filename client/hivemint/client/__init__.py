"""A wallet's way through the swarm: routing, sessions, generation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hivemint.client.generation.causal_lm import SwarmModelForCausalLM as SwarmModelForCausalLM

__all__ = ["SwarmModelForCausalLM"]


def __getattr__(name: str) -> Any:
    """The public face, imported when it is asked for: it brings transformers, which a wallet's verbs don't need."""
    if name == "SwarmModelForCausalLM":
        from hivemint.client.generation.causal_lm import SwarmModelForCausalLM

        return SwarmModelForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

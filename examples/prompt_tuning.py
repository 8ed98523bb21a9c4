"""Prompt tuning: seven soft tokens learn to make the model answer in one word; its blocks stay where and as they are.

hivemint testnet up          # and export the three variables that it prints
python examples/prompt_tuning.py
"""

import torch
from transformers import AutoTokenizer

from hivemint.client import SwarmModelForCausalLM

TEXTS = ["The sun is hot. Is that so?", "Ice is warm. Is that so?", "Fire is cold, says my uncle. Is that so?"]
ANSWERS = [" yes", " no", " no"]

with SwarmModelForCausalLM.from_pretrained("SmolLM2-135M-Instruct", wallet="bob") as model:
    tokenizer = AutoTokenizer.from_pretrained(model.folder, padding_side="right")
    texts = tokenizer(TEXTS, return_tensors="pt", padding=True)
    labels = torch.tensor([tokenizer(answer).input_ids[0] for answer in ANSWERS])
    start = tokenizer("Answer with yes or no only:", return_tensors="pt").input_ids[0]
    prompt = torch.nn.Parameter(model.embed(start).clone())
    ends = len(prompt) + texts.attention_mask.sum(1) - 1  # blocks look back only, so what pads the end is harmless
    optimizer = torch.optim.Adam([prompt], lr=0.01)
    with model.blocks(tokens=len(prompt) + texts.input_ids.shape[1], sequences=len(TEXTS)) as blocks:
        for step in range(10):
            hidden = blocks(torch.cat([prompt.expand(len(TEXTS), -1, -1), model.embed(texts.input_ids)], dim=1))
            logits = model.logits(hidden[torch.arange(len(TEXTS)), ends])
            loss = torch.nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # through every node, each paid for it by the token
            optimizer.step()
            print(f"step {step}: loss {loss.item():.3f}")

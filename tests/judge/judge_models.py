"""Small models that judge: a chat model whose answers are labels, and what transformers says of
them directly.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from laurel.judge.template import fill, load_prompt
from laurel.model.policy import Policy
from laurel.model.scratch import char_tokenizer

CHATML = """{% for m in messages %}\
{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
NUMBERS = "123456789"


def chat_model(seed=0, positions=4096, hidden=32):
    """A random model over characters with ChatML's special tokens, inclined to say labels."""
    tokenizer = char_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.eos_token = "<|im_end|>"
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    incline(model, tokenizer)
    return Policy(model, tokenizer)


@torch.no_grad()
def incline(model, tokenizer):
    """Labels and numbers are likely where an answer begins, and its end is after them."""
    head, end = model.lm_head.weight, tokenizer.convert_tokens_to_ids("<|im_end|>")
    for said, likely, by in (("", "YNX" + NUMBERS, 4.0), ("", "ABC", 5.0), ("A", "", 8.0)):
        text = f"x<|im_start|>assistant\n{said}"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        state = model.model(ids).last_hidden_state[0, -1]
        for token in [tokenizer.convert_tokens_to_ids(one) for one in likely] or [end]:
            head[token] = by * state / state.norm() + 0.3 * torch.randn_like(state)


def direct_chances(policy, pair, order, config, labels=("A", "B", "C")):
    """p(label) of the answer's first token, by a forward pass of transformers alone."""
    return direct_next(policy, messages_of(pair, order, config), labels)


def messages_of(pair, order, config):
    """The messages of a question about a pair."""
    prompt = load_prompt(config.prompt or config.form)
    said = [f"{label}: {prompt.choices[label]}" for label in prompt.labels]
    texts = (pair.first, pair.second)
    values = {
        "prompt": pair.prompt,
        "first": texts[order[0]],
        "second": texts[order[1]],
        "reference": "",
        "principle": "",
        "choices": "; ".join(said),
    }
    return fill(prompt, values, reasoning=False)


def direct_next(policy, messages, labels):
    """p of each label as the next token of a conversation, or of a text."""
    tokenizer = policy.tokenizer
    if isinstance(messages, str):
        ids = tokenizer(messages, return_tensors="pt").input_ids
    else:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        logps = policy.causal(ids).logits[0, -1].double().log_softmax(0)
    return {label: float(logps[spelling(tokenizer, label)].exp()) for label in labels}


def spelling(tokenizer, label):
    """The id of a token."""
    found = tokenizer.convert_tokens_to_ids(label)
    assert found != tokenizer.unk_token_id or label == tokenizer.unk_token
    return found


def soft_label(policy, pair, config):
    """P(first better) over both orders, and the mass that is on no label in each."""
    chances, missing = [], []
    for order in ((0, 1), (1, 0)):
        p = direct_chances(policy, pair, order, config)
        total = sum(p.values())
        missing.append(1 - total)
        shown_first = (p["A"] + p["C"] / 2) / total
        chances.append(shown_first if order == (0, 1) else 1 - shown_first)
    return sum(chances) / 2, chances, missing

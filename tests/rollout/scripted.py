"""A policy whose every next character is known: a real Llama with a real cache that has learnt one
table by heart.
"""

import torch

from laurel.core.sample import Draw, Message
from laurel.data.source import Row
from laurel.model.chat import ensure_template
from laurel.model.policy import Policy
from laurel.model.scratch import STOP, char_tokenizer, small_model

SCRIPT = {
    "=": "[",
    "[": "7",
    "7": "*",
    "*": "8",
    "8": "]",
    "]": STOP,
    "\n": "y",
    "y": STOP,
    "?": "#",
    "#": "!",
    "!": STOP,
}
"""What follows each character: "2=" is continued "[7*8]<stop>", a line end "y<stop>", "a?" with
"#!<stop>"; anything else ends.
"""


def scripted(script=None):
    """The policy of SCRIPT (or another table): each token's embedding points at the token that
    follows it, far above all others.
    """
    tokenizer = char_tokenizer()
    ensure_template(tokenizer, None)
    model = small_model(tokenizer, hidden_size=128, num_hidden_layers=1, num_attention_heads=2)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.eye(len(tokenizer), 128))
    embedding = torch.eye(128)[[tokenizer.eos_token_id] * len(tokenizer)]
    for now, after in (SCRIPT if script is None else script).items():
        embedding[tokenizer.convert_tokens_to_ids(now)] = torch.eye(128)[
            tokenizer.convert_tokens_to_ids(after)
        ]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(embedding)
        model.model.norm.weight.fill_(10.0)
        for layer in model.model.layers:  # attention and feed-forward add nothing
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return Policy(model, tokenizer)


def babbling(alphabet="ab]", seed=0):
    """An untrained policy over a few characters: it says anything, and soon also `]`."""
    tokenizer = char_tokenizer(alphabet)
    ensure_template(tokenizer, None)
    return Policy(
        small_model(
            tokenizer, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, seed=seed
        ),
        tokenizer,
    )


def row(prompt, name="a", **columns):
    """A row of data."""
    return Row({"prompt": prompt, **columns}, f"{name}.jsonl:1", f"{name}-0")


def user(text):
    """A conversation of one message."""
    return [Message(role="user", content=text)]


def drawing(limit, *, count=1, stop=(), seed=0, step=0, temperature=1.0):
    """How to sample: at most `limit` tokens, `count` per prompt."""
    return Draw("run", step, seed, count, limit, temperature, tuple(stop))


def text_of(policy, ids):
    """Ids as text, special tokens shown."""
    return policy.tokenizer.decode(list(ids), skip_special_tokens=False)

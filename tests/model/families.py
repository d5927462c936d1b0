"""Chat templates of well-known families in their documented shape, and a tokenizer that has their
tokens.
"""

import re

from laurel.model.scratch import char_tokenizer

HERMES = """{%- if m.tool_calls %}{% for c in m.tool_calls %}{% set f = c.function if c.function else c %}
{{- '\n<tool_call>\n{"name": "' + f.name + '", "arguments": ' + f.arguments | tojson + '}\n</tool_call>' }}{% endfor %}{% endif %}"""
TOOLS = """{%- if tools %}{{ '<|im_start|>system\nTools: ' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"""
LAST = """{%- set ns = namespace(last=-1) %}{% for m in messages %}
{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"""
SPLIT = """{%- set said = m.content or '' %}{% set thought = m.reasoning_content or '' %}
{%- if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] | trim %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"""
ALTERNATE = """{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"""

FAMILIES = {
    # Qwen2.5, SmolLM, Hermes: ChatML with Hermes' tool calls; roles that it does not know are left
    # out
    "chatml": (
        TOOLS
        + """{% for m in messages %}
{%- if m.role in ('system', 'user', 'assistant') %}{{- '<|im_start|>' + m.role + '\n' + m.content }}"""
        + HERMES
        + """{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
    ),
    # Qwen3: thoughts of turns before the last question are dropped
    "qwen3": (
        LAST
        + """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"""
        + SPLIT
        + """
{%- if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}"""
        + HERMES
        + """
{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
    ),
    # Qwen3.5 and QwQ: the same, and sampling opens the thought
    "opening": (
        LAST
        + """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"""
        + SPLIT
        + """
{%- if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ said }}"""
        + HERMES
        + """
{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"""
    ),
    # DeepSeek-R1: no turn keeps its thought; sampling opens one; calls want text, and no content
    "r1": (
        """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}
{%- elif m.role == 'assistant' and m.content is none %}{{ '<|Assistant|>' }}{% for c in m.tool_calls %}
{{- '<|call|>' + c.function.name + '\n' + c.function.arguments + '<|/call|>' }}{% endfor %}{{ eos_token }}
{%- elif m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""
    ),
    "llama3": (
        """{{ bos_token }}{% for m in messages %}
{{- '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"""
    ),
    "llama2": (
        """{% if messages[0].role == 'system' %}{% set sys = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{%- set rest = messages[1:] %}{% else %}{% set sys = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"""
        + ALTERNATE
        + """
{%- if m.role == 'user' %}{{ bos_token + '[INST] ' + (sys if loop.first else '') + m.content | trim + ' [/INST]' }}
{%- else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""
    ),
    "gemma": (
        """{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}"""
        + ALTERNATE
        + """
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
    ),
    # Mistral v3: tools stand before the last question, calls take the place of a content
    "mistral": (
        """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'user' %}{% if tools and loop.index0 == (messages | map(attribute='role') | list).index('user') %}
{{- '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls %}{{ '[CALLS][' }}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{{ ']' + eos_token }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
{%- elif m.role == 'tool' %}{{ '[RESULT]' + {'content': m.content} | tojson + '[/RESULT]' }}
{%- else %}{{ raise_exception('no such role: ' + m.role) }}{% endif %}{% endfor %}"""
    ),
    # Phi-3: an EOS besides, where the conversation ends
    "phi3": (
        """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""
    ),
    "zephyr": (
        """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
    ),
    "vicuna": (
        """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}
{%- elif m.role == 'user' %}{{ 'USER: ' + m.content + '\n' }}
{%- elif m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token + '\n' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
    ),
    # Command R: a closing of two tokens
    "command": (
        """{{ bos_token }}{% for m in messages %}{{ '<|START|><|' + m.role + '|>' + m.content + '<|RESPONDED|><|END|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|START|><|assistant|>' }}{% endif %}"""
    ),
    # gpt-oss: channels; the last answer ends otherwise than earlier ones, and a call otherwise than
    # an answer
    "harmony": LAST
    + """{%- for m in messages %}{% if m.role == 'assistant' %}
{%- if m.thinking and loop.index0 > ns.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{%- if m.tool_calls %}{{ '<|start|>assistant to=' + m.tool_calls[0].function.name + '<|message|>' }}
{{- m.tool_calls[0].function.arguments | tojson + '<|call|>' }}
{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}{% endif %}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}""",
    # GLM-4: nothing closes a turn but the next header
    "glm": (
        """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
    ),
    # Alpaca: text that is no token
    "alpaca": (
        """{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n### END\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"""
    ),
}


def tokenizer_of(family, special=True):
    """laurel's character tokenizer with the family's template and tokens; special: those are what
    the tokenizer calls special.
    """
    tokenizer, template = char_tokenizer(), FAMILIES.get(family, family)
    found = set(
        re.findall(
            r"<\|/?\w+\|>|<(?:start|end)_of_turn>|\[/?(?:INST|CALLS|TOOLS|RESULT)\]", template
        )
    )
    found |= (
        {f"<|{role}|>" for role in ("system", "user", "assistant", "tool")}
        if "'<|' + m.role" in template
        else set()
    )
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": sorted(found)})
    else:
        tokenizer.add_tokens(sorted(found))
    tokenizer.chat_template = template
    return tokenizer

"""What test_chat.py and test_text.py share: templates of the usual kinds, conversations, a
tokenizer, rows in files.
"""

import gzip
import json
import os

from plumbing.chat import TEMPLATES
from plumbing.text import load_text, marked
from plumbing.tokenizer import QWEN2 as SPLIT
from plumbing.tokenizer import Tokenizer

CHATML = TEMPLATES["chatml"]
QWEN2 = """{%- if messages[0].role == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ['user', 'assistant'] or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>' + (call | tojson) + '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + message.content }}
        {{- '</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none or documents is not none %}{{- 'TOOLS' }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if strftime_now is defined and not date_string is defined %}
    {%- set date_string = strftime_now("%Y") %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}{%- continue %}{%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
        + (message['content'] | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN3 = """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for m in messages[::-1] %}
    {%- if m.role == 'user' and not ns.found %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
        {%- set ns.found = true %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- set thought = '' %}
    {%- if m.role == 'assistant' %}
        {%- if m.reasoning_content is string %}
            {%- set thought = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {%- set content = '<think>\\n' + thought + '\\n</think>\\n\\n' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
MISTRAL = """{{ bos_token }}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
    {%- else %}{{ ' ' + message.content + eos_token }}{%- endif %}
{%- endfor %}
"""
MARKED = """{% for message in messages %}
    {% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}

    {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{{ '' }}{% endif %}"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|start_header_id|>",
           "<|end_header_id|>", "<|eot_id|>",
           "<think>", "</think>"]


def encoding(template=None, **kw):
    """Bytes and a few pairs, two line feeds among them, so that a border between prompt and answer
    can be straddled.
    """
    pairs = [b"\n\n", b" a", b"an", b"er", b"is", b"ant", b"wer", b"\n\n\n", b"\n ", b": ", b" 4"]
    ranks = {**{bytes([b]): b for b in range(256)}, **{p: 256 + i for i, p in enumerate(pairs)}}
    special = {t: len(ranks) + i for i, t in enumerate(SPECIAL)}
    return Tokenizer("test", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special,
                     **{"end": "<|im_end|>", "stops": ["<|endoftext|>", "<|eot_id|>"],
                        "bos": "<|begin|>",
                        "chat_template": template, **kw})


def say(role, content, **more):
    return {"role": role, "content": content, **more}


ONE = [say("user", "1+1?"), say("assistant", "2")]
TALK = [say("system", "Be brief."), say("user", "Wer? <b> \"ä\"'"),
        say("assistant", "\nAn answer.\n\n"), say("user", ""),
        say("assistant", "  bye ")]
THINK = [say("user", "a"), say("assistant", "<think>\nx\n</think>\n\nb"), say("user", "c"),
         say("assistant", "d"), say("user", "e"),
         say("assistant", "f", reasoning_content="y")]
TOOLS = [say("user", "a"),
         say("assistant", "", tool_calls=[{"name": "<f>", "arguments": {"ü": 1}}]),
         say("tool", "42"),
         say("assistant", "b")]


def write(path, rows):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with (gzip.open if path.endswith(".gz") else open)(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def load(rows, enc=None, **kw):
    return load_text([write("rows.jsonl", rows)], enc or encoding(CHATML), **kw)


def counted(sample, enc):
    """The texts of the runs of tokens that carry loss."""
    text = marked(sample, enc, colour=False)
    return [part.split("⟧")[0] for part in text.split("⟦")[1:]]

"""Chat templates: a conversation -> its text, and which parts of that text a model learns.

A conversation is a list of messages {"role": ..., "content": ...}. Templates are in Jinja.
"""

import datetime
import functools
import json
import os
import re

from plumbing.limits import harmless, time_limit
from plumbing.tokenizer import Tokenizer, load_tokenizer, tokenizer_files

# "plain" is how the scores ask a model whose tokenizer has no template. Its completions begin with
# a space, since byte-pair vocabularies hold " 42" as one token. "none" joins the texts as they are.
# BOS and EOS stand for tokens that template_source fills in.
TEMPLATES = {
    "plain": "BOS{% for m in messages %}"
             "{% if m.role == 'user' %}Question: {{ m.content }}\n"
             "{% elif m.role == 'assistant' %}Answer: {{ m.content }}EOS\n"
             "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
             "{% if add_generation_prompt %}Answer:{% endif %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
              "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "none": "BOS{% for m in messages %}{{ m.content }}"
            "{% if m.role == 'assistant' %}EOS{% endif %}{% endfor %}"}


SECONDS = 10            # that a template may take


def template_source(template: str, enc: Tokenizer) -> str:
    """The Jinja source that `template` means: a name in TEMPLATES, a .jinja file, Jinja source.

    "auto" is the tokenizer's own template, or "plain" if it has none. ValueError on anything else.
    """
    if template == "auto" and enc.chat_template:
        return enc.chat_template
    if "{{" in template or "{%" in template:
        return template
    source = TEMPLATES.get("plain" if template == "auto" else template)
    if source:
        # What texts begin with is not always bos_token: SmolLM2's configuration names one, and yet
        # none of its texts begins with it.
        bos = "" if enc.bos_id is None else enc.decode([enc.bos_id])
        return source.replace("BOS", bos).replace("EOS", enc.decode([enc.end_id]))
    try:
        with open(template, encoding="utf-8") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"--template {template}: expected auto, {', '.join(TEMPLATES)} or a "
                         f".jinja file, found {e}") from None


def bos_token(enc: Tokenizer) -> str:
    """What a template means by bos_token: the one that the tokenizer's configuration names."""
    token = json.loads(enc.files.get("tokenizer_config.json", "{}")).get("bos_token")
    if isinstance(token, dict):
        token = token["content"]
    return token or ("" if enc.bos_id is None else enc.decode([enc.bos_id]))


@functools.lru_cache
def compiled(source: str):
    """A template in the sandbox of transformers: it is a program from other people's models."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}           # by which a few templates mark what a model writes

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(x, **how):              # Jinja's own tojson would escape HTML
        return json.dumps(x, **{"ensure_ascii": False, **how})

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context, operator, left, right):
            if not harmless(operator, left, right):
                refuse(f"{operator} with a huge result")
            return super().call_binop(context, operator, left, right)

    env = Environment(trim_blocks=True, lstrip_blocks=True,
                      extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env.from_string(source)


def render(messages: list[dict], enc: Tokenizer, template: str = "auto",
           add_generation_prompt: bool = False) -> str:
    """The text of a conversation, the same that transformers' apply_chat_template gives.

    add_generation_prompt: end with what opens the assistant's next turn.

    >>> from plumbing.tokenizer import toy_encoding
    >>> talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    >>> render(talk, toy_encoding())
    'Question: 1+1?\\nAnswer: 2<|end|>\\n'
    """
    source = template_source(template, enc)
    # parsing the configuration takes long, so only for templates that need it
    bos = bos_token(enc) if "bos_token" in source else ""
    try:
        with time_limit(SECONDS):
            return compiled(source).render(
                messages=messages, add_generation_prompt=add_generation_prompt, bos_token=bos,
                eos_token=enc.decode([enc.end_id]), tools=None, documents=None)
    except Exception as e:              # a template is a program, its errors can be of any class
        raise ValueError(f"the chat template fails ({type(e).__name__}: {e}); mend the row or pass "
                         "another --template") from None


def control_tokens(enc: Tokenizer) -> tuple[str, ...]:
    """The special tokens that no message may spell: bos, the stops, all that are named <|...|>.

    Others, such as Qwen3's <think>, may stand in a message, and become one token there.
    """
    return tuple(token for token, i in enc._special_tokens.items()
                 if i == enc.bos_id or i in enc.stop_ids
                 or re.fullmatch(r"<[|｜].*[|｜]>", token, re.S))


def _turn(messages, k, enc, template):
    """(the text before the answer messages[k], that answer up to its last token), as rendered."""
    prompt = render(messages[:k], enc, template, add_generation_prompt=True)
    with_answer = render(messages[:k + 1], enc, template)
    if not with_answer.startswith(prompt):
        at = len(os.path.commonprefix([prompt, with_answer]))
        raise ValueError(f"the template does not start turn {k + 1} with its own generation "
                         f"prompt: expected {prompt[at:][:40]!r}, found "
                         f"{with_answer[at:][:40]!r}; pass another --template")
    turn = with_answer[len(prompt):].rstrip()
    for text in (messages[k]["content"], messages[k].get("reasoning_content")):
        if text and "".join(text.split()) not in "".join(turn.split()):     # white space may differ
            raise ValueError(f"the template leaves out a part of turn {k + 1}, {text[:40]!r}; "
                             "pass another --template")
    return prompt, turn


def pieces(messages: list[dict], enc: Tokenizer, template: str = "auto") -> list[list[tuple]]:
    """A conversation -> its samples; each is a list of (text, counts): does that text have loss?

    The assistant's turns count. The rendering of the messages before one, with the generation
    prompt, is what the model reads at inference, so that is the prompt. The rest is the turn, up to
    the special token that closes it; white space behind that is the template's.
    Each piece is to be tokenised alone: a token across the border would be half prompt, half
    answer, and the prompt would not have the tokens that it has at inference.
    Turns share a sample as long as each rendering continues the one before. Some templates rewrite
    earlier turns (Qwen3 removes their thinking): then the next turn opens a new sample. An
    assistant's message that opens a conversation answers nothing, so it is context. Raises
    ValueError if the template does not allow all this.
    """
    samples, done = [], None            # done: the text of the last sample so far
    stops = tuple(enc.decode([i]) for i in enc.stop_ids)
    for k, message in enumerate(messages):
        if message["role"] != "assistant" or k == 0:
            continue
        prompt, turn = _turn(messages, k, enc, template)
        if not turn.endswith(stops):
            raise ValueError(f"the template ends turn {k + 1} with {turn[-20:]!r}, expected a "
                             f"token that ends generation, of {' '.join(stops)}; pass another "
                             "--template")
        if done is None or not prompt.startswith(done):
            samples.append([])
            done = ""
        samples[-1] += [(prompt[len(done):], False), (turn, True)]
        done = prompt + turn
    return samples


def with_template(enc: Tokenizer, template: str = "auto") -> Tokenizer:
    """The Tokenizer that speaks this template: the token that closes a turn ends its generation.

    Its files say so too. Qwen3-4B-Base needs it for its own template, which closes turns with
    <|im_end|>, while only <|endoftext|> ends generation.
    """
    if template == "auto" and not enc.chat_template:
        return enc
    source = template_source(template, enc)
    talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    _, turn = _turn(talk, 1, enc, source)
    closing = {i for token, i in enc._special_tokens.items() if turn.endswith(token)}
    if not closing:
        raise ValueError(f"the template ends a turn with {turn[-20:]!r}, which is no special token "
                         "of the tokenizer; pass another --template")
    if source == enc.chat_template and closing <= set(enc.stop_ids):
        return enc
    files = tokenizer_files(enc)
    generation = json.loads(files.get("generation_config.json", "{}"))
    generation["eos_token_id"] = sorted(closing | set(enc.stop_ids))
    return load_tokenizer({**files, "chat_template.jinja": source,
                           "generation_config.json": json.dumps(generation)})

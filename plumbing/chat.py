"""Chat templates: a conversation -> its text, and which parts of that text a model learns.

A conversation is a list of messages {"role": ..., "content": ...}. Templates are in Jinja.
"""

import datetime
import functools
import json
import os
import re
import signal
import threading
from contextlib import contextmanager

from plumbing.files import reason
from plumbing.tokenizer import SETTINGS, Tokenizer, load_tokenizer, special_tokens, tokenizer_files

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
# what render() itself gives to a template
OURS = ("messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token",
        "tools", "documents", "strftime_now")
# by these keys a message says whether it is to be learned: OpenAI's, axolotl's and ms-swift's
SWITCHES = ("weight", "train", "loss")
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
        with open(template, encoding="utf-8-sig") as f:
            source = f.read()
        if "{{" not in source and "{%" not in source:
            raise ValueError("a file without any Jinja")
        return source
    except (OSError, ValueError) as e:
        raise ValueError(f"--template {template}: expected auto, {', '.join(TEMPLATES)} or a "
                         f".jinja file, found {reason(e)}") from None


def named_tokens(enc: Tokenizer) -> dict[str, str]:
    """What a template means by bos_token, pad_token, unk_token: what the tokenizer's files name."""
    config, named = (json.loads(enc.files.get(name, "{}"))
                     for name in ("tokenizer_config.json", "special_tokens_map.json"))
    found = {"bos_token": "" if enc.bos_id is None else enc.decode([enc.bos_id])}
    for key, token in special_tokens(config, named).items():
        if key in ("bos_token", "pad_token", "unk_token"):
            found[key] = token["content"] if isinstance(token, dict) else token
    return found


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
    return env.from_string(source)


def template_arguments(found, source: str) -> dict:
    """What a row's chat_template_kwargs or --template-kwargs gives a template: a dict, or its JSON.

    ValueError on anything else, and on a name that the template does not read.
    """
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            pass                        # the text itself is refused
    if not isinstance(found, dict):
        raise ValueError("template kwargs: expected a JSON object of what the template reads, as "
                         f'{{"enable_thinking": false}}, found {found!r:.60}')
    for name in found:
        if name in OURS or not re.search(rf"\b{re.escape(name)}\b", source):
            raise ValueError(f"template kwargs: the chat template does not read {name!r}; leave it "
                             "out, or pass another --template")
    return found


def day(date: str) -> datetime.datetime:
    """The day that a template writes: 2026-11-28, or today."""
    try:
        return datetime.datetime.fromisoformat(date) if date else datetime.datetime.now()
    except ValueError:
        raise ValueError(f"--template-date: expected a day such as 2026-11-28, found {date!r}"
                         ) from None


def render(messages: list[dict], enc: Tokenizer, template: str = "auto",
           add_generation_prompt: bool = False, kwargs: dict | None = None) -> str:
    """The text of a conversation, the same that transformers' apply_chat_template gives.

    add_generation_prompt: end with what opens the assistant's next turn. kwargs: what else the
    template reads; they go before those that with_template gave the Tokenizer.

    >>> from plumbing.tokenizer import toy_encoding
    >>> talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    >>> render(talk, toy_encoding())
    'Question: 1+1?\\nAnswer: 2<|end|>\\n'
    """
    source = template_source(template, enc)
    # parsing the configuration takes long, so only for templates that need it
    named = named_tokens(enc) if re.search("(bos|pad|unk)_token", source) else {}
    kwargs = enc.settings.get("kwargs", {}) | (kwargs or {})
    try:
        with time_limit(SECONDS):
            return compiled(source).render(
                **kwargs, **named, messages=messages, tools=None, documents=None,
                add_generation_prompt=add_generation_prompt, eos_token=enc.decode([enc.end_id]),
                strftime_now=day(enc.settings.get("date", "")).strftime)
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


def _squeezed(text):
    return "".join(text.split())        # templates move white space


def _mark(value, marks, i):
    """A value with words for its texts and numbers; marks: the word -> (i, what it stands for)."""
    if isinstance(value, dict):         # id, type, index: the form of a tool call, not its content
        return {k: v if k in ("id", "type", "index") else _mark(v, marks, i)
                for k, v in value.items()}
    if isinstance(value, list):
        return [_mark(v, marks, i) for v in value]
    if isinstance(value, bool) or not str(value or "").strip():
        return value
    if str(value).startswith("{"):      # arguments as JSON: some templates write it as it is
        try:
            return json.dumps(_mark(json.loads(value), marks, i))
        except ValueError:
            pass
    marks[f"zq{len(marks)}qz"] = i, value
    return f"zq{len(marks) - 1}qz"


@functools.lru_cache(1000)              # most conversations of a data set differ in words alone
def _written(marked, kwargs, enc, template):
    try:
        return render(json.loads(marked), enc, template, kwargs=json.loads(kwargs)).lower()
    except ValueError:
        return None                     # a template that takes no such words; nothing is known


def _check_whole(messages, first, enc, template, prompt, turn, kwargs):
    """ValueError if a template leaves out what the last message says, or any from `first` on.

    Of the answer its very words must be there. Of the rest it is enough that the template writes
    words which stand in their place: it may write them as JSON, or in capitals.
    """
    answer, opened = messages[-1], re.search(r"<\w+>$", prompt.rstrip())
    content = answer["content"].lstrip()
    if opened:                          # <think>, which the prompt has said already
        content = content.removeprefix(opened[0])
    texts = (content, answer.get("reasoning_content", ""))
    missing = [(len(messages) - 1, text) for text in texts if _squeezed(text) not in turn]
    marks, marked = {}, []
    for i, m in enumerate(messages):
        said = {k: m[k] for k in ("content", "tool_calls", "function_call") if k in m}
        marked.append({**m, **_mark(said, marks, i)})
    texts = (json.dumps(x, default=str) for x in (marked, kwargs))
    written = _written(*texts, enc, template)
    if written is not None:
        missing += [(i, x) for word, (i, x) in marks.items() if i >= first and word not in written]
    for i, text in missing:
        raise ValueError(f"the template leaves out a part of turn {i + 1}, {str(text)[:40]!r}; "
                         "pass another --template")


def _turn(messages, k, enc, template, kwargs):
    """(the text before the answer messages[k], that answer up to its last token), as rendered."""
    prompt = render(messages[:k], enc, template, add_generation_prompt=True, kwargs=kwargs)
    with_answer = render(messages[:k + 1], enc, template, kwargs=kwargs)
    if not with_answer.startswith(prompt):
        at = len(os.path.commonprefix([prompt, with_answer]))
        raise ValueError(f"the template does not start turn {k + 1} with its own generation "
                         f"prompt: expected {prompt[at:][:40]!r}, found "
                         f"{with_answer[at:][:40]!r}; pass another --template")
    return prompt, with_answer[len(prompt):].rstrip()


def has_loss(message: dict) -> bool:
    """Is an assistant's message to be learned? ValueError where it does not say so plainly."""
    given = {key: message[key] for key in SWITCHES if key in message}
    for key, value in given.items():
        if value not in (0, 1):         # True, False, 1.0 and 0.0 are among these
            raise ValueError(f"expected {key} of a message to be 0, 1, true or false, found "
                             f"{value!r:.40}")
        if value and message["role"] != "assistant":
            raise ValueError(f"{key} {value!r} on the {message['role']}'s message: only the "
                             f"assistant's words are learned here; take {key} out there")
    return all(given.values())


def pieces(messages: list[dict], enc: Tokenizer, template: str = "auto",
           kwargs: dict | None = None) -> list[list[tuple]]:
    """A conversation -> its samples; each is a list of (text, counts): does that text have loss?

    The assistant's turns count, but those of weight 0. The rendering of the messages before one,
    with the generation prompt, is what the model reads at inference, so that is the prompt. The
    rest is the turn, up to the special token that closes it; white space behind that is the
    template's. kwargs: for the template, see render.
    Each piece is to be tokenised alone: a token across the border would be half prompt, half
    answer, and the prompt would not have the tokens that it has at inference.
    Turns share a sample as long as each rendering continues the one before. Some templates rewrite
    earlier turns (Qwen3 removes their thinking): then the next turn opens a new sample. An
    assistant's message that opens a conversation answers nothing, so it is context. Raises
    ValueError if the template does not allow all this.
    """
    samples, done, first = [], None, 0  # done: the text of the last sample so far
    stops = tuple(enc.decode([i]) for i in enc.stop_ids)
    for k, message in enumerate(messages):
        learned = has_loss(message)
        if message["role"] != "assistant" or k == 0:
            continue
        prompt, turn = _turn(messages, k, enc, template, kwargs)
        end = next((stop for stop in stops if turn.endswith(stop)), None)
        if end is None:
            raise ValueError(f"the template ends turn {k + 1} with {turn[-20:]!r}, expected a "
                             f"token that ends generation, of {' '.join(stops)}; pass another "
                             "--template")
        _check_whole(messages[:k + 1], first, enc, template, prompt,
                     _squeezed(turn.removesuffix(end)), kwargs)
        first = k + 1
        if done is None or not prompt.startswith(done):
            samples.append([])
            done = ""
        samples[-1] += [(prompt[len(done):], False), (turn, learned)]
        done = prompt + turn
    for sample in samples:
        while sample and not sample[-1][1]:             # it would be context of nothing
            sample.pop()
    return [sample for sample in samples if sample]


def with_template(enc: Tokenizer, template: str = "auto", date: str = "",
                  kwargs: str | dict = "") -> Tokenizer:
    """The Tokenizer that speaks this template: the token that closes a turn ends its generation.

    Its files say so too. Qwen3-4B-Base needs it for its own template, which closes turns with
    <|im_end|>, while only <|endoftext|> ends generation. date: the day that the template writes,
    if it writes one; kwargs: what else it reads. Where they are empty, those of `enc` stay.
    """
    source, settings = template_source(template, enc), dict(enc.settings)
    if date and day(date) and "strftime_now" in source:
        settings["date"] = date
    if kwargs:
        settings["kwargs"] = template_arguments(kwargs, source)
    if template == "auto" and not enc.chat_template:
        return enc
    talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    turn = render(talk, enc, source, kwargs=settings.get("kwargs")).rstrip()
    closing = {i for token, i in enc._special_tokens.items() if turn.endswith(token)}
    if not closing:
        raise ValueError(f"the template ends a turn with {turn[-20:]!r}, which is no special token "
                         "of the tokenizer; pass another --template")
    if source == enc.chat_template and closing <= set(enc.stop_ids) and settings == enc.settings:
        return enc
    files = tokenizer_files(enc)
    generation = json.loads(files.get("generation_config.json", "{}"))
    generation["eos_token_id"] = sorted(closing | set(enc.stop_ids))
    return load_tokenizer({**files, "chat_template.jinja": source, SETTINGS: json.dumps(settings),
                           "generation_config.json": json.dumps(generation)})


@contextmanager
def time_limit(seconds):
    """TimeoutError inside `with` after so many seconds.

    In the main thread and where there is SIGALRM (not on Windows); elsewhere there is no limit. A
    single call into C is not interrupted, so see harmless() as well.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(number, frame):
        raise TimeoutError(f"it takes longer than {seconds} s")

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def harmless(operator, left, right):
    """Whether * or ** of two values of a template stays small: no text of 10^11 characters."""
    if operator == "**":
        return all(isinstance(x, (int, float)) and abs(x) < 1000 for x in (left, right))
    size = 1
    for x in (left, right):
        size *= abs(x) if isinstance(x, (int, float)) else len(x)
    return size <= 10**6 or isinstance(left, float) or isinstance(right, float)

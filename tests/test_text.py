"""Text in: renderings as transformers makes them, masks by construction, every refusal, the cache that is never stale."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import torch

import data
from conftest import ROOT
from data import collate, load_text, main, marked, render
from plumbing.tokenizer import QWEN2 as SPLIT, Tokenizer, toy_encoding

CHATML = data.TEMPLATES["chatml"]
QWEN2 = """{%- if messages[0].role == 'system' -%}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ['user', 'assistant'] or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}{{- '\\n<tool_call>' + (call | tojson) + '</tool_call>' }}{%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}
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
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + (message['content'] | trim) + '<|eot_id|>' }}
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
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}
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
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<think>", "</think>"]


def encoding(template=None, **kw):
    """Bytes and a few pairs, two line feeds among them, so that a border between prompt and answer can be straddled."""
    pairs = [b"\n\n", b" a", b"an", b"er", b"is", b"ant", b"wer", b"\n\n\n", b"\n ", b": ", b" 4"]
    ranks = {**{bytes([b]): b for b in range(256)}, **{p: 256 + i for i, p in enumerate(pairs)}}
    special = {t: len(ranks) + i for i, t in enumerate(SPECIAL)}
    return Tokenizer("test", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens=special,
                     **{"end": "<|im_end|>", "stops": ["<|endoftext|>", "<|eot_id|>"], "bos": "<|begin|>",
                        "chat_template": template, **kw})


def say(role, content, **more):
    return {"role": role, "content": content, **more}


ONE = [say("user", "1+1?"), say("assistant", "2")]
TALK = [say("system", "Be brief."), say("user", "Wer? <b> \"ä\"'"), say("assistant", "\nAn answer.\n\n"), say("user", ""),
        say("assistant", "  bye ")]
THINK = [say("user", "a"), say("assistant", "<think>\nx\n</think>\n\nb"), say("user", "c"), say("assistant", "d"), say("user", "e"),
         say("assistant", "f", reasoning_content="y")]
TOOLS = [say("user", "a"), say("assistant", "", tool_calls=[{"name": "<f>", "arguments": {"ü": 1}}]), say("tool", "42"),
         say("assistant", "b")]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


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


# ----------------------------------------------------------------------------------------------------------------------
# templates


@pytest.mark.parametrize("messages", (ONE, TALK, THINK, TOOLS, [], TALK[:2]))
@pytest.mark.parametrize("template", (CHATML, QWEN2, LLAMA3, QWEN3, MISTRAL, MARKED, data.template_source("plain", toy_encoding())))
def test_renderings_are_those_of_transformers(template, messages):
    """Bug: blocks not trimmed, HTML escapes in tojson, loop controls or tags unknown, a token missing in the context."""
    oracle = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    enc = encoding(template)
    for prompt in (False, True):
        try:
            ((expected,), _) = oracle([messages], chat_template=template, add_generation_prompt=prompt, bos_token="<|begin|>",
                                      eos_token="<|im_end|>")
        except Exception as e:
            with pytest.raises(ValueError, match="template fails"):
                render(messages, enc, add_generation_prompt=prompt)
            assert "alternate" in str(e) or not messages
        else:
            assert render(messages, enc, add_generation_prompt=prompt) == expected


def test_plain_is_the_prompt_of_the_scores():
    """Bug: trained on one prompt, scored on another."""
    import eval_math
    question = "How many?\n  Say {{ n }}."
    enc = toy_encoding()
    assert render([say("user", question)], enc, add_generation_prompt=True) == eval_math.chat(enc)(question) == f"Question: {question}\nAnswer:"
    system = [say("system", "Think."), say("user", question)]
    assert render(system, enc, "plain", True) == eval_math.chat(enc, "Think.")(question)
    assert render(system, encoding(), "plain", True) == "<|begin|>" + eval_math.chat(enc, "Think.")(question)


def test_a_template_file_is_read_and_a_wrong_one_is_refused(tmp_path):
    """Bug: a mistyped name taken for a template; a syntax error as a traceback in the middle of the data."""
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    assert render(ONE, encoding(), "mine.jinja") == "1+1?<|im_end|>2<|im_end|>"
    with pytest.raises(SystemExit, match="--template mine.jinj: expected auto, plain, chatml, none or a .jinja file"):
        load([{"messages": ONE}], template="mine.jinj")
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}")
    with pytest.raises(SystemExit, match="--template bad.jinja: no Jinja template: .*end of template"):
        load([{"messages": ONE}], template="bad.jinja")


def test_a_tokenizer_given_a_template_stops_at_its_turns_end_and_carries_both_in_its_files():
    """Bug: Qwen3-4B-Base learns to write <|im_end|> and is then never stopped at it; an export with the template of before."""
    base = encoding(CHATML, end="<|endoftext|>", stops=[])
    with pytest.raises(SystemExit, match=r"turn 2 with '2<\|im_end\|>', expected a token that ends generation, of <\|endoftext\|>;"):
        load([{"messages": ONE}], base)
    end = base._special_tokens["<|im_end|>"]
    for enc in (data.with_template(base), data.with_template(encoding(None, end="<|endoftext|>"), "chatml")):
        assert end in enc.stop_ids and enc.end_id == base.end_id and enc.chat_template == CHATML
        assert counted(load([{"messages": ONE}], enc)[0], enc) == ["2<|im_end|>"]
        again = data.load_tokenizer(data.tokenizer_files(enc))
        assert (again.stop_ids, again.chat_template, again.bos_id) == (enc.stop_ids, CHATML, enc.bos_id)
        assert data.fingerprint(again) == data.fingerprint(base)
    for enc in (encoding(CHATML), encoding(), toy_encoding()):
        assert data.with_template(enc) is enc                                 # nothing to add
    plain = data.with_template(encoding(CHATML), "plain")
    assert render(ONE, plain) == render(ONE, encoding(), "plain") and "bos_token" not in plain.chat_template
    with pytest.raises(ValueError, match="ends a turn with '.*<|im_end|>', which is no special token"):
        data.with_template(toy_encoding(), "chatml")


def test_bos_token_is_the_configurations_in_a_template_and_the_tokenizers_in_ours():
    """Bug: SmolLM2's bos_token before every plain prompt; a template that writes bos_token itself left without it."""
    for said in ("<|begin|>", {"content": "<|begin|>"}):
        enc = encoding(LLAMA3, bos=None, files={"tokenizer_config.json": json.dumps({"bos_token": said})})
        assert render(ONE, enc).startswith("<|begin|><|start_header_id|>user")
        assert render(ONE, enc, "plain").startswith("Question: 1+1?")
    assert render(ONE, encoding(LLAMA3, bos=None)).startswith("<|start_header_id|>user")


# ----------------------------------------------------------------------------------------------------------------------
# the mask


@pytest.mark.parametrize("template, end", ((CHATML, "<|im_end|>"), (QWEN2, "<|im_end|>"), (LLAMA3, "<|eot_id|>"),
                                           (MARKED, "<|im_end|>"), ("plain", "<|im_end|>"), (None, "<|im_end|>")))
def test_loss_is_on_the_assistants_text_and_its_end_token_in_every_turn(template, end):
    """Bug: a header or the line feed after the end token with loss, an end token without, a turn that is forgotten."""
    enc = encoding(template if template != "plain" else None)
    (s,) = load([{"messages": TALK}], enc, template="plain" if template == "plain" else "auto")
    strip = str.strip if template == LLAMA3 else str
    space = " " * (template in ("plain", None))
    assert counted(s, enc) == [space + strip("\nAn answer.\n\n") + end, space + strip("  bye ") + end]
    assert s.loss[-1] and enc.decode(s.tokens.tolist()) == render(TALK, enc, template or "auto").rstrip("\n")


def test_the_prompts_tokens_are_those_of_inference():
    """Bug: rendered and tokenised as one text, so that "\\n" + "\\n" becomes one token across the border."""
    enc = encoding(CHATML)
    (s,) = load([{"question": "Wer?", "answer": "\nan"}], enc)
    prompt = enc.encode(render([say("user", "Wer?")], enc, add_generation_prompt=True), allowed_special="all")
    assert s.tokens[:len(prompt)].tolist() == prompt and s.loss.tolist() == [i >= len(prompt) for i in range(len(s.tokens))]
    whole = enc.encode(render([say("user", "Wer?"), say("assistant", "\nan")], enc), allowed_special="all")
    assert len(whole) < len(s.tokens) + 1, "the border is no trap in this test"


@pytest.mark.parametrize("template", (CHATML, LLAMA3, None))
def test_other_prompts_do_not_move_what_counts_in_the_completion_and_the_other_way_round(template):
    """Bug: a mask that searches the ids: a prompt that quotes the answer or spells "assistant" gains loss."""
    enc = encoding(template)
    answers, prompts = ["an", "4 44 \n\n a", "assistant\n"], ["x", "an", "assistant\nan", " 4\n\n", "Answer: an", ""]
    for answer in answers:
        samples = load([{"question": p, "answer": answer} for p in prompts], enc)
        tails = {tuple(s.tokens[s.loss].tolist()) for s in samples}
        assert len(tails) == 1 and len({int(s.loss.sum()) for s in samples}) == 1
        assert all(s.loss.tolist() == sorted(s.loss.tolist()) for s in samples)
    for p in prompts:
        samples = load([{"question": p, "answer": a} for a in answers], enc)
        assert len({tuple(s.tokens[~s.loss].tolist()) for s in samples}) == 1


def test_masks_agree_with_transformers_where_a_template_marks_its_turns():
    """Bug: any disagreement about which tokens are the assistant's, on a template that says so itself."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Fast, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    letters = pre_tokenizers.ByteLevel.alphabet()
    fast = Fast(models.BPE(vocab={c: i for i, c in enumerate(sorted(letters))}, merges=[]))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    theirs = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>", additional_special_tokens=SPECIAL)
    theirs.chat_template = MARKED
    enc = encoding(MARKED)
    one = Tokenizer("bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([b]): b for b in range(256)}, end="<|im_end|>",
                    special_tokens={t: enc._special_tokens[t] for t in SPECIAL}, chat_template=MARKED)
    for messages in (ONE, TALK, THINK[:5], [ONE[0], ONE[1], say("assistant", "x"), say("user", "y")]):
        out = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        (s,) = load([{"messages": messages}], one)
        assert theirs.decode(out["input_ids"])[:len(one.decode(s.tokens.tolist()))] == one.decode(s.tokens.tolist())
        mask = out["assistant_masks"]
        assert s.loss.tolist() == [bool(m) for m in mask[:len(s.loss)]] and not any(mask[len(s.loss):])


def test_a_template_that_rewrites_earlier_turns_gives_a_sample_a_turn_with_the_prompt_of_inference():
    """Bug: thinking that the model is trained to see in its context and never will, or a row that is refused."""
    enc = encoding(QWEN3)
    samples = load([{"messages": THINK}], enc)
    assert [s.id for s in samples] == [0, 1, 2] and {s.where for s in samples} == {"rows.jsonl:1"}
    turns = [f"<think>\n{thought}\n</think>\n\n{answer}<|im_end|>" for thought, answer in (("x", "b"), ("", "d"), ("y", "f"))]
    assert [counted(s, enc) for s in samples] == [[turn] for turn in turns]
    for k, s in zip((1, 3, 5), samples):
        prompt = enc.encode(render(THINK[:k], enc, add_generation_prompt=True), allowed_special="all")
        assert s.tokens[~s.loss].tolist() == prompt
    assert samples[0].tokens[samples[0].loss][0] == enc._special_tokens["<think>"]        # one token, though content spells it
    (whole,) = load([{"messages": THINK[:5]}], encoding(CHATML))
    assert len(counted(whole, enc)) == 2


def test_unusual_conversations_are_sensible():
    """Bug: an index error on a greeting, loss on it, on a tool's words, or on nothing in two turns of the assistant's in a row."""
    enc = encoding(QWEN2)
    runs = lambda messages: [counted(s, enc) for s in load([{"messages": messages}], enc)]
    assert runs([say("assistant", "Hello!"), *ONE]) == [["2<|im_end|>"]]
    assert runs([*ONE, say("assistant", "no, 3")]) == [["2<|im_end|>", "no, 3<|im_end|>"]]
    assert runs([*ONE, say("user", "and?")]) == [["2<|im_end|>"]]
    assert runs([say("system", "s"), say("assistant", "Hello!")]) == [["Hello!<|im_end|>"]]
    called = '\n<tool_call>{"name": "<f>", "arguments": {"ü": 1}}</tool_call><|im_end|>'
    assert runs([TOOLS[0], {**TOOLS[1], "content": None}, *TOOLS[2:]]) == runs(TOOLS) == [[called, "b<|im_end|>"]]


def test_every_form_of_row_is_read_and_texts_stay_as_they_are():
    """Bug: GSM8K's calculator marks lost, a stripped answer, a column swapped, ShareGPT's names unknown."""
    enc = encoding()
    gold = "48/2 = <<48/2=24>>24\n#### 24 "
    rows = [{"question": "q", "answer": gold}, {"messages": [say("user", "q"), say("assistant", gold)]},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": gold}]}]
    for s in load(rows, enc):
        assert enc.decode(s.tokens.tolist()) == f"<|begin|>Question: q\nAnswer: {gold}<|im_end|>"
    rows = [{"prompt": "p: ", "completion": gold, "answer": "never", "question": "never"}]
    assert marked(load(rows, enc)[0], enc, False) == f"<|begin|>p: ⟦{gold}<|im_end|>⟧"
    chat = encoding(CHATML)
    assert marked(load(rows, chat)[0], chat, False).startswith("<|im_start|>user\np: <|im_end|>\n<|im_start|>assistant\n⟦48/2")
    assert marked(load(rows, chat, template="none")[0], chat, False) == f"<|begin|>p: ⟦{gold}<|im_end|>⟧"
    (s,) = load([{"a": "x", "b": "y", "question": "q", "answer": "z"}], enc, prompt_column="a", completion_column="b")
    assert marked(s, enc, False) == "<|begin|>Question: x\nAnswer:⟦ y<|im_end|>⟧"
    toy = toy_encoding()
    (s,) = load([{"prompt": "1+2:", "completion": "3"}], toy)
    (t,) = data.encode([data.Problem("rows", "1+2:", "3", "3")], toy)
    assert s.tokens.tolist() == t.tokens.tolist() and s.loss.tolist() == t.loss.tolist() and s.family == t.family
    assert collate([s]).x.dtype == collate([s]).y.dtype == torch.int64


# ----------------------------------------------------------------------------------------------------------------------
# sources


def test_files_of_all_kinds_and_folders_at_once_keep_their_order_and_names(tmp_path):
    """Bug: one file read twice or not at all, ids that start again, a test split trained on since it lies beside the train split."""
    import datasets
    row = lambda q: {"question": q, "answer": "a"}
    table = datasets.Dataset.from_list
    table([{"messages": [say("user", q), say("assistant", "a", tool_calls=None)]} for q in "df"]).to_parquet("p.parquet")
    table([row("h")]).save_to_disk("saved")
    datasets.DatasetDict({"train": table([row("i")]), "test": table([row("o")])}).save_to_disk("dict")
    write("folder/train.jsonl", [row("j")])
    write("folder/test.jsonl", [row("k")])
    write("folder/LICENSE", [row("no")])
    write("z.jsonl.gz", [row("l"), {**row("m"), "source": "amc"}])
    (tmp_path / "list.json").write_text(json.dumps([{**row("n"), "family": "sums", "source": "no"}]))
    enc, lines = encoding(), []
    specs = ["p.parquet", "saved", "dict", "dict@test", "folder", "folder@test", "z.jsonl.gz", "list.json"]
    samples = load_text(specs, enc, say=lines.append)
    text = [enc.decode(s.tokens.tolist()) for s in samples]
    assert [t.split(": ")[1][0] for t in text] == list("dfhiojklmn") and [s.id for s in samples] == list(range(10))
    assert [s.where for s in samples] == ["p.parquet:1", "p.parquet:2", "saved:1", "dict:1", "dict:1", "folder/train.jsonl:1",
                                          "folder/test.jsonl:1", "z.jsonl.gz:1", "z.jsonl.gz:2", "list.json:1"]
    assert [s.family for s in samples] == ["p", "p", "saved", "dict", "dict", "folder", "folder", "z", "amc", "sums"]
    assert len(lines) == 8 and lines[0].startswith("data: p.parquet: 2 rows -> 2 samples of ")


def test_the_hub_is_asked_for_name_configuration_and_split(monkeypatch):
    """Bug: a configuration taken for a split, the test split as default."""
    import datasets
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or datasets.Dataset.from_list(
        [{"question": "q", "answer": "a"}]))
    samples = load_text(["openai/gsm8k:main@train+test", "a/b", "a/c@x", "a/d:y"], encoding())
    assert asked == [(("openai/gsm8k", "main"), {"split": "train+test"}), (("a/b", None), {"split": "train"}),
                     (("a/c", None), {"split": "x"}), (("a/d", "y"), {"split": "train"})]
    assert samples[0].where == "openai/gsm8k:main@train+test:1" and [s.family for s in samples] == ["gsm8k", "b", "c", "d"]


def test_sources_that_are_not_there_are_refused_with_the_way_out(tmp_path):
    """Bug: a traceback from the hub client for a mistyped file name."""
    row = {"question": "q", "answer": "a"}
    write("data.csv", [row])
    write("fine.jsonl", [row])
    write("texts/readme.txt", [row])
    (tmp_path / "bad.parquet").write_text("nope")
    os.mkdir("void")
    for spec, error in (("nix.jsonl", "nix.jsonl: no such file"), ("../x/nix.jsonl", "no such file or folder"), ("", "no such file"),
                        ("gsm8k", "OWNER/NAME"), ("data.csv", "expected a file named .jsonl"), ("bad.parquet", "expected a parquet"),
                        ("fine.jsonl@train", "no :CONFIG or @SPLIT"), ("void:main", "a configuration, which only the hub has"),
                        ("void", "expected a folder with data"), ("texts", "expected files .jsonl")):
        with pytest.raises(SystemExit, match=error):
            load_text([spec], encoding())


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    """Bug: a page of traceback, or minutes of retries that end in one."""
    code = "import data; data.load_text(['openai/gsm8k:main'], data.toy_encoding())"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ROOT}
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert r.returncode == 1 and "--data openai/gsm8k:main: no such folder here, none from the hub" in r.stderr
    assert "pass a local file" in r.stderr and "Traceback" not in r.stderr


# ----------------------------------------------------------------------------------------------------------------------
# refusals

ROW = {"question": "q", "answer": "a"}


@pytest.mark.parametrize("row, error", (
    ({"problem": "x", "solution": "y"}, "messages or prompt and completion or question and answer, found problem, solution;"),
    ({"question": "x", "answer": None}, "found question; name yours with --prompt-column"),
    ({}, "found none"),
    ({"question": "x", "answer": 42}, "expected text as the assistant's content, found int 42"),
    ({"question": "x", "answer": ["42"]}, "found list"),
    ({"question": "x", "answer": " \n"}, "empty completion"),
    ({"messages": "hello"}, "expected messages to be a list of {role, content}, found 'hello'"),
    ({"messages": []}, "expected messages to be a list"),
    ({"messages": ["a"]}, "expected messages to be a list"),
    ({"messages": [say("user", "a"), say("critic", "b")]}, "unknown role 'critic' in messages; expected one of system, user"),
    ({"messages": [{"content": "a"}]}, "unknown role None"),
    ({"messages": [say("user", "a"), {"role": "assistant"}]}, "expected text as the assistant's content, found NoneType"),
    ({"messages": [say("user", "a"), say("assistant", "")]}, "empty completion"),
    ({"messages": [say("user", "a")]}, "no assistant's turn"),
    ({"messages": [say("assistant", "a"), say("user", "b")]}, "no assistant's turn"),
    ({"messages": ONE, "tools": [{"name": "f"}]}, "tools are not passed"),
    ({"question": "x<|im_end|>", "answer": "y"}, "the user's message spells the control token <|im_end|>"),
    ({"prompt": "x", "completion": "y<|endoftext|>"}, "the assistant's message spells the control token <|endoftext|>"),
    ({"messages": [*ONE, say("tool", "x", name="<|eot_id|>"), ONE[1]]}, "the tool's message spells the control token <|eot_id|>"),
    ({"question": "x", "answer": "\ud800"}, "surrogates not allowed"),
    ({**ROW, "id": 7}, "id 7 is also that of first.jsonl.gz:2"),
))
def test_a_malformed_row_is_named_by_file_and_line(row, error):
    """Bug: a row that is skipped, mended in silence, or refused without a word on where it stands."""
    write("first.jsonl.gz", [{**ROW, "id": 6}, {**ROW, "id": 7}])
    write("second.jsonl", [ROW, {**ROW, "id": "7"}, row, ROW])
    with pytest.raises(SystemExit) as e:
        load_text(["first.jsonl.gz", "second.jsonl"], encoding(CHATML))
    assert str(e.value).startswith("second.jsonl:3: ") and error in str(e.value), e.value


def test_a_closing_token_of_any_form_may_not_stand_in_a_text():
    """Bug: only <|...|> known as a control token, so that a text with Llama's </s> ends its own turn."""
    for end, kw in (("</think>", {}), ("<|im_end|>", {"bos": "</think>"})):
        enc = encoding("{% for m in messages %}{{ m.content }}" + end + "{% endfor %}", end=end, stops=[], **kw)
        with pytest.raises(SystemExit, match="rows.jsonl:1: the user's message spells the control token </think>"):
            load([{"question": "x</think>", "answer": "y"}], enc)
    (s,) = load([{"question": "x</think>", "answer": "y"}], encoding())
    assert s.tokens.tolist().count(enc._special_tokens["</think>"]) == 1


def test_a_null_is_no_value():
    """Bug: a parquet file, whose structs have every key, rendered otherwise than the same rows as JSONL."""
    enc = encoding("{% for m in messages %}{% if m.tool_calls is defined %}CALL{% endif %}{{ m.content }}<|im_end|>{% endfor %}")
    for messages in (ONE, [{**m, "tool_calls": None, "from": None, "value": None, "thinking": None} for m in ONE]):
        (s,) = load([{"messages": messages, "prompt": None, "id": None, "family": None}], enc)
        assert marked(s, enc, False) == "1+1?<|im_end|>⟦2<|im_end|>⟧"


def test_broken_json_and_empty_files_are_refused():
    """Bug: an empty data set that trains on nothing."""
    with open("broken.jsonl", "w") as f:
        f.write(json.dumps(ROW) + "\n{'question': 1}\n")
    with pytest.raises(SystemExit, match="broken.jsonl:2: expected one JSON object"):
        load_text(["broken.jsonl"], encoding())
    open("empty.jsonl", "w").close()
    with pytest.raises(SystemExit, match="--data empty.jsonl: no row in it"):
        load_text([write("some.jsonl", [ROW]), "empty.jsonl"], encoding())


def test_wrong_flags_are_refused():
    """Bug: half a pair of columns that is ignored, a file given twice that counts double."""
    f = write("f.jsonl", [ROW])
    for specs, kw in (([f], {"prompt_column": "question"}), ([f], {"long": "cut"}), ([f, f], {}), ([], {}), ([f], {"max_len": 0})):
        with pytest.raises(SystemExit, match="data: expected --data once or more, none twice"):
            load_text(specs, encoding(), **kw)


@pytest.mark.parametrize("template, error", (
    ("{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}",
     "does not start turn 2 with its own generation prompt: expected 'bot\\]', found 'assistant\\]2"),
    ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
     "ends turn 2 with '2', expected a token that ends generation, of <|endoftext|> <|im_end|> <|eot_id|>;"),
    ("{% for m in messages %}{{ m.role }}: {{ m.content }}<think>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
     "ends turn 2 with '2<think>'"),
    ("{% for m in messages %}[{{ m.role }}]{{ m.content[1:] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
     "leaves out a part of turn 2, '2'"),
    ("{{ messages[0].content + 1 }}", "the chat template fails .TypeError"),
    ("{{ raise_exception('no') }}", "the chat template fails .TemplateError: no"),
))
def test_templates_that_give_no_exact_mask_are_refused(template, error):
    """Bug: loss on a header, an answer that never learns to end, thinking that a template drops in silence."""
    with pytest.raises(SystemExit, match="rows.jsonl:1: .*" + error.replace("|", r"\|")):
        load([{"messages": ONE}], encoding(template))


def test_a_template_that_drops_the_reasoning_is_refused():
    """Bug: a distilled data set whose thoughts are never learned."""
    row = {"messages": [say("user", "a"), say("assistant", "b", thinking="because")]}
    with pytest.raises(SystemExit, match="leaves out a part of turn 2, 'because'"):
        load([row], encoding(CHATML))
    assert counted(load([row], enc := encoding(QWEN3))[0], enc) == ["<think>\nbecause\n</think>\n\nb<|im_end|>"]


def test_long_rows_are_dropped_cut_or_named_and_always_counted():
    """Bug: off by one at the limit, a cut sample without a loss token that divides by zero, a count that is not said."""
    enc, lines = toy_encoding(), []
    rows = [{"prompt": "abc", "completion": "d" * n} for n in (6, 7, 8, 20)] + [{"prompt": "a" * 11, "completion": "b"}]
    for how in data.LONG[:2]:
        samples = load(rows, enc, max_len=10, long=how, say=lines.append)     # the row of 7: 11 tokens with its end, 10 are read
        assert [len(s.tokens) - 1 for s in samples] == {"drop": [9, 10], "truncate": [9, 10, 10, 10]}[how]
        assert [s.id for s in samples] == list(range(len(samples))) and all(s.loss[1:].any() for s in samples)
    assert "5 rows -> 2 samples" in lines[0] and "over --max-len 10: 3 dropped, 0 truncated" in lines[0]
    assert "5 rows -> 4 samples" in lines[1] and "over --max-len 10: 1 dropped, 2 truncated" in lines[1]
    with pytest.raises(SystemExit, match=r"rows.jsonl:4: 23 tokens, the longest of 3 samples that exceed --max-len 10; pass --long"):
        load(rows, enc, max_len=10)
    with pytest.raises(SystemExit, match="no sample with a loss token is left: 5 exceed --max-len 2"):
        load(rows, enc, max_len=2, long="truncate")
    (s,) = load([{"prompt": "", "completion": "ab"}], enc)
    assert s.loss.tolist() == [False, True, True]                             # nothing predicts the first token


def test_a_character_that_the_vocabulary_lacks_is_named():
    """Bug: a panic inside the tokenizer."""
    with pytest.raises(SystemExit, match="rows.jsonl:2: the vocabulary lacks 'ü'; take it out of the row, or take a tokenizer"):
        load([ROW, {"question": "ü", "answer": "a"}], toy_encoding())


# ----------------------------------------------------------------------------------------------------------------------
# the cache


@pytest.fixture
def caching(monkeypatch):
    """Every size of data set is cached; returns the list of what was tokenised."""
    monkeypatch.setattr(data, "CACHED_ROWS", 1)
    calls, real = [], data._tokenise
    monkeypatch.setattr(data, "_tokenise", lambda *a: calls.append(a) or real(*a))
    return calls


def same(a, b):
    fields = lambda s: (s.id, s.family, s.where, s.tokens.tolist(), s.loss.tolist(), s.tokens.dtype)
    return list(map(fields, a)) == list(map(fields, b))


def test_a_second_look_reads_the_cache_and_sees_the_same(caching):
    """Bug: a cache that loses a field, an order, or the line of counts."""
    lines, rows = [], [{"messages": THINK}, {"messages": ONE, "family": "sums"}]
    once, twice = (load(rows, encoding(QWEN3), say=lines.append) for _ in range(2))
    assert len(caching) == 1 and same(once, twice) and lines[0] == lines[1] and len(os.listdir("out/cache")) == 1


def test_the_cache_depends_on_all_that_the_samples_depend_on(caching, monkeypatch, tmp_path):
    """Bug: a stale cache: a changed file, tokenizer, template, flag, or code that gives the old samples."""
    import datasets
    rows = [{"question": "q", "answer": "a", "p": "x", "c": "y"}]
    (tmp_path / "t.jinja").write_text(CHATML + "{# 1 #}")
    other = encoding()
    other._mergeable_ranks[b"zz"] = 999
    changes = [
        lambda: load(rows, encoding()),
        lambda: load(rows + rows, encoding()),
        lambda: load(rows, encoding(CHATML)),
        lambda: load(rows, encoding(QWEN2)),
        lambda: load(rows, encoding(), template="t.jinja"),
        lambda: (tmp_path / "t.jinja").write_text(CHATML + "{# 2 #}") and load(rows, encoding(), template="t.jinja"),
        lambda: load(rows, encoding(end="<|endoftext|>")),
        lambda: load(rows, encoding(stops=[])),
        lambda: load(rows, encoding(bos=None)),
        lambda: load(rows, other),
        lambda: load(rows, encoding(MISTRAL)),
        lambda: load(rows, encoding(MISTRAL, bos=None)),
        lambda: load(rows, encoding(MISTRAL, bos=None, files={"tokenizer_config.json": '{"bos_token": "<|begin|>"}'})),
        lambda: load(rows, encoding(MISTRAL, end="<|eot_id|>", stops=["<|endoftext|>", "<|im_end|>"])),
        lambda: load(rows, encoding(), template="none"),
        lambda: load(rows, encoding(), template="plain"),
        lambda: load(rows, encoding(), prompt_column="p", completion_column="c"),
        lambda: load(rows, encoding(), prompt_column="question", completion_column="c"),
        lambda: load(rows, encoding(), prompt_column="p", completion_column="answer"),
        lambda: load(rows, encoding(), max_len=100),
        lambda: load(rows, encoding(), max_len=100, long="drop"),
        lambda: load_text([write("other.jsonl", rows)], encoding()),
        lambda: load_text([os.path.dirname(write("folder/train.jsonl", rows))], encoding()),
        lambda: load_text([os.path.dirname(write("folder/train.jsonl", rows * 2))], encoding()),
        lambda: datasets.Dataset.from_list(rows).save_to_disk("saved") or load_text(["saved"], encoding()),
        lambda: datasets.Dataset.from_list(rows * 2).save_to_disk("saved") or load_text(["saved"], encoding()),
        lambda: load_text(["rows.jsonl", "other.jsonl"], encoding()),
        lambda: load_text(["other.jsonl", "rows.jsonl"], encoding())]
    for n, change in enumerate(changes, 1):
        change()
        assert len(caching) == n, f"change {n - 1} was answered from the cache"
    load(rows, encoding())
    assert len(caching) == len(changes)
    real = data._digest
    for name in ("data.py", "tokenizer.py", "eval_math.py"):
        monkeypatch.setattr(data, "_digest", lambda path: real(path) + "x" * path.endswith(name))
        load(rows, encoding())
    assert len(caching) == len(changes) + 3


def test_a_hub_data_set_is_known_by_its_fingerprint(caching, monkeypatch):
    """Bug: a revision of the hub that gives the old samples."""
    import datasets
    sets = [datasets.Dataset.from_list([{"question": q, "answer": "a"}]) for q in "xxy"]
    sets[1]._fingerprint = sets[0]._fingerprint
    seen = []
    for hub in sets:
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: hub)
        seen.append(load_text(["a/b"], encoding()))
    first, again, new = seen
    assert len(caching) == 2 and same(first, again) and not same(first, new)


@pytest.mark.parametrize("harm", (lambda b: b"", lambda b: b[:-200], lambda b: b[:len(b) // 2], lambda b: b"text", None))
def test_a_broken_cache_is_made_again(caching, harm):
    """Bug: a killed disk that trains on other tokens, or a traceback that a user must answer by deleting files."""
    rows = [{"question": f"{i} an", "answer": "4 " * i + "a"} for i in range(1, 40)]
    once = load(rows, encoding())
    (name,) = os.listdir("out/cache")
    path = os.path.join("out", "cache", name)
    with open(path, "rb") as f:
        whole = f.read()
    at = whole.index(once[20].tokens.numpy().tobytes())        # where harm is None one bit of one token flips, which torch.load does not see
    with open(path, "wb") as f:
        f.write(harm(whole) if harm else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    assert same(once, load(rows, encoding())) and len(caching) == 2
    assert same(once, load(rows, encoding())) and len(caching) == 2


def test_a_file_that_changes_while_it_is_read_is_not_cached(monkeypatch):
    """Bug: new samples under the hash of the old file, or the other way round, for good."""
    monkeypatch.setattr(data, "CACHED_ROWS", 1)
    real = data._tokenise
    monkeypatch.setattr(data, "_tokenise", lambda *a: (write("rows.jsonl", [ROW] * 3), real(*a))[1])
    assert len(load([ROW])) == 3 and not os.path.exists("out")
    monkeypatch.undo()


def test_what_should_not_be_cached_is_not(caching, monkeypatch):
    """Bug: a template that writes the date, answered on the next day with the day before; a cache for a handful of rows."""
    for _ in range(2):
        load([ROW], encoding(LLAMA3))
    assert len(caching) == 2 and not os.path.exists("out")
    monkeypatch.setattr(data, "CACHED_ROWS", 2)
    load([ROW], encoding())
    assert not os.path.exists("out")
    with pytest.raises(SystemExit):
        load([ROW, {}], encoding())
    assert not os.path.exists("out")


# ----------------------------------------------------------------------------------------------------------------------
# python data.py show


def test_show_marks_what_counts_and_says_where_it_stands(capsys, monkeypatch):
    """Bug: marks that a pipe swallows, a sample without its origin, escape codes in a file."""
    write("a.jsonl", [{**ROW, "source": "amc"}, {"prompt": "1+1=", "completion": "2"}, ROW])
    main(["show", "--data", "a.jsonl", "-n", "2"])
    out = capsys.readouterr().out
    assert out == ("data: a.jsonl: 3 rows -> 3 samples of 50 tokens, 8 with loss\n\n"
                   "--- id 0 | a.jsonl:1 | amc | 22 tokens, 3 with loss\nQuestion: q\nAnswer:⟦ a<|end|>⟧\n\n"
                   "--- id 1 | a.jsonl:2 | a | 6 tokens, 2 with loss\n1+1=⟦2<|end|>⟧\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["show", "--data", "a.jsonl", "-n", "2"])
    assert "1+1=\033[32m2<|end|>\033[0m\n" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["show", "--data", "a.jsonl", "-n", "2"])
    assert "⟦2<|end|>⟧" in capsys.readouterr().out


def test_show_passes_its_flags_on(capsys, monkeypatch):
    """Bug: a flag that is parsed and forgotten."""
    write("a.jsonl", [{"p": "x", "c": "yyyy"}, {"p": "x", "c": "y"}])
    flags = "--data a.jsonl --prompt-column p --completion-column c --template none --max-len 4 --long".split()
    main(["show", *flags, "truncate"])
    assert "\nx⟦yyyy⟧\n" in capsys.readouterr().out
    main(["show", *flags, "drop"])
    assert "yyyy" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="a.jsonl:1: 5 tokens"):
        main(["show", *flags, "error"])
    monkeypatch.setattr(data, "load_tokenizer", lambda path: {"tok": encoding(CHATML)}[path], raising=False)
    main(["show", "--tokenizer", "tok", "--data", write("b.jsonl", [{"question": "ü", "answer": "é"}])])
    assert "<|im_start|>user\nü<|im_end|>\n<|im_start|>assistant\n⟦é<|im_end|>⟧\n" in capsys.readouterr().out


def test_without_a_command_it_prints_problems_as_ever(capsys):
    """Bug: a new subcommand that takes the old command away."""
    main(["--task", "toy-math", "-n", "1"])
    assert len(capsys.readouterr().out.splitlines()) == len(data.FAMILIES)

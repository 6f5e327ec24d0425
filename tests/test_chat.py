"""Chat templates: renderings as transformers makes them, masks by construction, what is refused."""

import datetime
import json
import pickle

import pytest
from chats import (
    CHATML,
    LLAMA3,
    MARKED,
    MISTRAL,
    ONE,
    QWEN2,
    QWEN3,
    SPECIAL,
    TALK,
    THINK,
    TOOLS,
    counted,
    encoding,
    load,
    say,
)
from test_tokenizer import made

from plumbing.chat import render, template_source, with_template
from plumbing.text import marked
from plumbing.tokenizer import Tokenizer, fingerprint, load_tokenizer, tokenizer_files, toy_encoding


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


# --------------------------------------------------------------------------------------------------
# templates


@pytest.mark.parametrize("messages", (ONE, TALK, THINK, TOOLS, [], TALK[:2]))
@pytest.mark.parametrize("template",
                         (CHATML, QWEN2, LLAMA3, QWEN3, MISTRAL, MARKED,
                          template_source("plain", toy_encoding())))
def test_renderings_are_those_of_transformers(template, messages):
    """Bug: blocks not trimmed, HTML escapes in tojson, loop controls or tags unknown, a token
    missing in the context.
    """
    oracle = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    enc = encoding(template)
    for prompt in (False, True):
        try:
            ((expected,), _) = oracle([messages], chat_template=template,
                                      add_generation_prompt=prompt, bos_token="<|begin|>",
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
    asked = eval_math.chat(enc)(question)
    assert asked == f"Question: {question}\nAnswer:"
    assert render([say("user", question)], enc, add_generation_prompt=True) == asked
    system = [say("system", "Think."), say("user", question)]
    asked = eval_math.chat(enc, "Think.")(question)
    assert render(system, enc, "plain", True) == asked
    assert render(system, encoding(), "plain", True) == "<|begin|>" + asked


@pytest.mark.parametrize("template", [
    None, CHATML, QWEN3, CHATML.replace("{{ m.content", "{{ m.name or '' }}{{ m.content")])
@pytest.mark.parametrize("row", [
    {"prompt": "How many? ", "completion": "42"}, {"question": "How many?", "answer": "42"},
    {"prompt": "How many?", "completion": "42", "system": "Think."}, {"messages": TALK},
    {"messages": [say("system", "Greet."), say("assistant", "Hello!")]},
    {"messages": [say("user", "How many?", name="Ann"), say("assistant", "42")]}])
def test_a_question_of_your_own_is_asked_as_training_reads_its_row(row, template):
    """Bug: a model without a chat template that learns "How many? 42" is asked "Question: How many?
    Answer:", and its score is that of another prompt."""
    from plumbing.benchmarks import own_problems
    from plumbing.scoring import asked, chat
    enc = encoding(template)
    sample = load([row], enc)[-1]
    (problem,) = own_problems("mine", "exact", "rows.jsonl")
    n = int(sample.loss.nonzero()[-1]) + 1      # of the last turn, where a sample has several
    while sample.loss[n - 1]:
        n -= 1
    assert chat(enc)(asked(problem)) == enc.decode(sample.tokens[:n].tolist())


def test_a_question_of_your_own_has_the_template_arguments_of_its_row():
    """Bug: trained with thinking off, as its row says, and asked with it on."""
    from plumbing.benchmarks import own_problems
    from plumbing.scoring import asked, chat
    enc = encoding(ARGUED)
    (sample,) = load([{"messages": ONE, "chat_template_kwargs": {"enable_thinking": False}}], enc)
    (problem,) = own_problems("mine", "exact", "rows.jsonl")
    prompt = sample.tokens[:int(sample.loss.nonzero()[0])].tolist()
    assert chat(enc)(asked(problem)) == enc.decode(prompt) != chat(enc)("1+1?")


def test_a_model_whose_prompt_opens_a_thought_is_asked():
    """Bug: a template as DeepSeek-R1's distilled models have it, whose prompt ends in a <think>
    that no turn begins with, stops sampling and scoring."""
    thinks = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert thinks != CHATML
    enc = with_template(encoding(thinks))
    assert render(ONE[:1], enc, add_generation_prompt=True).endswith("<think>\n")
    assert enc.encode_single_token("<|im_end|>") in enc.stop_ids


@pytest.mark.parametrize("config, named", [
    ({}, {"bos_token": "<|im_start|>"}),
    ({"pad_token": "<|im_end|>", "unk_token": "<|im_start|>"}, {}),
    ({"bos_token": "<|im_end|>"}, {"bos_token": "<|im_start|>"})])
def test_a_template_is_given_the_tokens_that_transformers_gives(config, named, tmp_path):
    """Bug: bos_token of special_tokens_map.json, pad_token and unk_token left empty."""
    transformers = pytest.importorskip("transformers", reason="the oracle")
    template = "{{ bos_token }}|{{ pad_token }}|{{ unk_token }}|{{ eos_token }}"
    usual = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    for name, text in {
            "tokenizer.json": made("smollm2"),
            "tokenizer_config.json": json.dumps(usual | config | {"chat_template": template}),
            "special_tokens_map.json": json.dumps(named)}.items():
        (tmp_path / name).write_text(text)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert render(ONE, load_tokenizer(tmp_path)).split("|") == theirs.apply_chat_template(
        ONE, tokenize=False).split("|")


def test_a_template_file_is_read_and_a_wrong_one_is_refused(tmp_path):
    """Bug: a mistyped name taken for a template; a syntax error as a traceback in the middle of the
    data.
    """
    source = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    (tmp_path / "mine.jinja").write_text(source, "utf-8-sig")       # as some editors save it
    assert render(ONE, encoding(), "mine.jinja") == "1+1?<|im_end|>2<|im_end|>"
    with pytest.raises(ValueError,
                       match="--template mine.jinj: expected auto, plain, chatml, none or a"):
        load([{"messages": ONE}], template="mine.jinj")
    (tmp_path / "bad.jinja").write_text("{% for m in messages %}")
    with pytest.raises(ValueError,
                       match="--template bad.jinja: no Jinja template: .*end of template"):
        load([{"messages": ONE}], template="bad.jinja")


def test_a_tokenizer_given_a_template_stops_at_its_turns_end_and_carries_both_in_its_files():
    """Bug: Qwen3-4B-Base learns to write <|im_end|> and is then never stopped at it; an export with
    the template of before.
    """
    base = encoding(CHATML, end="<|endoftext|>", stops=[])
    with pytest.raises(ValueError,
                       match=r"turn 2 with '2<\|im_end\|>', expected a token that ends generation, "
                             r"of <\|endoftext\|>;"):
        load([{"messages": ONE}], base)
    end = base._special_tokens["<|im_end|>"]
    for enc in (with_template(base), with_template(encoding(None, end="<|endoftext|>"), "chatml")):
        assert end in enc.stop_ids and enc.end_id == base.end_id and enc.chat_template == CHATML
        assert counted(load([{"messages": ONE}], enc)[0], enc) == ["2<|im_end|>"]
        again = load_tokenizer(tokenizer_files(enc))
        assert again.stop_ids == enc.stop_ids and again.bos_id == enc.bos_id
        assert again.chat_template == CHATML
        assert fingerprint(again) == fingerprint(base)
    for enc in (encoding(CHATML), encoding(), toy_encoding()):
        assert with_template(enc) is enc                                 # nothing to add
    plain = with_template(encoding(CHATML), "plain")
    assert render(ONE, plain) == render(ONE, encoding(), "plain")
    assert "bos_token" not in plain.chat_template
    with pytest.raises(ValueError,
                       match="ends a turn with '.*<|im_end|>', which is no special token"):
        with_template(toy_encoding(), "chatml")


def test_bos_token_is_the_configurations_in_a_template_and_the_tokenizers_in_ours():
    """Bug: SmolLM2's bos_token before every plain prompt; a template that writes bos_token itself
    left without it.
    """
    for said in ("<|begin|>", {"content": "<|begin|>"}):
        enc = encoding(LLAMA3, bos=None,
                       files={"tokenizer_config.json": json.dumps({"bos_token": said})})
        assert render(ONE, enc).startswith("<|begin|><|start_header_id|>user")
        assert render(ONE, enc, "plain").startswith("Question: 1+1?")
    assert render(ONE, encoding(LLAMA3, bos=None)).startswith("<|start_header_id|>user")


# --------------------------------------------------------------------------------------------------
# the mask


@pytest.mark.parametrize("template, end",
                         ((CHATML, "<|im_end|>"), (QWEN2, "<|im_end|>"), (LLAMA3, "<|eot_id|>"),
                                           (MARKED, "<|im_end|>"), ("plain", "<|im_end|>"),
                                           (None, "<|im_end|>")))
def test_loss_is_on_the_assistants_text_and_its_end_token_in_every_turn(template, end):
    """Bug: a header or the line feed after the end token with loss, an end token without, a turn
    that is forgotten.
    """
    enc = encoding(template if template != "plain" else None)
    (s,) = load([{"messages": TALK}], enc, template="plain" if template == "plain" else "auto")
    strip = str.strip if template == LLAMA3 else str
    space = " " * (template in ("plain", None))
    assert counted(s, enc) == [space + strip("\nAn answer.\n\n") + end, space + strip("  bye ")
                               + end]
    assert s.loss[-1]
    assert enc.decode(s.tokens.tolist()) == render(TALK, enc, template or "auto").rstrip("\n")


def test_the_prompts_tokens_are_those_of_inference():
    """Bug: rendered and tokenised as one text, so that "\\n" + "\\n" becomes one token across the
    border.
    """
    enc = encoding(CHATML)
    (s,) = load([{"question": "Wer?", "answer": "\nan"}], enc)
    prompt = enc.encode(render([say("user", "Wer?")], enc, add_generation_prompt=True),
                        allowed_special="all")
    assert s.tokens[:len(prompt)].tolist() == prompt
    assert s.loss.tolist() == [i >= len(prompt) for i in range(len(s.tokens))]
    whole = enc.encode(render([say("user", "Wer?"), say("assistant", "\nan")], enc),
                       allowed_special="all")
    assert len(whole) < len(s.tokens) + 1, "the border is no trap in this test"


@pytest.mark.parametrize("template", (CHATML, LLAMA3, None))
def test_other_prompts_do_not_move_what_counts_in_the_completion_and_the_other_way_round(template):
    """Bug: a mask that searches the ids: a prompt that quotes the answer or spells "assistant"
    gains loss.
    """
    enc = encoding(template)
    answers = ["an", "4 44 \n\n a", "assistant\n"]
    prompts = ["x", "an", "assistant\nan", " 4\n\n", "Answer: an", ""]
    for answer in answers:
        samples = load([{"question": p, "answer": answer} for p in prompts], enc)
        tails = {tuple(s.tokens[s.loss].tolist()) for s in samples}
        assert len(tails) == 1 and len({int(s.loss.sum()) for s in samples}) == 1
        assert all(s.loss.tolist() == sorted(s.loss.tolist()) for s in samples)
    for p in prompts:
        samples = load([{"question": p, "answer": a} for a in answers], enc)
        assert len({tuple(s.tokens[~s.loss].tolist()) for s in samples}) == 1


def test_masks_agree_with_transformers_where_a_template_marks_its_turns():
    """Bug: any disagreement about which tokens are the assistant's, on a template that says so
    itself.
    """
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    letters = pre_tokenizers.ByteLevel.alphabet()
    fast = Fast(models.BPE(vocab={c: i for i, c in enumerate(sorted(letters))}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    theirs = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>",
                                     additional_special_tokens=SPECIAL)
    theirs.chat_template = MARKED
    enc = encoding(MARKED)
    one = Tokenizer("bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([b]): b for b in range(256)},
                    end="<|im_end|>",
                    special_tokens={t: enc._special_tokens[t] for t in SPECIAL},
                    chat_template=MARKED)
    for messages in (ONE, TALK, THINK[:5],
                     [ONE[0], ONE[1], say("assistant", "x"), say("user", "y")]):
        out = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True,
                                         return_dict=True)
        (s,) = load([{"messages": messages}], one)
        text = one.decode(s.tokens.tolist())
        assert theirs.decode(out["input_ids"])[:len(text)] == text
        mask = out["assistant_masks"]
        assert s.loss.tolist() == [bool(m) for m in mask[:len(s.loss)]]
        assert not any(mask[len(s.loss):])


def test_a_template_that_rewrites_earlier_turns_gives_each_turn_the_prompt_of_inference():
    """Bug: thinking that the model is trained to see in its context and never will, or a row that
    is refused.
    """
    enc = encoding(QWEN3)
    samples = load([{"messages": THINK}], enc)
    assert [s.id for s in samples] == [0, 1, 2] and {s.where for s in samples} == {"rows.jsonl:1"}
    turns = [f"<think>\n{thought}\n</think>\n\n{answer}<|im_end|>" for thought,
             answer in (("x", "b"), ("", "d"), ("y", "f"))]
    assert [counted(s, enc) for s in samples] == [[turn] for turn in turns]
    for k, s in zip((1, 3, 5), samples, strict=False):
        prompt = enc.encode(render(THINK[:k], enc, add_generation_prompt=True),
                            allowed_special="all")
        assert s.tokens[~s.loss].tolist() == prompt
    # one token, though content spells it
    assert samples[0].tokens[samples[0].loss][0] == enc._special_tokens["<think>"]
    (whole,) = load([{"messages": THINK[:5]}], encoding(CHATML))
    assert len(counted(whole, enc)) == 2


def test_unusual_conversations_are_sensible():
    """Bug: an index error on a greeting, loss on it, on a tool's words, or on nothing in two turns
    of the assistant's in a row.
    """
    enc = encoding(QWEN2)
    def runs(messages):
        return [counted(s, enc) for s in load([{"messages": messages}], enc)]
    assert runs([say("assistant", "Hello!"), *ONE]) == [["2<|im_end|>"]]
    assert runs([*ONE, say("assistant", "no, 3")]) == [["2<|im_end|>", "no, 3<|im_end|>"]]
    assert runs([*ONE, say("user", "and?")]) == [["2<|im_end|>"]]
    assert runs([say("system", "s"), say("assistant", "Hello!")]) == [["Hello!<|im_end|>"]]
    called = '\n<tool_call>{"name": "<f>", "arguments": {"ü": 1}}</tool_call><|im_end|>'
    assert runs(TOOLS) == [[called, "b<|im_end|>"]]
    assert runs([TOOLS[0], {**TOOLS[1], "content": None}, *TOOLS[2:]]) == runs(TOOLS)


def test_a_closing_token_of_any_form_may_not_stand_in_a_text():
    """Bug: only <|...|> known as a control token, so that a text with Llama's </s> ends its own
    turn.
    """
    for end, kw in (("</think>", {}), ("<|im_end|>", {"bos": "</think>"})):
        enc = encoding("{% for m in messages %}{{ m.content }}" + end + "{% endfor %}", end=end,
                       stops=[], **kw)
        with pytest.raises(ValueError,
                           match="jsonl:1: the user's message spells the control token </think>"):
            load([{"question": "x</think>", "answer": "y"}], enc)
    (s,) = load([{"question": "x</think>", "answer": "y"}], encoding())
    assert s.tokens.tolist().count(enc._special_tokens["</think>"]) == 1


def template(message, prompt):
    """A template: what it makes of each message, and its generation prompt."""
    return (f"{{% for m in messages %}}{message}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}")


@pytest.mark.parametrize("template, error", (
    (template("[{{ m.role }}]{{ m.content }}<|im_end|>", "[bot]"),
     "does not start turn 2 with its own generation prompt: expected 'bot\\]', "
     "found 'assistant\\]2"),
    (template("{{ m.role }}: {{ m.content }}\n", "assistant: "),
     "ends turn 2 with '2', expected a token that ends generation, "
     "of <|endoftext|> <|im_end|> <|eot_id|>;"),
    (template("{{ m.role }}: {{ m.content }}<think>", "assistant: "),
     "ends turn 2 with '2<think>'"),
    (template("[{{ m.role }}]{{ m.content[1:] }}<|im_end|>", "[assistant]"),
     "leaves out a part of turn 2, '2'"),
    ("{{ messages[0].content + 1 }}", "the chat template fails .TypeError"),
    ("{{ raise_exception('no') }}", "the chat template fails .TemplateError: no"),
))
def test_templates_that_give_no_exact_mask_are_refused(template, error):
    """Bug: loss on a header, an answer that never learns to end, thinking that a template drops in
    silence.
    """
    with pytest.raises(ValueError, match="rows.jsonl:1: .*" + error.replace("|", r"\|")):
        load([{"messages": ONE}], encoding(template))


def test_a_template_that_drops_the_reasoning_is_refused():
    """Bug: a distilled data set whose thoughts are never learned."""
    row = {"messages": [say("user", "a"), say("assistant", "b", thinking="because")]}
    with pytest.raises(ValueError, match="leaves out a part of turn 2, 'because'"):
        load([row], encoding(CHATML))
    assert counted(load([row], enc := encoding(QWEN3))[0],
                   enc) == ["<think>\nbecause\n</think>\n\nb<|im_end|>"]


# --------------------------------------------------------------------------------------------------
# messages that say more than role and content


CALL = {"type": "function", "id": "x1",
        "function": {"name": "weather", "arguments": {"city": "Röm \"x\"", "days": 2.5}}}
IN_JSON = {"type": "function", "function": {"name": "weather",
                                            "arguments": '{"city": "R\\u00f6m", "days": 1e5}'}}
FLAT = CHATML.replace("m.content }}", "m.content }}{{ (m.tool_calls or '') | tojson }}")


def asked(call, **more):
    return [say("user", "a"), say("assistant", "ok", tool_calls=[call], **more),
            say("tool", "4\u00b0 \"dry\""), say("assistant", "b")]


@pytest.mark.parametrize("call", (CALL, IN_JSON))
@pytest.mark.parametrize("source", (FLAT, QWEN2))
def test_a_tool_call_that_the_template_writes_is_learned(call, source):
    """Bug: a check of tool calls that refuses JSON, JSON in JSON, or escaped letters."""
    (s,) = load([{"messages": asked(call)}], enc := encoding(source))
    assert "weather" in counted(s, enc)[0]


@pytest.mark.parametrize("messages, left_out", (
    (asked(CALL), "a part of turn 2, 'weather'"), (asked(IN_JSON), "a part of turn 2, 'weather'"),
    ([say("user", "a"), say("assistant", "b", function_call={"name": "f", "arguments": "{}"})],
     "a part of turn 2, 'f'")))
def test_a_tool_call_that_the_template_does_not_write_is_refused(messages, left_out):
    """Bug: the model learns to end its turn where the data call a tool."""
    source = CHATML.replace("m.content }}", "m.content | replace('b', 'b') }}")
    with pytest.raises(ValueError, match=f"rows.jsonl:1: the template leaves out {left_out}"):
        load([{"messages": messages}], encoding(source))


def test_an_argument_or_a_second_call_that_is_not_written_is_refused_too():
    """Bug: only the function's name looked for."""
    names = CHATML.replace("m.content }}", "m.content }}{% for c in m.tool_calls or [] %}"
                           "{{ c.function.name }}{% endfor %}")
    with pytest.raises(ValueError, match="leaves out a part of turn 2, 'Röm"):
        load([{"messages": asked(CALL)}], encoding(names))
    first = CHATML.replace("m.content }}", "m.content }}{{ (m.tool_calls or [0])[0] | tojson }}")
    turns = asked(CALL)
    turns[1]["tool_calls"].append({"function": {"name": "time", "arguments": {}}})
    with pytest.raises(ValueError, match="leaves out a part of turn 2, 'time'"):
        load([{"messages": turns}], encoding(first))


@pytest.mark.parametrize("role", ("system", "user", "tool"))
def test_words_of_a_prompt_that_the_template_drops_are_refused(role):
    """Bug: an answer learned without the tool's result or the instructions that it rests on."""
    drops = QWEN2.replace("{%- for message in messages %}",
                          "{%- for message in messages if message.role != '" + role + "' %}")
    drops = drops.replace("messages[0].content", "''") if role == "system" else drops
    turns = [say("system", "Be <b>."), say("user", "a"), say("assistant", "", tool_calls=[CALL]),
             say("tool", "4°"), say("assistant", "b")]
    with pytest.raises(ValueError, match="rows.jsonl:1: the template leaves out a part of turn .,"
                                         " '(Be <b>.|a|4°)'; pass another"):
        load([{"messages": turns}], encoding(drops))
    assert load([{"messages": turns}], encoding(QWEN2))


def test_words_that_a_template_spells_in_its_own_way_are_not_left_out():
    """Bug: Llama 3's tool results, which are JSON of a text, or upper case, taken for dropped."""
    for change in ("m.content | tojson", "m.content | upper", "m.content | trim"):
        source = CHATML.replace("{{ m.content }}", "{{ (" + change + ") if m.role == 'user' else "
                                "m.content }}")
        assert load([{"question": ' say "ä"\n', "answer": "b"}], encoding(source))


def test_a_message_of_weight_0_is_read_and_not_learned():
    """Bug: a wrong answer that the data marks as such, learned; a token that moves because of it.
    """
    enc = encoding(CHATML)
    talk = [say("user", "a"), say("assistant", "WRONG"), say("user", "b"), say("assistant", "c")]
    (whole,) = load([{"messages": talk}], enc)
    for switch in ({"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}):
        turns = [talk[0], talk[1] | switch, talk[2], talk[3] | {"weight": 1, "train": True}]
        (s,) = load([{"messages": turns}], enc)
        assert counted(s, enc) == ["c<|im_end|>"]
        assert s.tokens.tolist() == whole.tokens.tolist()
        (first,) = load([{"messages": [*turns[2:], *turns[:2]]}], enc)
        assert enc.decode(first.tokens.tolist()).endswith("c<|im_end|>")    # no more than it needs
    (s,) = load([{"messages": [THINK[0], THINK[1] | {"weight": 0}, *THINK[2:4]]}],
                other := encoding(QWEN3))
    assert counted(s, other) == ["<think>\n\n</think>\n\nd<|im_end|>"]


@pytest.mark.parametrize("turns, error", (
    ([ONE[0], ONE[1] | {"weight": 0}], "no assistant's turn that answers something"),
    ([ONE[0], ONE[1] | {"weight": 0.5}], "expected weight of a message to be 0, 1, true or false, "
                                         "found 0.5"),
    ([ONE[0], ONE[1] | {"train": "no"}], "expected train of a message to be .* found 'no'"),
    ([ONE[0] | {"weight": 1}, ONE[1]], "weight 1 on the user's message: only the assistant's"),
))
def test_weights_that_are_not_here_are_refused(turns, error):
    """Bug: half a weight taken for a whole one, a user's words that should be learned and are not.
    """
    with pytest.raises(ValueError, match=f"rows.jsonl:1: {error}"):
        load([{"messages": turns}], encoding(CHATML))
    assert load([{"messages": [ONE[0] | {"weight": 0}, ONE[1]]}], encoding(CHATML))


THINKING = QWEN3.replace("(loop.last or thought)", "true").replace(
    "'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")


def test_a_thought_written_inline_starts_behind_the_mark_that_the_prompt_has_written():
    """Bug: Qwen3-Thinking's own answers refused as "left out", or <think> with loss."""
    assert "<think>" in THINKING.split("add_generation_prompt")[1]
    enc = encoding(THINKING)
    for answer in ({"content": "<think>\nx\n</think>\n\nb"}, {"content": "x\n</think>\n\nb"},
                   {"content": "b", "reasoning_content": "x"}):
        (s,) = load([{"messages": [ONE[0], say("assistant", **answer)]}], enc)
        assert counted(s, enc) == ["x\n</think>\n\nb<|im_end|>"]
    drops = THINKING.replace("+ thought +", "+ 'y' +")
    with pytest.raises(ValueError, match="leaves out a part of turn 2, 'x"):
        load([{"messages": [ONE[0], say("assistant", "<think>x</think>b")]}], encoding(drops))


# --------------------------------------------------------------------------------------------------
# what else a template reads: arguments and the date


ARGUED = CHATML.replace("assistant\n{% endif %}", "assistant\n{% if enable_thinking is false %}"
                        "<think></think>{% endif %}{% endif %}").replace(
    "{{ m.content }}", "{% if m.role == 'assistant' and enable_thinking is false %}"
    "<think></think>{% endif %}{{ m.content }}")
DATED = "Today {{ strftime_now('%d %b %Y') }}" + CHATML


def test_arguments_of_a_row_go_to_the_template_before_those_of_the_run():
    """Bug: a row's chat_template_kwargs ignored, or those of one row used for the next."""
    rows = [{"messages": ONE},
            {"messages": ONE, "chat_template_kwargs": {"enable_thinking": False}},
            {"messages": ONE, "chat_template_kwargs": '{"enable_thinking": true}'}]
    enc = encoding(ARGUED)
    assert [("think" in marked(s, enc, False)) for s in load(rows, enc)] == [False, True, False]
    run = with_template(enc, kwargs='{"enable_thinking": false}')
    assert [("think" in marked(s, run, False)) for s in load(rows, run)] == [True, True, False]
    assert counted(load(rows, run)[0], run) == ["2<|im_end|>"]
    assert render(ONE[:1], run, "auto", True).endswith("assistant\n<think></think>")
    for copy in (load_tokenizer(tokenizer_files(run)), with_template(run), pickle_of(run)):
        assert copy.settings == run.settings == {"kwargs": {"enable_thinking": False}}


def pickle_of(enc):
    return pickle.loads(pickle.dumps(enc))


@pytest.mark.parametrize("found, error", (
    ({"enable_thinkin": True}, "the chat template does not read 'enable_thinkin'"),
    ({"messages": []}, "does not read 'messages'"),
    ("yes", "expected a JSON object .* found 'yes'"),
    ([1], "expected a JSON object")))
def test_arguments_that_no_template_reads_are_refused(found, error):
    """Bug: a misspelt argument that changes nothing."""
    with pytest.raises(ValueError, match=f"rows.jsonl:1: template kwargs: .*{error}"):
        load([{"messages": ONE, "chat_template_kwargs": found}], encoding(ARGUED))
    with pytest.raises(ValueError, match=f"template kwargs: .*{error}"):
        with_template(encoding(ARGUED), kwargs=found)
    for rest in (None, {}):
        assert load([{"messages": ONE, "chat_template_kwargs": rest}], encoding(ARGUED))


def test_the_date_of_a_template_is_that_of_the_run():
    """Bug: other token ids tomorrow, so that a run cannot be resumed and a control has other
    prompts than its M1.
    """
    pytest.importorskip("transformers")
    enc = with_template(encoding(DATED), date="2024-02-09")
    assert render(ONE, enc).startswith("Today 09 Feb 2024<|im_start|>")
    assert load_tokenizer(tokenizer_files(enc)).settings == {"date": "2024-02-09"}
    assert with_template(enc).settings == {"date": "2024-02-09"}
    assert with_template(enc, date="2025-01-01").settings == {"date": "2025-01-01"}
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert render(ONE, encoding(DATED)).startswith(f"Today {today}")
    plain = encoding(CHATML)
    assert with_template(plain, date="2024-02-09") is plain             # which writes no date
    with pytest.raises(ValueError, match="--template-date: expected a day such as .* found 'now'"):
        with_template(encoding(DATED), date="now")

"""sample.py: one prompt, several, a conversation; weak, strong and fused beside each other."""

import os
import shutil
from dataclasses import replace

import pytest
import torch
from test_tokenizer import made
from tiny_models import PROMPTS, tiny

import sample
from model import GPT, load_checkpoint, save_checkpoint
from plumbing import asking
from plumbing.chat import render
from plumbing.scoring import load_model
from plumbing.tokenizer import load_tokenizer, toy_encoding


def said(capsys, *argv):
    sample.main([str(word) for word in argv])
    return capsys.readouterr().out.splitlines()


def refused(*argv):
    with pytest.raises(SystemExit) as e:
        sample.main([str(word) for word in argv])
    assert "\n" not in e.value.code, "one sentence"
    return e.value.code


def decoded(path, text, n, special=(), **how):
    model, enc, _ = load_model(str(path))
    ids = enc.encode(text, allowed_special=set(special) or set(), disallowed_special=())
    return enc.decode(model.generate_plain(ids, n, stop_ids=enc.stop_ids, **how))


def test_each_prompt_gets_what_the_model_writes(trained, capsys):
    """Bug: a prompt that is continued with the answer of the one before."""
    path = trained / "wmss.pt"
    prompts = ["12+34:", "409+402:"]
    want = []
    for prompt in prompts:
        want += [f"> {prompt}", decoded(path, prompt, 9)]
    assert said(capsys, path, *prompts, "--max-new-tokens", 9) == want
    drawn = said(capsys, path, *prompts, "--max-new-tokens", 9, "--temperature", 2, "--seed", 3)
    assert drawn[1] == decoded(path, prompts[0], 9, temperature=2.0, seed=3) != want[1]


def test_the_default_length_is_what_the_model_has_room_for(trained, capsys, monkeypatch):
    """Bug: 512 new tokens asked of a model of 256 positions, whatever the user does."""
    lengths = []

    def generate(self, prompts, length, **how):
        lengths.append(length)
        return [[]]

    monkeypatch.setattr(GPT, "generate", generate)
    said(capsys, trained / "sft.pt", "1+1:", "12+12:")
    assert lengths == [256 - 4, 256 - 6]


def test_an_answer_ends_before_a_stop_text(trained, capsys):
    """Bug: a base model that writes on and on, the stop text shown."""
    path = trained / "base.pt"
    whole = decoded(path, "12+34:", 40)
    stops = whole[12:14], whole[5:7]
    where = min(whole.index(stop) for stop in stops)
    got = said(capsys, path, "12+34:", "--stop", *stops, "--max-new-tokens", 40)
    assert got[1] == whole[:where]


def test_generation_itself_ends_where_it_is_told(tiny_rows=12):
    """Bug: a stop text that is cut off at the end, after minutes of tokens nobody sees; a row that
    takes its neighbours with it."""
    model = tiny()
    whole = model.generate(PROMPTS, tiny_rows)
    seen = []

    def ends(tokens):
        seen.append(list(tokens))
        return len(tokens) == 3 and tokens == whole[0][:3]

    want = [row[:3] if row[:3] == whole[0][:3] else row for row in whole]
    assert model.generate(PROMPTS, tiny_rows, ends=ends) == want
    assert len(seen) == sum(map(len, want)), "asked once for each token"


def test_three_models_stand_beside_each_other(trained, capsys):
    """Bug: fused is the strong model alone, or has the weights the wrong way round."""
    weak, strong = trained / "base.pt", trained / "wmss.pt"
    prompt = "12+34:"
    lines = said(capsys, strong, prompt, "--weak", weak, "--lam", 0.3, "--max-new-tokens", 5)
    by_name = {line[:6].strip(): line[7:] for line in lines[1:4]}
    mixed = decoded(strong, prompt, 5, weak=load_checkpoint(str(weak))[0], lam=0.3)
    assert by_name == {"weak": decoded(weak, prompt, 5), "strong": decoded(strong, prompt, 5),
                       "fused": mixed}


def test_the_table_shows_the_tokens_on_which_they_differ():
    """Bug: the probability of another token or another place, codes of colour in a pipe."""
    enc = toy_encoding()
    strong, weak = (tiny(seed, scale=2, vocab_size=enc.n_vocab) for seed in (0, 1))
    prompt = enc.encode("12+34:")
    answer = strong.generate([prompt], 12)[0]
    x = torch.tensor([prompt + answer])
    with torch.no_grad():
        z_weak, z_strong = (model.logits(x)[0, len(prompt) - 1:-1] for model in (weak, strong))
    want = []
    for t, token in enumerate(answer):
        zs = (z_weak[t], z_strong[t], 0.3 * z_strong[t] + 0.7 * z_weak[t])
        p = [z.softmax(-1)[token].item() for z in zs]
        if max(p) - min(p) > sample.DIFFERS:
            want.append([repr(enc.decode([token])), *(f"{x:.2f}" for x in p)])
    assert 0 < len(want) < len(answer), "the models are too much alike, or too strange"
    table = sample.disagreement(enc, prompt, answer, strong, weak, 0.3)
    assert [line.split()[:4] for line in table.splitlines()[1:]] == want
    assert "\033" not in table


def test_a_text_model_is_asked_in_its_chat_format(hf_folder, capsys, monkeypatch):
    """Bug: a bare prompt to a model that was trained in a template; the turn before forgotten, or
    kept after an empty line; a system prompt for the first turn only."""
    folder = str(hf_folder)
    model, enc, _ = load_model(folder)
    asked, typed = [], iter(["one?", "two?", "", "three?"])

    def generate(prompts, length, **how):
        asked.append(enc.decode(prompts[0]))
        return [enc.encode("42")]

    def line(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(type(model), "generate", lambda self, *a, **how: generate(*a, **how))
    monkeypatch.setattr("builtins.input", line)
    assert said(capsys, folder, "--system", "Add.") == ["42", "42", "42", ""]
    system = {"role": "system", "content": "Add."}
    one, two, three = ({"role": "user", "content": f"{word}?"} for word in ("one", "two", "three"))
    reply = {"role": "assistant", "content": "42"}
    want = [[system, one], [system, one, reply, two], [system, three]]
    assert asked == [render(talk, enc, add_generation_prompt=True) for talk in want]
    asked.clear()
    said(capsys, folder, "one?", "two?")
    assert asked == [render([turn], enc, add_generation_prompt=True) for turn in (one, two)]
    asked.clear()
    said(capsys, folder, "--raw", "--lam", "0.5", "one?")
    assert asked == ["one?"]


def test_a_raw_prompt_begins_as_the_texts_of_training_do():
    """Bug: Llama-3 asked without the token that opens every text it has read; a letter of which the
    vocabulary has only one byte sent on as that byte."""
    enc = load_tokenizer({"tokenizer.json": made("llama3")})
    assert enc.bos_id is not None
    assert asking.encode(enc, "cat", False) == [enc.bos_id, *enc.encode("cat")]
    text = "<|im_start|>cat"
    assert asking.encode(enc, text, True) == enc.encode(text, allowed_special="all")
    asking.encode(load_tokenizer({"tokenizer.json": made("qwen")}), "Cafe\u0301", False)   # NFC
    enc = load_tokenizer({"tokenizer.json": made("smollm2")})
    some = next(c for c in map(chr, range(128, 2000)) if enc.encode(c) and
                {*c.encode()} & {*enc._lacking})
    with pytest.raises(ValueError, match=f"cannot spell {some!r}"):
        asking.encode(enc, some, False)


@pytest.mark.parametrize("flags, words", [
    (("--temperature", "-1"), "--temperature: expected 0 or more"),
    (("--lam", "nan"), "--lam: expected a number"),
    (("--max-new-tokens", "0"), "--max-new-tokens: expected 1 or more"),
    (("--stop", ""), "found an empty one"),
    (("--device", "foo"), "--device foo: expected auto"),
    (("--weak", "nowhere.pt"), "nowhere.pt"),
    (("--max-new-tokens", "5000"), "max_seq_len"),
])
def test_what_cannot_be_used_is_one_sentence(flags, words, trained):
    """Bug: a traceback, or a temperature that divides by a negative number."""
    assert words in refused(trained / "sft.pt", "1+1:", *flags)


def test_the_smaller_of_two_models_sets_the_length(tmp_path, monkeypatch, trained, capsys):
    """Bug: a default length that one of the two models cannot have; a prompt that is taken for a
    second text to stop at."""
    monkeypatch.chdir(tmp_path)
    path = str(trained / "sft.pt")
    model, meta = load_checkpoint(path)
    small = GPT(replace(model.cfg, max_seq_len=64))
    save_checkpoint("small.pt", small, tokenizer=meta["tokenizer"])
    sample.main([path, "--weak", "small.pt", "--stop", ";", "1+1:"])
    assert "> 1+1:" in capsys.readouterr().out


def test_foreign_letters_and_foreign_models_are_named(trained, trained_code, hf_folder, tmp_path):
    """Bug: letters that the vocabulary lacks are left out, and the model answers another question;
    two models mixed that do not speak of the same tokens."""
    assert "cannot spell 'é'" in refused(trained / "sft.pt", "é+1:")
    other = tmp_path / "other"
    shutil.copytree(hf_folder, other)
    os.remove(other / "tokenizer.json")
    assert "tokenizer" in refused(trained / "sft.pt", "1+1:", "--weak", other)

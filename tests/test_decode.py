"""Batched, cached decoding against decoding one prompt, one token at a time, without a cache."""

import doctest

import pytest
import torch
from tiny_models import CONFIGS, PROMPTS, tiny

from plumbing import batches, decode


def test_worked_examples_in_docstrings_are_true():
    """Bug: an example that nobody has run."""
    result = doctest.testmod(batches)
    assert result.failed == 0 and result.attempted > 0


def uncached_greedy(model, prompt, n, weak=None, lam=1.0):
    tokens = list(prompt)
    for _ in range(n):
        z = model.logits(torch.tensor([tokens]))[0, -1]
        if weak is not None:
            z = lam * z + (1 - lam) * weak.logits(torch.tensor([tokens]))[0, -1]
        tokens.append(int(z.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_batched_cached_decoding_equals_one_by_one_uncached(name):
    """Bug: padding that leaks into attention, is_causal with a cache (aligned top-left), wrong
    positions after prefill."""
    model = tiny(**CONFIGS[name])
    with torch.no_grad():
        want = [uncached_greedy(model, p, 12) for p in PROMPTS]
    assert len({tuple(w) for w in want}) > 2, "the model is too dull to tell a bug"
    assert model.generate(PROMPTS, 12) == want
    assert [model.generate([p], 12)[0] for p in PROMPTS] == want


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_under_autocast_equals_uncached_decoding_under_autocast(name):
    """Bug: a cache in fp32 that refuses bf16 keys, QK-norm that leaves q in fp32 beside a bf16
    v: the default on a GPU."""
    model = tiny(**CONFIGS[name])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = [uncached_greedy(model, p, 4) for p in PROMPTS]
        got = model.generate(PROMPTS, 4)
    same = sum(a == b for x, y in zip(got, want, strict=True) for a, b in zip(x, y, strict=True))
    # of 20: bf16 rounds a batch and a row differently, and one token moves the rest
    assert same >= 15, (got, want)


def test_stop_ids_end_their_row_and_no_other():
    """Bug: a stop token kept in the output, or one row's end that shifts the caches of the
    others."""
    model = tiny()
    full = model.generate(PROMPTS, 20)
    for stop in sorted({t for row in full for t in row}):
        want = [row[: row.index(stop)] if stop in row else row for row in full]
        assert model.generate(PROMPTS, 20, stop_ids=[stop]) == want


def test_fused_decoding_mixes_the_logits_of_both_models_at_each_step():
    """Bug: branches swapped, lam on the wrong side, one branch decoding without the tokens that
    the mix has chosen."""
    strong, weak = tiny(0), tiny(1)
    for lam in (0.0, 0.3, 0.5, 1.0, 1.5):
        with torch.no_grad():
            want = [uncached_greedy(strong, p, 8, weak, lam) for p in PROMPTS]
        assert strong.generate(PROMPTS, 8, weak=weak, lam=lam) == want


def test_sampling_is_a_function_of_seed_and_prompt_not_of_the_batch():
    """Bug: one generator for the whole batch, so that scores change with batch size and order."""
    model = tiny(scale=2.0)
    seeds = [11, 12, 13, 14, 15]
    together = model.generate(PROMPTS, 10, temperature=1.0, seed=seeds)
    assert [
        model.generate([p], 10, temperature=1.0, seed=[s])[0]
        for p, s in zip(PROMPTS, seeds, strict=True)
    ] == together
    stop = together[0][3]  # the first row leaves the batch: the others keep their draws
    cut = [row[: row.index(stop)] if stop in row else row for row in together]
    assert model.generate(PROMPTS, 10, temperature=1.0, seed=seeds, stop_ids=[stop]) == cut
    back = model.generate(PROMPTS[::-1], 10, temperature=1.0, seed=seeds[::-1])
    assert back[::-1] == together
    assert model.generate(PROMPTS, 10, temperature=1.0, seed=7) == model.generate(
        PROMPTS, 10, temperature=1.0, seed=7
    )
    assert model.generate(PROMPTS, 10, temperature=1.0, seed=7) != model.generate(
        PROMPTS, 10, temperature=1.0, seed=8
    )


def test_sampling_frequencies_are_those_of_the_softmax():
    """Bug: temperature applied upside down, an off-by-one in the inverse CDF (then every
    frequency moves by one id)."""
    model, n, temperature = tiny(scale=2.0), 4000, 0.7
    with torch.no_grad():
        p = torch.softmax(model.logits(torch.tensor([[4, 2]]))[0, -1].double() / temperature, -1)
    drawn = torch.tensor(model.generate([[4, 2]] * n, 1, temperature=temperature, seed=0)).flatten()
    seen = torch.bincount(drawn, minlength=23).double() / n
    assert ((seen - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


@pytest.mark.parametrize(
    "prompts, n, words", [([[1], []], 3, "prompt 1 is empty"), ([[1] * 60], 5, "max_seq_len 64")]
)
def test_impossible_prompts_are_refused(prompts, n, words):
    """Bug: an empty prompt read as position -1, a RoPE table read past its end."""
    with pytest.raises(ValueError, match=words):
        tiny().generate(prompts, n)


@pytest.mark.parametrize("how", (dict(temperature=-1.0), dict(temperature=1.0, seed=[1, 2])))
def test_impossible_sampling_is_refused(how):
    """Bug: a variable that was never set, a seed for the wrong prompt."""
    with pytest.raises(ValueError, match="expected temperature >= 0 and one seed or 1"):
        tiny().generate([[1]], 3, **how)


def test_no_prompts_and_no_tokens():
    """Bug: max() of nothing."""
    assert tiny().generate([], 5) == [] and tiny().generate([[1], [2]], 0) == [[], []]


@pytest.mark.parametrize(
    "how",
    [
        dict(),
        dict(temperature=1.0),
        dict(lam=0.3),
        dict(lam=1.5, temperature=0.7),
        dict(stop_ids=range(0, 23, 5)),
    ],
)
def test_decoding_equals_the_plain_loop_that_readers_see(how):
    """Bug: generate_plain, which explains generate(), computes something else than it: another
    draw, another stop, the branches swapped."""
    model = tiny(scale=3.0)
    weak = tiny(1, scale=3.0) if "lam" in how else None
    seeds = [11, 12, 13, 14, 15]
    together = model.generate(PROMPTS, 10, seed=seeds, weak=weak, **how)
    assert len({tuple(row) for row in together}) > 2, "the model is too dull to tell a bug"
    for prompt, seed, row in zip(PROMPTS, seeds, together, strict=True):
        assert model.generate_plain(prompt, 10, seed=seed, weak=weak, **how) == row


def test_a_weak_model_of_another_size_is_mixed_in():
    """Bug: a cache with the strong model's heads for both; positions that the weak model lacks."""
    strong = tiny(0, n_heads=4, n_kv_heads=2)
    weak = tiny(1, dim=24, n_layers=3, n_heads=2, qk_norm=True, max_seq_len=32)
    with torch.no_grad():
        want = [uncached_greedy(strong, p, 8, weak, 0.4) for p in PROMPTS]
    assert strong.generate(PROMPTS, 8, weak=weak, lam=0.4) == want
    with pytest.raises(ValueError, match="exceed max_seq_len 32"):
        strong.generate(PROMPTS, 30, weak=weak, lam=0.4)
    with pytest.raises(ValueError, match="one vocabulary, found .23, 24. ids"):
        strong.generate(PROMPTS, 3, weak=tiny(1, vocab_size=24), lam=0.4)


@pytest.mark.parametrize("weak", (False, True))
def test_progress_grows_with_each_layer_and_token_up_to_the_whole_batch(weak, monkeypatch):
    """Bug: a bar that stands still until a batch of long answers is done, or that runs over."""
    told, model = [], tiny(**CONFIGS[next(iter(CONFIGS))])
    monkeypatch.setattr(decode, "tick", told.append)
    model.generate(PROMPTS, 12, weak=model if weak else None, lam=0.5 if weak else 1.0)
    assert len(told) == model.cfg.n_layers * (1 + weak) + 12
    assert told == sorted(told) and 0 < told[0] and told[-1] == pytest.approx(len(PROMPTS))
    assert len(set(told)) == len(told)

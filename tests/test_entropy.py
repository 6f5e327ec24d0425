"""entropy.py: values known in closed form, a float64 definition, and hand-computed weights."""

import dataclasses
import math
import sys

import pytest
import torch
from runs import (
    clean_set,
    gaps_of,
)
from tensors import largest_tensor

import entropy
from data import collate
from entropy import WEIGHTS, Gaps, find_gaps, gap_mask, gap_weights, measure, token_entropy
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint
from plumbing.report import CODES, TERMINAL_COLOURS
from plumbing.tokenizer import toy_encoding

V = toy_encoding().n_vocab


def tiny(seed, dim=16, vocab_size=V):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=vocab_size, dim=dim, n_layers=1, n_heads=2))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.dim() == 2 else 1)
    return model


def definition(z):
    """Entropy of logits (..., V) in nats, by the book."""
    p = torch.softmax(z, -1)
    return -(p * torch.where(p > 0, p, 1.0).log()).sum(-1)


# -------------------------------------------------------------------------------------------------
# entropies


def test_entropy_of_uniform_is_log_v_and_of_one_hot_is_zero():
    """Bug: log2, an epsilon inside the log, a mean where the sum over the vocabulary belongs."""
    for v in (2, 97, 5000):
        found = token_entropy(torch.randn(3, 4), torch.ones(v, 4))
        torch.testing.assert_close(found, torch.full((3,), math.log(v)))
    one_hot = token_entropy(torch.tensor([[1000.0]]), torch.tensor([[1.0], [0.0], [0.0]]))
    assert one_hot.item() == 0


def test_entropy_equals_its_float64_definition_also_where_it_is_tiny():
    """Bug: log(p + eps) or a cancelling difference, both wrong by more than the value once the
    model is confident."""
    torch.manual_seed(0)
    for scale in (0.1, 1.0, 10.0, 40.0):
        h = scale * torch.randn(50, 8, dtype=torch.float64)
        w = torch.randn(97, 8, dtype=torch.float64)
        want = definition(h @ w.T)
        torch.testing.assert_close(token_entropy(h, w), want, rtol=1e-9, atol=1e-13)
        got = token_entropy(h.float(), w.float()).double()
        torch.testing.assert_close(got, want, rtol=3e-4 * max(1, scale), atol=1e-6)
        assert (got >= 0).all()
    z = torch.tensor([[0.0, -40.0]])    # p = 4e-18, H = 1.7e-16: the rounding of 1 is larger
    want = 40 * math.exp(-40)
    assert token_entropy(z, torch.eye(2)).item() == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("logits, want", [
    ((0.0, -1e4, -1e4), 0.0),
    ((1e4, 1e4, -1e4), math.log(2)),
    ((3e38, -3e38, 0.0), 0.0),
    ((0.0, 0.0, -math.inf), math.log(2))])
def test_entropy_of_extreme_logits_is_a_number(logits, want):
    """Bug: 0 * -inf = NaN for a token that the model rules out."""
    found = token_entropy(torch.tensor([[1.0]]), torch.tensor(logits)[:, None])
    assert found.item() == pytest.approx(want, abs=1e-6)


def test_entropy_is_computed_in_fp32_under_autocast():
    """Bug: logits rounded to bf16, which move the entropy by more than tau; the command line,
    without autocast, would print others."""
    torch.manual_seed(0)
    h, w = torch.randn(40, 16), 3 * torch.randn(200, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(token_entropy(h, w), token_entropy(h.float(), w.float()))
    half = token_entropy(h.bfloat16(), w.bfloat16())
    raised = token_entropy(h.bfloat16().float(), w.bfloat16().float())
    torch.testing.assert_close(half, raised)


@pytest.mark.parametrize("chunk", (1, 7, 50, 1000))
def test_entropy_does_not_depend_on_the_chunk_and_keeps_the_shape(chunk):
    """Bug: the last, shorter chunk dropped."""
    torch.manual_seed(0)
    h, w = torch.randn(5, 10, 8), torch.randn(33, 8)
    found = token_entropy(h, w, chunk)
    torch.testing.assert_close(found, token_entropy(h, w, 10 ** 6))
    assert found.shape == (5, 10)
    assert token_entropy(h[:0], w, chunk).shape == (0, 10)


def test_entropy_never_holds_more_logits_than_a_chunk():
    """Bug: the head applied to all rows at once, 2.5 GB at V = 151,936."""
    with largest_tensor() as seen:
        token_entropy(torch.randn(200, 8), torch.randn(500, 8), 20)
    assert seen.numel == 20 * 500


@pytest.mark.parametrize("where", (0, 1023, 1024, 2999))
def test_entropy_does_not_depend_on_which_tile_of_the_vocabulary_holds_the_maximum(where):
    """Bug: sums of one tile that are not rescaled when a later one brings a new maximum, a last
    tile left out."""
    g = torch.Generator().manual_seed(where)
    w, h = torch.randn(3000, 8, generator=g), torch.randn(40, 8, generator=g)
    for size in (1.0, 10.0, 100.0):
        w[where] = size * h[0]
        z = h.double() @ w.double().T
        want = -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
        exact = token_entropy(h.double(), w.double())
        torch.testing.assert_close(exact, want, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(token_entropy(h, w).double(), want, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------
# weights and codes

WEAK = torch.tensor([2.0, 1.0, 1.0, 0.0])
LIVE = torch.tensor([1.0, 1.0, 3.0, 0.0])       # d_ent -1, 0, 2, 0


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("kind, want", [
    ("code", [0.1 * 2 / 4 + 0.8, 0.1 * 1 / 4, 0.1 * 1 / 4 + 0.1, 0.0]),
    ("v1", [0.1 * 2 + 0.8 * 1, 0.1 * 1, 0.1 * 1 + 0.1 * 2, 0.0]),
    ("v2", [0.1 * 1 + 0.8 * 1, 0.8 * 1, 0.8 * 3 + 0.1 * 2, 0.0]),
])
def test_weights_equal_hand_computed_values(kind, want):
    """Bug: the two signs of d_ent swapped, 0.8 on the wrong term, terms normalised in v1 or not in
    code."""
    got, want = gap_weights(WEAK, LIVE, kind=kind), float64(*want)
    torch.testing.assert_close(got, want / want.sum())
    assert got.dtype == torch.float64 and got.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", ("code", "v1", "v2"))
def test_weights_with_terms_that_sum_to_zero(kind):
    """Bug: 0/0 = NaN as soon as no sample regresses, or when the snapshot is the live model
    itself."""
    falling = gap_weights(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.5]), kind=kind)
    same = gap_weights(torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0]), kind=kind)
    none = gap_weights(torch.zeros(4), torch.zeros(4), kind=kind)
    for w in (falling, same, none):
        assert torch.isfinite(w).all() and w.sum().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(same, float64(2 / 3, 1 / 3))
    assert none.tolist() == [0.25] * 4


@pytest.mark.parametrize("args, words", [
    ((torch.ones(3), torch.ones(2)), "one length"),
    ((torch.tensor([1.0, math.nan]), torch.ones(2)), "diverged"),
    ((torch.ones(2), torch.tensor([1.0, math.inf])), "diverged"),
    ((torch.tensor([1.0, -1.0]), torch.ones(2)), ">= 0"),
    ((torch.ones(2), torch.ones(2), -0.1, 0.8, 0.1), "alpha, beta, gamma"),
    ((torch.ones(2), torch.ones(2), 0.1, 0.8, 0.1, "v3"), "unknown kind 'v3'"),
])
def test_bad_entropies_are_refused(args, words):
    """Bug: the official code's missing entropies, silently given weight 0."""
    with pytest.raises(ValueError, match=words):
        gap_weights(*args)


def test_each_share_weighs_its_own_term():
    """Bug: alpha and gamma swapped, which the paper's (0.1, 0.8, 0.1) cannot show."""
    for k, want in enumerate(((2 / 4, 1 / 4, 1 / 4, 0), (1, 0, 0, 0), (0, 0, 1, 0))):
        share = [float(i == k) for i in range(3)]
        torch.testing.assert_close(gap_weights(WEAK, LIVE, *share, "code"), float64(*want))


def test_a_formula_of_ones_own_is_one_entry(monkeypatch):
    """Bug: a second list of formulas; one whose result is not made to sum to 1."""
    def live_squared(w, s, alpha, beta, gamma):
        return alpha * s ** 2

    monkeypatch.setitem(WEIGHTS, "squared", live_squared)
    found = gap_weights(WEAK, LIVE, kind="squared")
    torch.testing.assert_close(found, float64(1, 1, 9, 0) / 11)


def test_mask_codes_on_both_sides_of_every_threshold():
    """Bug: strict for non-strict, tau applied to one sign only, h tested on the live entropy."""
    weak = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.25, 0.5])
    live = torch.tensor([0.5, 0.25, 1.5, 1.75, 1.0, 0.5, 0.25, 0.75])
    #        d_ent      -.5   -.75  +.5  +.75  0    0    0     +.25
    assert gap_mask(weak, live, tau=0.5, h=0.5).tolist() == [3, 1, 3, 2, 3, 0, 0, 0]
    assert gap_mask(weak, live, tau=0.0, h=0.0).tolist() == [1, 1, 2, 2, 3, 3, 3, 2]
    assert gap_mask(torch.zeros(1), torch.zeros(1)).tolist() == [0]
    for bad in ((weak, live, -1.0), (weak, live, math.nan), (weak, live, 0.0, -1.0),
                (weak, live[:3]), (weak * math.nan, live)):
        with pytest.raises(ValueError, match="gap_mask"):
            gap_mask(*bad)


# -------------------------------------------------------------------------------------------------
# measuring


@pytest.fixture(scope="module")
def samples():
    return clean_set(toy_encoding(), 21, 0)


@pytest.mark.parametrize("dim", (16, 8))
def test_measured_positions_are_the_loss_positions(samples, dim):
    """Bug: the official off-by-one (entropy read where the token stands, not where it is
    predicted), pads or header counted, any dependence on which rows share a batch, a weak model of
    another width."""
    weak, live = tiny(0, dim), tiny(1)
    gaps = measure(weak, live, samples, micro_batch=5)
    for name, model in (("weak", weak), ("live", live)):
        flat, mean = f"ent_{name}", getattr(gaps, f"mean_{name}")
        for k, s in enumerate(samples):
            # one sample alone, no padding, full logits
            ent = definition(model.logits(s.tokens[None])[0].double())
            start = int(s.loss.nonzero()[0])    # first completion token: predicted at start - 1
            want = ent[start - 1:len(s.tokens) - 1]
            got = gaps.of_sample(k, flat)
            torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
            assert mean[k].item() == pytest.approx(want.mean().item(), rel=1e-4)
            assert mean[k].item() == pytest.approx(got.double().mean().item(), rel=1e-6)
    assert gaps.ids.tolist() == [s.id for s in samples]


def test_first_and_last_completion_token_move_the_entropies_and_the_label_does_not(samples):
    """Bug: a range that starts one late or ends one early; an entropy that looks at the label."""
    weak, s = tiny(0), samples[0]

    def entropies(tokens):
        return measure(weak, weak, [dataclasses.replace(s, tokens=tokens)]).ent_weak

    base = entropies(s.tokens)
    start = int(s.loss.nonzero()[0])
    prompt, last, before = s.tokens.clone(), s.tokens.clone(), s.tokens.clone()
    prompt[start - 1] = 5           # what the first completion token is predicted from
    assert entropies(prompt)[0] != base[0]
    last[-1] = 5                    # the end token is only a label: no entropy sees it
    assert torch.equal(entropies(last), base)
    before[-2] = 5                  # the last one that is read moves the last entropy only
    moved = entropies(before) != base
    assert moved.nonzero().flatten().tolist() == [len(base) - 1]


def test_codes_come_in_the_order_in_which_training_flattens_a_batch(samples):
    """Bug: the mask of one sample laid over the tokens of another."""
    gaps = find_gaps(tiny(0), tiny(1), samples, tau=0.3, h=0.5, alpha=0.1, beta=0.8, gamma=0.1,
                     kind="code")
    picks = [7, 3, 3, 19, 0]
    batch = collate([samples[i] for i in picks])
    plane = torch.full(batch.loss_mask.shape, 9, dtype=torch.uint8)
    for row, i in enumerate(picks):
        plane[row, batch.loss_mask[row]] = gaps.codes[gaps.offsets[i]:gaps.offsets[i + 1]]
    assert torch.equal(plane[batch.loss_mask], gaps.codes_of(batch.ids))
    assert len(gaps.codes.unique()) > 1 and len(gaps.codes_of(torch.tensor([-1]))) == 0


def test_a_sample_without_loss_token_is_refused(samples):
    """Bug: a mean over nothing, NaN, that later reads as weight."""
    bad = dataclasses.replace(samples[4], loss=torch.zeros_like(samples[4].loss))
    with pytest.raises(ValueError, match="sample 4 has no loss token"):
        measure(tiny(0), tiny(0), [samples[0], bad])


def test_gaps_come_back_from_their_file_and_only_for_what_they_were_made_of(samples, tmp_path):
    """Bug: a field that the file forgets; gaps of other samples, models or a half file taken."""
    gaps = find_gaps(tiny(0), tiny(1), samples, tau=0.3, h=0.5, alpha=0.1, beta=0.8, gamma=0.1,
                     kind="v1")
    gaps.weak, gaps.live, gaps.tokenizer = "base.pt", "sft.pt", "0123"
    gaps.flops, gaps.seconds, gaps.commit = 7.0, 0.5, "abc"
    path, made_of = str(tmp_path / "gaps.pt"), (samples, "base.pt", "sft.pt", "0123")
    with pytest.raises(ValueError, match="found none; run the stage `entropy`"):
        Gaps.load(path, *made_of)
    gaps.save(path)
    again = Gaps.load(path, *made_of)
    for name, value in vars(gaps).items():
        found = getattr(again, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    for i in range(1, 4):
        with pytest.raises(ValueError, match="was made for other samples or models.*base.pt"):
            Gaps.load(path, *made_of[:i], "x", *made_of[i + 1:])
    with pytest.raises(ValueError, match="20 samples in the data but 21 in"):
        Gaps.load(path, samples[:20], *made_of[1:])
    longer = dataclasses.replace(samples[2], loss=torch.ones_like(samples[2].loss))
    with pytest.raises(ValueError, match="was made for other samples"):
        Gaps.load(path, [*samples[:2], longer, *samples[3:]], *made_of[1:])
    dataclasses.replace(gaps, codes=gaps.codes[1:]).save(path)
    with pytest.raises(ValueError, match="was made for other samples"):
        Gaps.load(path, *made_of)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="not a gaps file.*delete it"):
        Gaps.load(path, *made_of)


# -------------------------------------------------------------------------------------------------
# the command line


def show(trained, *flags):
    entropy.main(["--weak", str(trained / "base.pt"), "--live", str(trained / "sft.pt"), *flags])


def test_command_line_reports_codes_families_and_coloured_samples(trained, capsys, monkeypatch):
    """Bug: a command line that shows other numbers than training used."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    show(trained, "--show", "1")
    assert "\x1b" not in capsys.readouterr().out, "colours in a pipe"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show(trained, "--show", "3")
    out = capsys.readouterr().out
    codes = gaps_of(trained)["codes"]
    for code, name in enumerate(CODES):
        assert f"{code} {name:13s} {int((codes == code).sum()):9,d}" in out
    assert all(f"\n{family} " in out for family in ("add", "borrow", "times"))
    assert out.count("x uniform, entropy") == 3
    assert any(colour in out for colour in TERMINAL_COLOURS)
    show(trained, "--tau", "0", "--h", "0", "--weights", "v2")
    assert f"{'0 settled':15s} {0:9,d}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="tau and h must be >= 0"):
        show(trained, "--tau", "-1")
    monkeypatch.setenv("NO_COLOR", "1")
    show(trained, "--show", "1")
    assert "\x1b" not in capsys.readouterr().out


def test_command_line_says_what_it_cannot_use(trained, tmp_path, capsys):
    """Bug: a KeyError for a checkpoint that does not say what it was trained on."""
    model, meta = load_checkpoint(trained / "sft.pt")
    save_checkpoint(tmp_path / "mute.pt", model, **{**meta, "config": {}})
    with pytest.raises(SystemExit, match="entropy: .*mute.pt says nothing of its training data"):
        entropy.main(["--weak", str(trained / "base.pt"), "--live", str(tmp_path / "mute.pt")])
    with pytest.raises(SystemExit):
        show(trained, "--show", "-1")
    assert "--show: expected a number of samples, found -1" in capsys.readouterr().err


def test_a_snapshot_of_another_vocabulary_is_refused_and_one_of_another_size_is_not(
        trained, tmp_path, capsys):
    """Bug: a broadcast error from the middle of the pass, token ids of two vocabularies compared;
    a weak model refused only because it is smaller."""
    model, meta = load_checkpoint(trained / "base.pt")
    save_checkpoint(tmp_path / "wide.pt", tiny(3, dim=32), **meta)
    save_checkpoint(tmp_path / "large.pt", tiny(3, vocab_size=V + 31), **meta)
    save_checkpoint(tmp_path / "foreign.pt", model, **{**meta, "tokenizer": "0123456789abcdef"})
    cases = {"large.pt": f"vocabularies of {V + 31} and {V} logits",
             "foreign.pt": "tokenizer 0123456789abcdef", "gone.pt": "found none"}
    for name, words in cases.items():
        with pytest.raises(SystemExit, match=words):
            entropy.main(["--weak", str(tmp_path / name), "--live", str(trained / "sft.pt")])
    capsys.readouterr()
    entropy.main(["--weak", str(tmp_path / "wide.pt"), "--live", str(trained / "sft.pt")])
    samples = clean_set(toy_encoding(), 24, 0)
    gaps = measure(tiny(3, dim=32), load_checkpoint(trained / "sft.pt")[0], samples)
    assert f"weak {gaps.ent_weak.mean():.4f}, live" in capsys.readouterr().out

"""train_wmss.py: the theory of section 3 in float64 on the shipped functions, the losses against their naive forms,
and whole tiny runs: equal whatever the split into micro-batches and ranks, bitwise equal after a crash."""

import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import data
import entropy
import eval_math
import train_wmss
from conftest import ROOT, TINY, whole_run
from data import collate
from entropy import gap_mask, gap_weights, token_statistics
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint
from plumbing import toy_code
from plumbing.tasks import clean_set, tokenizer_of
from plumbing.tokenizer import load_tokenizer, toy_encoding
from plumbing.export import export
from train_wmss import (Config, Pair, cross_entropy, hash_ids, lr_at, mix_logits, mixed_cross_entropy,
                        permute_logits)

softmax = lambda z: torch.softmax(z, -1)


def rand(*shape, scale=2.0, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64)


def loss_of_logits(z_strong, z_weak, y, lam):
    """The shipped loss as a function of logits (N, V): with the identity as head, hidden states are logits."""
    eye = torch.eye(z_strong.size(-1), dtype=torch.float64)
    return mixed_cross_entropy(z_strong, eye, z_weak, eye, y, lam)


def grads_of(z_strong, z_weak, y, lam):
    z_strong, z_weak = z_strong.clone().requires_grad_(), z_weak.clone().requires_grad_()
    return torch.autograd.grad(loss_of_logits(z_strong, z_weak, y, lam), (z_strong, z_weak))


# ----------------------------------------------------------------------------------------------------------------------
# theory: T1-T13 of the method

LAMS = (0.2, 0.5, 0.9)


@pytest.fixture
def pair():
    """Strong and weak logits (6, 9) and targets."""
    torch.manual_seed(0)
    return rand(6, 9), rand(6, 9), torch.randint(0, 9, (6,))


@pytest.mark.parametrize("lam", LAMS)
def test_T1_gradients_are_lam_g_and_one_minus_lam_g(pair, lam):
    """Bug: a branch without its factor, or one that pulls on the wrong logits."""
    z2, z1, y = pair
    d2, d1 = grads_of(z2, z1, y, lam)
    g = softmax(mix_logits(z2, z1, lam)) - F.one_hot(y, 9)
    torch.testing.assert_close(d2, lam * g)
    torch.testing.assert_close(d1, (1 - lam) * g)
    assert d2.sum(-1).abs().max() < 1e-12 and d1.sum(-1).abs().max() < 1e-12
    frozen = z2.clone().requires_grad_()
    loss_of_logits(frozen, z1, y, lam).backward()
    assert torch.equal(frozen.grad, d2)


def margins(z, y):
    return z.gather(-1, y[:, None]) - z


@pytest.mark.parametrize("lam", LAMS)
def test_T2_margins_mix_linearly(pair, lam):
    """Bug: probabilities mixed where logits should be."""
    z2, z1, y = pair
    mixed = mix_logits(z2, z1, lam)
    torch.testing.assert_close(margins(mixed, y), (1 - lam) * margins(z1, y) + lam * margins(z2, y))
    logp = mixed.log_softmax(-1)
    torch.testing.assert_close(logp - logp.gather(-1, y[:, None]), -margins(mixed, y))


@pytest.mark.parametrize("lam", LAMS)
def test_T3_T4_amplification_of_a_wrong_token_follows_the_weak_margin(pair, lam):
    """Bug: lam on the wrong side: then the amplification has the other sign."""
    z2, z1, y = pair
    p_mix, p2 = softmax(mix_logits(z2, z1, lam)), softmax(z2)
    pick = lambda p: p.gather(-1, y[:, None])
    lower = margins(z1, y) < margins(z2, y)
    assert lower.any() and ((p_mix / pick(p_mix) > p2 / pick(p2))[lower]).all()
    formula = pick(p_mix) / pick(p2) * torch.exp((1 - lam) * (margins(z2, y) - margins(z1, y)))
    torch.testing.assert_close(p_mix / p2, formula)


@pytest.mark.parametrize("lam", LAMS)
def test_T5_a_less_confident_weak_model_lowers_the_targets_probability(pair, lam):
    """Bug: none that T4 would miss; the counter-test keeps the claim from being vacuous."""
    z2, _, y = pair
    onto = F.one_hot(y, 9).double()
    target = lambda z: softmax(z).gather(-1, y[:, None])
    assert (target(mix_logits(z2, z2 - 1.5 * onto, lam)) < target(z2)).all()
    assert (target(mix_logits(z2, z2 + 1.5 * onto, lam)) > target(z2)).all()


def test_T6_hessian_is_psd_annihilates_constants_vanishes_and_couples_by_lam(pair):
    """Bug: a second order that the theory of saturation does not describe."""
    z2, z1, y = pair[0][0], pair[1][0], pair[2][0]
    lam, v = 0.3, 9
    naive = lambda a, b: F.cross_entropy(mix_logits(a, b, lam), y)
    p = softmax(mix_logits(z2, z1, lam))
    h = torch.diag(p) - torch.outer(p, p)
    assert torch.linalg.eigvalsh(h).min() > -1e-12 and (h @ torch.ones(v, dtype=torch.float64)).abs().max() < 1e-12
    (h22, h21), (_, h11) = torch.autograd.functional.hessian(naive, (z2, z1))
    torch.testing.assert_close(h22, lam ** 2 * h)
    torch.testing.assert_close(h21, lam * (1 - lam) * h)
    torch.testing.assert_close(h11, (1 - lam) ** 2 * h)
    sure = softmax(z2 + 60 * F.one_hot(y, v))
    assert (torch.diag(sure) - torch.outer(sure, sure)).abs().max() < 1e-12
    # the shipped gradient is the one whose derivative this is: central differences of it give the Hessian
    eps, e = 1e-5, torch.eye(v, dtype=torch.float64)
    up, down = (grads_of(z2 + s * eps * e, z1.expand(v, v), y.expand(v), lam)[0] for s in (1, -1))
    torch.testing.assert_close((up - down) / (2 * eps), lam ** 2 * h, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("lam", LAMS)
def test_T7_constants_on_either_branch_change_nothing(pair, lam):
    """Bug: a shift by the maximum that is subtracted from one branch only."""
    z2, z1, y = pair
    shift = rand(6, 1, scale=5.0)
    torch.testing.assert_close(loss_of_logits(z2 + shift, z1, y, lam), loss_of_logits(z2, z1, y, lam))
    torch.testing.assert_close(loss_of_logits(z2, z1 + shift, y, lam), loss_of_logits(z2, z1, y, lam))


def test_T8_lam_one_is_sft_and_identical_branches_give_its_loss_and_lam_times_its_gradient(pair):
    """Bug: a weak branch that still moves, or is still read, at lam = 1."""
    z2, z1, y = pair
    plain = z2.clone().requires_grad_()
    sft = cross_entropy(plain, torch.eye(9, dtype=torch.float64), y)
    sft.backward()
    assert torch.equal(loss_of_logits(z2, z1, y, 1.0), sft)
    d2, d1 = grads_of(z2, z1, y, 1.0)
    assert torch.equal(d2, plain.grad) and not d1.any()
    for lam in LAMS:
        torch.testing.assert_close(loss_of_logits(z2, z2, y, lam), sft)
        torch.testing.assert_close(grads_of(z2, z2, y, lam)[0], lam * plain.grad)


@pytest.mark.parametrize("lam", LAMS)
def test_T9_T10_the_mix_is_a_product_of_experts(pair, lam):
    """Bug: an ambiguity term of the wrong sign, or a mix that does not normalise."""
    z2, z1, y = pair
    p2, p1 = softmax(z2), softmax(z1)
    product = p1 ** (1 - lam) * p2 ** lam
    c = product.sum(-1, keepdim=True)
    assert (c <= 1).all()
    torch.testing.assert_close(softmax(mix_logits(z2, z1, lam)), product / c)
    ce = lambda q, p: -(q * p.log()).sum(-1)
    d = -c.log().squeeze(-1)
    assert (d >= 0).all()
    for q in (F.one_hot(y, 9).double(), softmax(rand(6, 9))):
        torch.testing.assert_close(ce(q, product / c), (1 - lam) * ce(q, p1) + lam * ce(q, p2) - d)
    torch.testing.assert_close(loss_of_logits(z2, z1, y, lam), ce(F.one_hot(y, 9).double(), product / c).sum())


@pytest.mark.parametrize("lam", LAMS)
def test_T11_no_amplification_while_the_strong_model_is_unsure(lam):
    """Bug: a gradient larger than lam allows; lam (1 - P_mix(y)) <= lam <= 1 - p2(y) when p2(y) <= 1 - lam."""
    torch.manual_seed(0)
    z2, y = rand(500, 5), torch.randint(0, 5, (500,))
    p2 = softmax(z2).gather(-1, y[:, None])[:, 0]
    unsure, seen = p2 <= 1 - lam, 0
    for scale in (1.0, 5.0, 30.0):
        z1 = rand(500, 5, scale=scale)
        d2, _ = grads_of(z2, z1, y, lam)
        gain = d2.gather(-1, y[:, None])[:, 0].abs() / (1 - p2)
        assert (gain[unsure] <= 1 + 1e-12).all()
        seen += int((gain[~unsure] > 1).sum())
    assert seen > 0, "the sure tokens must show amplification, or the test shows nothing"


@pytest.mark.parametrize("lam", LAMS)
def test_T12_constant_weak_logits_are_temperature(pair, lam):
    """Bug: a control that is no control."""
    z2, _, y = pair
    torch.testing.assert_close(softmax(mix_logits(z2, torch.full_like(z2, 3.0), lam)), softmax(lam * z2))
    torch.testing.assert_close(loss_of_logits(z2, torch.full_like(z2, 3.0), y, lam), F.cross_entropy(lam * z2, y, reduction="sum"))


@pytest.mark.parametrize("p1, p_mix, grad", [
    ((0.8, 0.1, 0.1), 0.717, 0.141), ((0.3, 0.6, 0.1), 0.447, 0.276), ((0.3, 0.1, 0.6), 0.504, 0.248), ((1, 1, 1), 0.473, 0.264)])
def test_T13_golden_values(p1, p_mix, grad):
    """Bug: any of the above, against numbers worked out by hand."""
    z2, z1 = torch.tensor([[0.6, 0.3, 0.1]]).double().log(), torch.tensor([p1]).double().log()
    y = torch.tensor([0])
    assert softmax(mix_logits(z2, z1, 0.5))[0, 0].item() == pytest.approx(p_mix, abs=5e-4)
    assert grads_of(z2, z1, y, 0.5)[0][0, 0].abs().item() == pytest.approx(grad, abs=5.1e-4)
    assert loss_of_logits(z2, z1, y, 0.5).exp().item() == pytest.approx(1 / p_mix, rel=2e-3)


# ----------------------------------------------------------------------------------------------------------------------
# the chunked losses against the naive ones


class largest_tensor(TorchDispatchMode):
    """Numel of the largest tensor that any operation returns inside the block."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def naive(hs, ws, hw, ww, y, lam):
    lam = lam[:, None] if isinstance(lam, torch.Tensor) else lam
    return F.cross_entropy(lam * (hs @ ws.T) + (1 - lam) * (hw @ ww.T), y, reduction="sum")


@pytest.mark.parametrize("chunk", (1, 5, 16, 17, 4096))
@pytest.mark.parametrize("lam", (0.0, 0.42, 1.0, "per row"))
def test_chunked_loss_and_gradients_equal_the_naive_ones(chunk, lam):
    """Bug: a dropped last chunk, a gradient overwritten where it should be added, lam forgotten in one of four gradients."""
    torch.manual_seed(0)
    inputs = [rand(16, 6), rand(11, 6), rand(16, 6), rand(11, 6)]
    y = torch.randint(0, 11, (16,))
    lam = torch.where(torch.arange(16) % 3 == 0, 1.0, 0.42).double() if lam == "per row" else lam
    a, b = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    ours, want = mixed_cross_entropy(*a, y, lam, chunk), naive(*b, y, lam)
    (3 * ours).backward()
    (3 * want).backward()
    torch.testing.assert_close(ours, want)
    for p, q in zip(a, b):
        torch.testing.assert_close(p.grad, q.grad)
    c, d = ([t.clone().requires_grad_() for t in inputs[:2]] for _ in range(2))
    cross_entropy(*c, y, chunk).backward()
    F.cross_entropy(d[0] @ d[1].T, y, reduction="sum").backward()
    torch.testing.assert_close(c[0].grad, d[0].grad)
    torch.testing.assert_close(c[1].grad, d[1].grad)


def compare(ours, want):
    """ours, want: functions of fresh leaves -> loss; equal values and gradients, the second by autograd through the naive form."""
    (a, f), (b, g) = ours, want
    x, y = f(), g()
    (3 * x).backward()
    (3 * y).backward()
    torch.testing.assert_close(x, y)
    for p, q in zip(a, b):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("chunk", (1, 5, 16, 4096))
@pytest.mark.parametrize("scale, smoothing", [(0.3, 0.0), (1.0, 0.1), (0.5, 0.25), (1.0, 1.0)])
def test_d0_and_label_smoothing_equal_their_naive_forms(chunk, scale, smoothing):
    """Bug: lam forgotten in a gradient; eps spread over V - 1 tokens instead of V, or a gradient without its share of eps."""
    torch.manual_seed(0)
    h, w, y = rand(16, 6), rand(11, 6), torch.randint(0, 11, (16,))
    a, b = ([t.clone().requires_grad_() for t in (h, w)] for _ in range(2))
    compare((a, lambda: cross_entropy(*a, y, chunk, scale, smoothing)),
            (b, lambda: F.cross_entropy(scale * b[0] @ b[1].T, y, reduction="sum", label_smoothing=smoothing)))


@pytest.mark.parametrize("lam", LAMS)
def test_d0_is_a_constant_weak_model_in_loss_and_gradient(pair, lam):
    """Bug: a temperature control that scales the loss or its gradient otherwise than mixing does (T12)."""
    z2, _, y = pair
    a, b, eye = z2.clone().requires_grad_(), z2.clone().requires_grad_(), torch.eye(9, dtype=torch.float64)
    cross_entropy(a, eye, y, scale=lam).backward()
    loss_of_logits(b, torch.full_like(z2, -3.0), y, lam).backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert torch.equal(cross_entropy(z2, eye, y, scale=1.0), cross_entropy(z2, eye, y))


def by_hand(z, y, share, keys):
    """The weak logits of the arm `permuted` for autograd: a gather."""
    return z.gather(-1, permute_logits(z, y, keys, share)[1])


@pytest.mark.parametrize("chunk", (1, 5, 16, 4096))
@pytest.mark.parametrize("share", (0.0, 0.5, 1.0))
def test_permuted_loss_and_gradients_equal_the_naive_ones(chunk, share):
    """Bug: a gradient that goes back to where the logit went instead of where it came from, keys of another chunk's rows."""
    torch.manual_seed(0)
    inputs, y, keys = [rand(16, 6), rand(11, 6), rand(16, 6), rand(11, 6)], torch.randint(0, 11, (16,)), hash_ids(5, torch.arange(16))
    lam = torch.where(torch.arange(16) % 3 == 0, 1.0, 0.42).double()
    a, b = ([t.clone().requires_grad_() for t in inputs] for _ in range(2))
    compare((a, lambda: mixed_cross_entropy(*a, y, lam, chunk, (keys, share))),
            (b, lambda: F.cross_entropy(mix_logits(b[0] @ b[1].T, by_hand(b[2] @ b[3].T, y, share, keys), lam[:, None]), y, reduction="sum")))
    frozen = [t.clone().requires_grad_(i < 2) for i, t in enumerate(inputs)]
    (3 * mixed_cross_entropy(*frozen, y, lam, chunk, (keys, share))).backward()
    torch.testing.assert_close(frozen[0].grad, a[0].grad)
    torch.testing.assert_close(frozen[1].grad, a[1].grad)


def test_gradients_of_every_loss_agree_with_central_differences():
    """Bug: one shared by the shipped form and the naive one that it is compared with."""
    torch.manual_seed(0)
    tensors, y, keys = [rand(7, 4), rand(9, 4), rand(7, 4), rand(9, 4)], torch.randint(0, 9, (7,)), hash_ids(torch.arange(7))
    for loss in (lambda a, b, *_: cross_entropy(a, b, y, 3, 0.4), lambda a, b, *_: cross_entropy(a, b, y, 3, 1.0, 0.1),
                 lambda *t: mixed_cross_entropy(*t, y, 0.4, 3, (keys, 1.0)), lambda *t: mixed_cross_entropy(*t, y, 0.4, 3, (keys, 0.5))):
        leaves = [t.clone().requires_grad_() for t in tensors]
        loss(*leaves).backward()
        for i, leaf in enumerate(leaves):
            way = rand(*leaf.shape)
            moved = lambda eps: [t + eps * way if j == i else t for j, t in enumerate(tensors)]
            slope = (loss(*moved(1e-5)) - loss(*moved(-1e-5))) / 2e-5
            want = 0.0 if leaf.grad is None else (leaf.grad * way).sum().item()
            assert slope.item() == pytest.approx(want, rel=1e-6, abs=1e-7)


def test_permutation_keeps_the_target_moves_all_else_and_forgets_no_value():
    """Bug: a fixed point, a value twice, a target that moves; a permutation that the batch, the chunk or the order decides."""
    n, v = 400, 11
    z, y, keys = rand(n, v, seed=0), torch.randint(0, v, (n,)), hash_ids(0, 3, torch.arange(n), 2)
    moved, source = permute_logits(z, y, keys)
    onto = F.one_hot(y, v).bool()
    assert torch.equal(moved[onto], z[onto]) and (source != torch.arange(v))[~onto].all()
    assert torch.equal(moved.sort(-1).values, z.sort(-1).values) and torch.equal(moved, z.gather(-1, source))
    for rows in (torch.arange(n - 1, -1, -1), torch.tensor([7])):
        assert torch.equal(permute_logits(z[rows], y[rows], keys[rows])[0], moved[rows])
    assert torch.equal(permute_logits(z, y, keys, 0.0)[0], z)
    half = permute_logits(z, y, keys, 0.5)[0]
    assert torch.equal(half[onto], z[onto]) and 0.4 < (half != z).double().mean() < 0.52
    # with target 0, each of the 9 places that are neither 0 nor 1 is as likely as any other to send its value to place 1
    keys = hash_ids(torch.arange(4000))
    counts = torch.bincount(permute_logits(torch.zeros(4000, v), torch.zeros(4000, dtype=torch.long), keys)[1][:, 1], minlength=v)
    assert counts[:2].sum() == 0 and ((counts[2:] - 4000 / 9) ** 2 / (4000 / 9)).sum() < 26.1          # chi2, 8 df, p = 0.001


def test_hash_is_splitmix64_and_each_id_counts():
    """Bug: a shift that copies the sign bit; a step, a sample or a position that changes nothing."""
    assert hash_ids(0).item() % 2 ** 64 == 0xE220A8397B1DCDAF           # the published generator's first output for seed 0
    seen = {hash_ids(*ids).item() for ids in itertools.product(range(4), repeat=4)}
    assert len(seen) == 256
    assert torch.equal(hash_ids(1, torch.arange(5)), torch.stack([hash_ids(1, i) for i in range(5)]))


def test_per_row_lam_of_one_takes_plain_cross_entropy_on_the_strong_logits():
    """Bug: settled tokens still pulled by the weak model."""
    hs, ws, hw, ww = rand(8, 4, seed=0), rand(5, 4), rand(8, 4), rand(5, 4)
    y = torch.arange(8) % 5
    settled = torch.tensor([True, False] * 4)
    got = mixed_cross_entropy(hs, ws, hw, ww, y, torch.where(settled, 1.0, 0.5).double())
    want = cross_entropy(hs[settled], ws, y[settled]) + mixed_cross_entropy(hs[~settled], ws, hw[~settled], ww, y[~settled], 0.5)
    torch.testing.assert_close(got, want)


def test_losses_never_hold_more_logits_than_a_chunk():
    """Bug: 4,096 x 151,936 logits, twice, upcast: the official code's 7.5 GB."""
    n, v, c, chunk = 300, 400, 8, 16
    tensors = [torch.randn(s, c).requires_grad_() for s in (n, v, n, v)]
    with largest_tensor() as seen:
        mixed_cross_entropy(*tensors, torch.randint(0, v, (n,)), 0.5, chunk).backward()
    assert seen.numel == chunk * v < n * v
    v = 2 ** 18                                                    # by default: as many rows as fill 128 MB
    with largest_tensor() as seen:
        mixed_cross_entropy(*(torch.randn(s, 2).requires_grad_() for s in (n, v, n, v)), torch.randint(0, v, (n,)), 0.5).backward()
    assert seen.numel == 2 ** 25 < n * v


def test_half_precision_keeps_the_sums_in_fp32():
    """Bug: a softmax over 150,000 values in bf16, whose sum stops growing at 256."""
    torch.manual_seed(0)
    h, w, y = torch.randn(64, 16), torch.randn(3000, 16), torch.randint(0, 3000, (64,))
    h.requires_grad_(), w.requires_grad_()
    want = F.cross_entropy(h @ w.T, y, reduction="sum")
    (gh, gw) = torch.autograd.grad(want, (h, w))
    with torch.autocast("cpu", torch.bfloat16):
        got = cross_entropy(h, w, y, 10)
    got.backward()
    assert got.dtype == h.grad.dtype == w.grad.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=2e-3)
    for ours, exact in ((h.grad, gh), (w.grad, gw)):
        assert F.cosine_similarity(ours.flatten(), exact.flatten(), 0) > 0.9995


def test_no_rows_give_zero_and_zero_gradients():
    """Bug: 0/0 on a micro-batch of prompts only."""
    h, w = torch.randn(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = mixed_cross_entropy(h, w, h, w, torch.empty(0, dtype=torch.long), 0.5)
    loss.backward()
    assert loss.item() == 0 and not w.grad.any()


def test_second_backward_is_an_error_not_a_wrong_gradient():
    """Bug: gradients handed on in place, then scaled twice."""
    h, w = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = cross_entropy(h, w, torch.tensor([0, 1, 2]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_second_derivatives_are_an_error_not_zero():
    """Bug: a Hessian of the shipped loss that is silently 0, where the naive loss has one."""
    h, w = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4)
    (g,) = torch.autograd.grad(cross_entropy(h, w, torch.tensor([0, 1, 2])), h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        torch.autograd.grad(g.sum(), h)


def test_shapes_that_do_not_match_are_refused():
    """Bug: a broadcast that silently repeats targets or lam, a chunk of no rows that gives a loss of 0."""
    h, w, y = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.long)
    for lam, chunk in ((torch.ones(1), 8), (0.5, 0), (0.5, -5)):
        with pytest.raises(ValueError, match="chunk_rows >= 1; found"):
            mixed_cross_entropy(h, w, h, w, y, lam, chunk)
    with pytest.raises(ValueError, match="chunk_rows >= 1; found"):
        cross_entropy(h, w, y, 0)
    with pytest.raises(ValueError, match="chunk_rows >= 1; found"):
        cross_entropy(torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(2, dtype=torch.long))


# ----------------------------------------------------------------------------------------------------------------------
# one step


def small(seed):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=97, dim=16, n_layers=1, n_heads=2))


def test_a_batch_of_only_prompts_gives_zero_not_nan():
    """Bug: NaN weights after one unlucky micro-batch."""
    b = collate(clean_set(toy_encoding(), 4, 0))
    for weak in (None, small(1)):
        pair = Pair(small(0), weak, True, 64)
        loss = pair(b.x, b.y, torch.zeros_like(b.loss_mask), 0.5)
        loss.backward()
        assert loss.item() == 0 and all(p.grad is None or not p.grad.any() for p in pair.parameters())


def test_labels_of_prompts_and_padding_change_nothing_and_every_completion_label_counts():
    """Bug: the official stage 3, which also trained on the prompt; a first or last completion token left out."""
    b = collate(clean_set(toy_encoding(), 3, 0))
    pair = Pair(small(0), small(1), True, 64)
    base = pair(b.x, b.y, b.loss_mask, 0.5).item()
    assert pair(b.x, torch.where(b.loss_mask, b.y, 5), b.loss_mask, 0.5).item() == base
    for row, t in b.loss_mask.nonzero().tolist():
        y = b.y.clone()
        y[row, t] = 6
        assert y[row, t] == b.y[row, t] or pair(b.x, y, b.loss_mask, 0.5).item() != base


def test_frozen_weak_gets_no_gradient_and_joint_weak_does():
    """Bug: `freeze` that freezes nothing, or `joint` that trains one branch."""
    b = collate(clean_set(toy_encoding(), 3, 0))
    for joint in (True, False):
        pair = Pair(small(0), small(1), joint, 64)
        pair(b.x, b.y, b.loss_mask, 0.5).backward()
        assert all(p.grad is not None for p in pair.strong.parameters())
        assert all((p.grad is not None) == joint for p in pair.weak.parameters())


@pytest.mark.parametrize("joint", (True, False))
def test_packing_equals_padding_in_loss_and_gradients(joint):
    """Bug: packed rows whose loss tokens, labels or lam fall out of step; a gradient that depends on who shares a pass."""
    rows = sorted(clean_set(toy_encoding(), 40, 0), key=lambda s: (len(s.tokens), s.id))
    padded, (packed,) = collate(rows), data.micro_batches(rows, 40)
    assert len(packed.x) > 3 and len(packed.y) < 0.8 * padded.y.numel()
    lam = torch.where(torch.arange(int(padded.loss_mask.sum())) % 3 > 0, 0.5, 1.0)
    got = []
    for b in (padded, packed):
        pair = Pair(small(0), small(1), joint, 64)
        loss = pair(b.x, b.y, b.loss_mask, lam)
        (loss / len(lam)).backward()
        got.append((loss.detach(), [p.grad for p in pair.parameters() if p.grad is not None]))
    torch.testing.assert_close(got[0], got[1], rtol=2e-5, atol=1e-7)


def test_learning_rate_rises_over_the_warmup_and_falls_to_almost_nothing():
    """Bug: a first step of 0, a last step of 0, a jump between the two branches."""
    lrs = [lr_at(s, 100, 2.0, 0.1) for s in range(100)]
    assert lrs[0] == pytest.approx(0.2) and max(lrs) == lrs[9] == 2.0 and lrs[-1] == pytest.approx(2 / 90)
    assert lrs[:10] == sorted(lrs[:10]) and lrs[9:] == sorted(lrs[9:], reverse=True)
    assert lr_at(0, 1, 1.0, 0.1) == 1.0 and all(lr_at(s, 3, 1.0, 0.0) > 0 for s in range(3))


# ----------------------------------------------------------------------------------------------------------------------
# whole runs


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def trace(folder, arm):
    with open(folder / "log.jsonl") as f:
        return [r["loss"] for r in map(json.loads, f) if r.get("arm") == arm]


def m1(trained):
    return ("--base", str(trained / "base.pt"), "--sft", str(trained / "sft.pt"), "--stages", "entropy,wmss")


def test_a_run_leaves_all_its_files_and_a_table(trained):
    """Bug: a row, an interval or a file that the README promises and the run forgets."""
    assert {"config.json", "log.jsonl", "base.pt", "sft.pt", "snapshots", "gaps.pt", "weak.pt", "wmss.pt", "sft-steps.pt",
            "sft-flops.pt", "scores.json", "answers", "report.html"} <= set(os.listdir(trained)) and not list(trained.glob("resume*"))
    scores = json.loads((trained / "scores.json").read_text())
    assert [r["model"] for r in scores["rows"]] == ["base", "sft", "sft-steps", "sft-flops", "wmss", "weak", "fused"]
    for r in scores["rows"]:
        answers = [json.loads(line) for line in open(trained / "answers" / f"{r['model']}.jsonl")]
        assert len(answers) == r["n"] == 14 and sum(a["correct"] for a in answers) / 14 == r["accuracy"]
        assert r["low"] <= r["accuracy"] <= r["high"] and set(r["families"]) == set(data.FAMILIES)
    text = train_wmss.table(scores["rows"])
    assert all(word in text for word in ("wmss (strong)", "sft-flops", "95 % interval", "borrow", "TFLOPs", "seconds"))
    first = json.loads(open(trained / "log.jsonl").readline())
    assert {"commit", "versions", "device", "config"} <= set(first)
    steps = weights(trained / "snapshots" / os.listdir(trained / "snapshots")[0])
    assert steps.keys() == weights(trained / "sft.pt").keys()
    meta = load_checkpoint(trained / "wmss.pt")[1]
    assert {"step", "cursor", "rng", "config", "commit", "tokenizer"} <= set(meta)


def test_report_page_stands_alone_and_shows_scores_curves_and_gaps(trained):
    """Bug: a page that asks the network for a script or a font, an unescaped <|end|>, a curve that is missing."""
    page = (trained / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link", page) and "<|end|>" not in page and "&lt;|end|&gt;" in page
    assert page.count("<polyline") == 5 and train_wmss.table(json.loads((trained / "scores.json").read_text())["rows"]) in page
    assert page.count("x uniform<br>") == 8 and all(name in page for name in ("settled", "consolidating", "regressing", "hard"))


def test_the_code_task_runs_all_stages_and_executes_nothing_without_consent(trained_code, tmp_path, monkeypatch):
    """Bug: a stage that reads the math data whatever the task; model-written code run because a flag defaulted to it."""
    scores = json.loads((trained_code / "scores.json").read_text())
    assert [r["model"] for r in scores["rows"]] == ["base", "sft", "sft-steps", "sft-flops", "wmss", "weak", "fused"]
    assert all(set(r["families"]) == set(toy_code.CODE_FAMILIES) and r["errors"] == 0 for r in scores["rows"])
    assert "affine" in train_wmss.table(scores["rows"])
    rows = [json.loads(line) for line in open(trained_code / "answers" / "wmss.jsonl")]
    assert [r["prompt"] for r in rows] == [p.prompt for p in toy_code.toy_code("test", 14)]
    assert all(r["status"] in ("pass", "fail") and r["correct"] == (r["status"] == "pass") for r in rows)
    assert json.loads((trained_code / "config.json").read_text())["task"] == "toy-code"
    monkeypatch.chdir(tmp_path)
    assert "--allow-code-execution: expected consent" in refuse(*TINY, "--task", "toy-code") and os.listdir(tmp_path) == []
    train_wmss.main([*TINY, "--task", "toy-code", "--stages", "base"])
    assert "--task toy-code -> toy-math" in refuse(*TINY, "--resume", "--stages", "sft")


def test_fused_row_is_scored_with_both_models(trained):
    """Bug: the official release's wrong branch, here: a fused row that is the strong one under another name, or lam mirrored."""
    strong, weak = (load_checkpoint(trained / f"{n}.pt")[0] for n in ("wmss", "weak"))
    enc = toy_encoding()
    rows = [json.loads(line) for line in open(trained / "answers" / "fused.jsonl")]
    prompts = [enc.encode_ordinary(r["prompt"]) for r in rows]
    fused = strong.generate(prompts, 6, stop_ids=[96], weak=weak, lam=Config.lam)
    assert [r["completion"] for r in rows] == [enc.decode(t) for t in fused]
    rows = [json.loads(line) for line in open(trained / "answers" / "weak.jsonl")]
    assert [r["completion"] for r in rows] == [enc.decode(t) for t in weak.generate(prompts, 6, stop_ids=[96])]


def test_fused_row_takes_lam_from_the_run(run, trained, monkeypatch):
    """Bug: lam mirrored, which 0.5 cannot show."""
    seen, real = [], GPT.generate
    monkeypatch.setattr(GPT, "generate", lambda model, *a, **kw: seen.append((kw.get("weak"), kw.get("lam"))) or real(model, *a, **kw))
    run("--name", "a", *m1(trained)[:4], "--stages", "entropy,wmss,score", "--lam", "0.3")
    assert [lam for weak, lam in seen if weak is not None] == [0.3]


def test_the_optimizer_is_torchs_to_the_bit_through_missing_gradients_and_a_resume():
    """Bug: weight decay that is not decoupled, moments that move without a gradient, a step count that starts again."""
    torch.manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.linspace(-2, 2, 12).view(3, 4) * i) for i in (1, 2, 3)] for _ in range(2))
    own, peer = train_wmss.AdamW(ours, 0.1), torch.optim.AdamW(theirs, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(6):
        if step == 3:
            saved, own = own.state, train_wmss.AdamW(ours, 0.1)
            own.load(saved)
        for i, (p, q) in enumerate(zip(ours, theirs)):
            q.grad = None if i == 1 and step % 2 else torch.randn(3, 4)
            p.grad = None if q.grad is None else q.grad.clone()
        peer.param_groups[0]["lr"] = 0.1 / (step + 1)
        own.step(0.1 / (step + 1))
        peer.step()
        assert all(torch.equal(p, q) for p, q in zip(ours, theirs)) and all(p.grad is None for p in ours)
    with pytest.raises(ValueError):
        own.load(saved[:2])


def test_lam_one_trains_exactly_like_sft(run, trained):
    """Bug: another order of data, optimizer, clip or schedule in stage 3 than in its baseline."""
    out = run("--name", "a", *m1(trained), "--gap", "none", "--lam", "1", "--weak", "frozen", "--wmss-lr", "1e-3", "--sft-steps-lr", "1e-3")
    assert same(out / "wmss.pt", out / "sft-steps.pt") and same(out / "weak.pt", trained / "base.pt")
    assert trace(out, "wmss") == trace(out, "sft-steps")
    joint = run("--name", "b", *m1(trained), "--gap", "none", "--wmss-lr", "1e-3")
    assert not same(joint / "wmss.pt", out / "wmss.pt") and not same(joint / "weak.pt", trained / "base.pt")


def test_zero_thresholds_put_every_token_in_the_mask(run, trained):
    """Bug: tau = h = 0 that still leaves tokens settled: then the paper cannot be reproduced with the mask on."""
    a = run("--name", "a", *m1(trained), "--gap", "none", "--lam", "0.5")                 # a number that fp32 has
    b = run("--name", "b", *m1(trained), "--gap", "token", "--tau", "0", "--h", "0", "--lam", "0.5")
    c = run("--name", "c", *m1(trained), "--gap", "token", "--tau", "100", "--h", "100", "--wmss-lr", "1e-3", "--sft-steps-lr", "1e-3")
    assert trace(a, "wmss") == trace(b, "wmss") != trace(c, "wmss") and same(a / "wmss.pt", b / "wmss.pt")
    assert trace(c, "wmss") == pytest.approx(trace(c, "sft-steps"), rel=1e-6), "all settled, yet not plain cross-entropy"


def test_each_gap_mode_uses_what_it_says(run, trained):
    """Bug: a flag that is stored and never used."""
    gaps = torch.load(trained / "gaps.pt", weights_only=True)
    tau = str((gaps["ent_live"] - gaps["ent_weak"]).abs().median().item())             # half of the tokens are settled
    runs = {g: run("--name", g, *m1(trained), "--gap", g, "--tau", tau, "--h", "100") for g in ("none", "sample", "token", "both")}
    traces = {g: trace(folder, "wmss") for g, folder in runs.items()}
    assert len({tuple(t) for t in traces.values()}) == 4
    assert not (runs["none"] / "gaps.pt").exists()
    for weights_kind in ("v1", "v2"):
        gaps = torch.load(run("--name", weights_kind, *m1(trained), "--weights", weights_kind) / "gaps.pt", weights_only=True)
        want = gap_weights(gaps["mean_weak"], gaps["mean_live"], 0.1, 0.8, 0.1, weights_kind)
        assert torch.equal(gaps["weights"], want)
    shares = run("--name", "shares", *m1(trained)[:4], "--stages", "entropy", "--alpha", "0.3", "--beta", "0.2", "--gamma", "0.7")
    gaps = torch.load(shares / "gaps.pt", weights_only=True)
    assert torch.equal(gaps["weights"], gap_weights(gaps["mean_weak"], gaps["mean_live"], 0.3, 0.2, 0.7, "code"))


def test_dedup_trains_on_fewer_samples_for_fewer_steps(run, trained):
    """Bug: v2's 123 steps run as 218, and a baseline that gets more steps than the method."""
    def steps(folder):
        return len(trace(folder, "wmss")), len(trace(folder, "sft-steps"))
    assert steps(run("--name", "a", *m1(trained), "--clean", "24")) == (3, 3)
    out = run("--name", "b", *m1(trained), "--clean", "24", "--gap", "both", "--dedup")
    assert steps(out) == (2, 2)
    draws = {r["draw"]: r for r in map(json.loads, open(out / "log.jsonl")) if "draw" in r}
    assert draws["wmss"]["drawn"] == 16 and 8 < draws["wmss"]["unique"] <= 16 and draws["sft-steps"]["unique"] == 16, "section 1.2: to be logged"


def test_sft_flops_spends_what_wmss_spent_and_less_than_one_step_more(run, trained):
    """Bug: a compute-matched baseline that forgets the entropy pass, the weak branch, or the longer samples drawn."""
    # joint: twice SFT per token; frozen: 4/3; with gaps two forward passes over the data more, 2/3 of an SFT epoch
    for name, flags, ratio in (("joint", ("--gap", "token"), 2 + 2 / 3), ("frozen", ("--gap", "token", "--weak", "frozen"), 4 / 3 + 2 / 3),
                               ("none", ("--gap", "none"), 2.0), ("both", ("--gap", "both"), None)):
        out = run("--name", name, *m1(trained), *flags)
        wmss, more, plain = (load_checkpoint(out / f"{n}.pt")[1] for n in ("wmss", "sft-flops", "sft-steps"))
        budget = wmss["spent"]["flops"]
        assert budget <= more["flops"] < budget + more["flops"] / more["step"] * 1.5
        if ratio:                                                       # not resampled: the same samples, here one epoch of 24
            assert budget / plain["flops"] == pytest.approx(ratio, rel=1e-9)


def test_the_mask_lies_on_the_tokens_that_it_was_measured_on(run, trained, monkeypatch):
    """Bug: codes of one row or token laid over another's: nothing fails, the method is just not the method any more."""
    gaps = torch.load(trained / "gaps.pt", weights_only=True)
    tau = (gaps["ent_live"] - gaps["ent_weak"]).abs().median().item()
    out = run("--name", "a", *m1(trained)[:4], "--stages", "entropy", "--tau", str(tau), "--h", "100")
    gaps = torch.load(out / "gaps.pt", weights_only=True)
    samples, seen = clean_set(toy_encoding(), 24, 0), []
    code = {s.tokens[:-1].numpy().tobytes(): gaps["codes"][gaps["offsets"][s.id]:gaps["offsets"][s.id + 1]] for s in samples}
    real = Pair.forward

    def spy(pair, x, y, loss_mask, lam):
        if pair.weak is not None:
            plane = torch.full(loss_mask.shape, -1.0)
            plane[loss_mask] = lam
            unpack = lambda flat: [row for b, part in zip(x, flat.split([b.numel() for b in x])) for row in part.view(b.shape)]
            for row, mask, got in zip([row for b in x for row in b], unpack(loss_mask), unpack(plane), strict=True):
                length = int(mask.nonzero()[-1]) + 1                         # the last loss position is the sample's last
                want = torch.where(code[row[:length].numpy().tobytes()] > 0, Config.lam, 1.0)
                seen.append(torch.equal(got[mask], want))
        return real(pair, x, y, loss_mask, lam)

    monkeypatch.setattr(Pair, "forward", spy)
    run("--name", "a", *m1(trained)[:4], "--stages", "wmss", "--tau", str(tau), "--h", "100", "--resume", "--micro-batch", "64")
    assert len(seen) == 24 and all(seen) and len({tuple(c.tolist()) for c in code.values()}) > 12


@pytest.mark.parametrize("flags", [("--clip", "1e-6"), ("--weight-decay", "0.5"), ("--warmup", "0.9"), ("--noise", "0"), ("--seed", "3"),
                                   ("--base-lr", "1e-3"), ("--corpus", "32"), ("--n-heads", "1")])
def test_each_flag_of_the_base_changes_the_base(run, trained, flags):
    """Bug: a flag that is stored and never used."""
    out = run("--name", "a", "--stages", "base", *flags)
    assert not same(out / "base.pt", trained / "base.pt")


@pytest.mark.parametrize("flags, changed", [
    (("--lam", "0.3"), {"wmss"}), (("--weak", "frozen"), {"wmss", "sft-flops"}),
    (("--tau", "1", "--h", "1"), set()), (("--h", "100", "--tau", "100"), {"wmss"}),
    (("--wmss-lr", "1e-3"), {"wmss"}), (("--sft-steps-lr", "1e-3"), {"sft-steps"}), (("--sft-flops-lr", "1e-3"), {"sft-flops"}),
    (("--wmss-epochs", "2"), {"wmss", "sft-steps", "sft-flops"})])
def test_each_flag_of_stage_3_changes_its_arms_and_no_other(run, trained, flags, changed):
    """Bug: a flag that is stored and never used, or one that moves a baseline too."""
    out = run("--name", "a", *m1(trained), *flags)
    moved = {arm for arm in ("wmss", "sft-steps", "sft-flops") if not same(out / f"{arm}.pt", trained / f"{arm}.pt")}
    assert changed <= moved <= changed | {"sft-flops"}             # its steps follow from what wmss drew and spent


def test_the_table_counts_what_each_row_cost(run, trained):
    """Bug: a wmss row without its entropy pass, a baseline with the cost of another."""
    rows = {r["model"]: r for r in json.loads((trained / "scores.json").read_text())["rows"]}
    for name in ("base", "sft", "sft-steps", "sft-flops"):
        assert rows[name]["flops"] == load_checkpoint(trained / f"{name}.pt")[1]["flops"]
    meta = load_checkpoint(trained / "wmss.pt")[1]
    gaps = torch.load(trained / "gaps.pt", weights_only=True)
    assert rows["wmss"]["flops"] == meta["spent"]["flops"] == meta["flops"] + gaps["flops"] and rows["fused"]["flops"] is None
    samples, model = clean_set(toy_encoding(), 24, 0), load_checkpoint(trained / "sft.pt")[0]
    pairs = lambda s: sum(range(1, len(s.tokens)))                                       # query t sees t + 1 keys
    assert gaps["flops"] == 2 * sum(model.cfg.forward_flops(len(s.tokens) - 1, pairs(s), int(s.loss.sum())) for s in samples)


@pytest.mark.parametrize("micro", (4, 2, 1))
def test_loss_trace_does_not_depend_on_micro_batches(run, trained, micro):
    """Bug: a mean of micro-batch means, which weighs short micro-batches too much."""
    whole = run("--name", "a", "--stages", "base,sft,entropy,wmss")
    split = run("--name", "b", "--stages", "base,sft,entropy,wmss", "--micro-batch", str(micro))
    for arm in ("base", "sft", "wmss", "sft-steps"):
        assert trace(whole, arm) == pytest.approx(trace(split, arm), rel=2e-5)


@pytest.mark.parametrize("batch", ("8", "1"))
def test_two_gloo_ranks_train_as_one_process(run, tmp_path, batch):
    """Bug: DDP's mean taken for a sum, ranks that see the same rows, a file written twice, a rank that hangs at the end;
    with batch 1 a rank without a row: codes of a sample for positions that carry no loss."""
    one = run("--name", "one", "--batch-size", batch)
    flags = [*TINY, "--name", "two", "--batch-size", batch]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                           os.path.join(ROOT, "train_wmss.py"), *flags], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    two = tmp_path / "out" / "two"
    for arm in ("base", "sft", "wmss", "sft-flops"):
        assert trace(one, arm) == pytest.approx(trace(two, arm), rel=2e-5)
    a, b = (json.loads((f / "scores.json").read_text())["rows"] for f in (one, two))
    assert [(r["model"], r["n"]) for r in a] == [(r["model"], r["n"]) for r in b]
    rows = [[json.loads(line) for line in open(f / "answers" / "base.jsonl")] for f in (one, two)]
    assert [r["prompt"] for r in rows[0]] == [r["prompt"] for r in rows[1]]


class Crash(Exception):
    pass


@pytest.mark.parametrize("save_every", ("1", "1000"))
@pytest.mark.parametrize("arm, step", [("base", 3), ("sft", 2), ("wmss", 2), ("sft-steps", 2), ("sft-flops", 3)])
def test_resume_after_a_crash_gives_the_same_bits(run, trained, monkeypatch, arm, step, save_every):
    """Bug: an optimizer without its state, an order that starts again, a schedule counted from the resumed step; log records
    of steps that were done again, also where the crash came before the first save."""
    real_train, real_lr, now = train_wmss.train, train_wmss.lr_at, {}

    def train(r, name, *args, **kw):
        now["arm"] = name
        return real_train(r, name, *args, **kw)

    def lr_at(s, *args):                                                # called once per step, before its forward pass
        if (now["arm"], s) == (arm, step):
            raise Crash
        return real_lr(s, *args)

    flags = ("--name", "a", "--save-every", save_every, "--stages", "base,sft,entropy,wmss")
    with monkeypatch.context() as m:
        m.setattr(train_wmss, "train", train)
        m.setattr(train_wmss, "lr_at", lr_at)
        with pytest.raises(Crash):
            run(*flags)
    with open(os.path.join("out", "a", "log.jsonl"), "a") as f:
        f.write('{"arm": "base", "lo')                                 # the crash came in the middle of a line
    out = run(*flags, "--resume")
    for name in ("base", "sft", "wmss", "weak", "sft-steps", "sft-flops"):
        assert same(out / f"{name}.pt", trained / f"{name}.pt"), name
    for name in ("base", "sft", "wmss", "sft-steps", "sft-flops"):
        assert trace(out, name) == trace(trained, name)
    assert not list(out.glob("resume*"))


def test_an_interrupted_arm_keeps_its_state_while_another_is_trained(run, trained, monkeypatch):
    """Bug: --resume --arm sft deleted what --resume was to go on from: days of the joint arm."""
    real, flags = train_wmss.lr_at, ("--name", "a", *m1(trained), "--arm", "wmss", "--save-every", "1")
    def lr_at(step, *args):
        if step == 2:
            raise Crash
        return real(step, *args)
    with monkeypatch.context() as m:
        m.setattr(train_wmss, "lr_at", lr_at)
        with pytest.raises(Crash):
            run(*flags)
    out = run(*flags, "--resume", "--arm", "sft", "--stages", "wmss")
    assert (out / "sft-steps.pt").exists() and not (out / "wmss.pt").exists()
    seen = []
    monkeypatch.setattr(train_wmss, "lr_at", lambda step, *args: seen.append(step) or real(step, *args))
    run(*flags, "--resume")
    assert seen == [2] and same(out / "wmss.pt", trained / "wmss.pt")


def test_crash_in_the_entropy_stage_or_while_scoring_loses_nothing(run, trained, monkeypatch):
    """Bug: a half-written gaps.pt taken for a whole one; checkpoints saved only after the scores."""
    def crash(*args, **kw):
        raise Crash
    with monkeypatch.context() as m:
        m.setattr(train_wmss, "report", crash)
        with pytest.raises(Crash):
            run("--name", "a")
    with monkeypatch.context() as m:
        m.setattr(train_wmss.eval_math, "complete", crash)
        with pytest.raises(Crash):
            run("--name", "a", "--resume")
    out = run("--name", "a", "--resume")
    assert same(out / "wmss.pt", trained / "wmss.pt")
    strip = lambda folder: [{k: r[k] for k in ("model", "accuracy", "n", "flops")} for r in json.loads((folder / "scores.json").read_text())["rows"]]
    assert strip(out) == strip(trained)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """(training file, scoring spec): 24 questions with their answers, 40 problems of amc23's schema."""
    folder = tmp_path_factory.mktemp("text")
    rows = [{"question": f"What is {a} and {a + 3}?", "answer": f"{a}+{a + 3}={2 * a + 3}\n#### {2 * a + 3}"} for a in range(24)]
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "amc.jsonl").write_text("".join(json.dumps({"question": f"{a} and {a}?", "answer": str(2 * a)}) + "\n" for a in range(40)))
    return str(folder / "train.jsonl"), f"amc23={folder / 'amc.jsonl'}"


def test_a_model_of_the_hub_goes_through_all_stages_by_its_name(run, hf_folder, text, monkeypatch):
    """Bug: a name that is no path, for which a toy base was trained, or an SFT that was thrown away: every preset of real models ended there."""
    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: {"acme/tiny": str(hf_folder)}[name])
    out = run(*text_flags("acme/tiny", text, "hub"))
    scores = json.loads((out / "scores.json").read_text())["rows"]
    assert [r["model"] for r in scores][:2] == ["base", "sft"] and scores[0]["checkpoint"] == "acme/tiny" and not (out / "base.pt").exists()
    local = run(*text_flags(hf_folder, text, "local"))
    for name in ("sft", "wmss", "weak"):
        assert same(out / f"{name}.pt", local / f"{name}.pt")
    named = run(*text_flags("acme/tiny", text, "named"), "--sft", "acme/tiny", "--arm", "wmss")
    assert not (named / "sft.pt").exists() and (named / "wmss.pt").exists()


def test_what_is_scored_is_asked_with_the_system_prompt(run, hf_folder, text, monkeypatch):
    """Bug: a model that was trained under the paper's system prompt and is scored without."""
    asked, real = [], eval_math.chat
    monkeypatch.setattr(eval_math, "PAPER_SYSTEM", "Think.")                # the paper's own has 333 characters, too many for 256 positions
    monkeypatch.setattr(eval_math, "chat", lambda enc, system=None, raw=False: asked.append(system) or real(enc, system, raw))
    for system in ("paper", "Be brief.", ""):
        run(*text_flags(hf_folder, text, "s"), "--stages", "score", "--overwrite", "--system", system)
    assert set(asked) == {eval_math.PAPER_SYSTEM, "Be brief.", ""} and train_wmss.PRESETS["qwen3-4b-am"]["system"] == "paper"


def text_flags(hf_folder, text, name):
    return ["--name", name, "--base", str(hf_folder), "--data", text[0], "--score-data", text[1], "--max-len", "120"]


def test_text_and_foreign_weights_run_through_all_stages_and_out_again(run, hf_folder, text, tmp_path):
    """Bug: a stage that still takes the built-in tokenizer or data; a folder trained on that cannot be exported or scored."""
    out = run(*text_flags(hf_folder, text, "t"))
    names = {p.name for p in out.iterdir()}
    assert {"sft.pt", "gaps.pt", "wmss.pt", "weak.pt", "sft-steps.pt", "sft-flops.pt", "scores.json"} <= names and "base.pt" not in names
    rows = {r["model"]: r for r in json.loads((out / "scores.json").read_text())["rows"]}
    assert rows["base"]["n"] == 14 and list(rows["wmss"]["families"]) == ["amc23"] and rows["base"]["flops"] is None
    base, tuned = (load_checkpoint(path)[0].state_dict() for path in (hf_folder, out / "wmss.pt"))
    assert any((base[k] != tuned[k]).any() for k in base)
    answers = [json.loads(line) for line in (out / "answers" / "wmss.jsonl").read_text().splitlines()]
    export(out / "wmss.pt", tmp_path / "hf")
    eval_math.main([str(tmp_path / "hf"), "--data", text[1], "--max-new-tokens", "6", "--limit", "14",
                    "--out", str(tmp_path / "scores")])
    again = [json.loads(line) for line in (tmp_path / "scores" / "amc23.jsonl").read_text().splitlines()]
    assert [r["completion"] for r in again] == [r["completion"] for r in answers]
    entropy.main(["--weak", str(hf_folder), "--live", str(out / "sft.pt"), "--show", "1"])


def test_a_template_given_for_training_is_kept_for_scoring_and_export(run, hf_folder, text, tmp_path):
    """Bug: trained on one chat format, scored on another, exported with none."""
    (tmp_path / "my.jinja").write_text("{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A{% else %} {{ m.content }}"
                                       "{{ eos_token }}{% endif %}{% endfor %}")
    out = run(*text_flags(hf_folder, text, "j"), "--template", str(tmp_path / "my.jinja"))
    enc = tokenizer_of(load_checkpoint(out / "wmss.pt")[1])
    assert eval_math.chat(enc)("why?") == "Q why? A"
    export(out / "wmss.pt", tmp_path / "hf")
    assert eval_math.chat(load_tokenizer(tmp_path / "hf"))("why?") == "Q why? A"
    assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_small_forward_passes_and_recomputed_activations_change_no_loss(run, hf_folder, text):
    """Bug: a mean of micro-batch means, a dropped micro-batch, a gradient lost in recomputation."""
    flags = ["--stages", "sft,entropy,wmss"]
    plain = run(*text_flags(hf_folder, text, "p"), *flags)
    small = run(*text_flags(hf_folder, text, "s"), *flags, "--tokens-per-batch", "64", "--checkpointing")
    for arm in ("sft", "wmss", "sft-flops"):
        assert trace(small, arm) == pytest.approx(trace(plain, arm), rel=2e-5) and len(trace(plain, arm)) >= 3


def test_a_run_is_not_resumed_on_other_samples(run, hf_folder, text, tmp_path):
    """Bug: a training file rewritten under its name, or another template in the same file: the rest of the run trains on it."""
    (tmp_path / "d.jsonl").write_bytes(open(text[0], "rb").read())
    flags = [*text_flags(hf_folder, (str(tmp_path / "d.jsonl"), text[1]), "r"), "--stages", "sft"]
    out = run(*flags)
    os.remove(out / "sft.pt")
    run(*flags, "--resume")
    os.remove(out / "sft.pt")
    (tmp_path / "d.jsonl").write_text((tmp_path / "d.jsonl").read_text().replace("is 5", "is 6"))
    assert "was started on other samples" in refuse(*TINY, *flags, "--resume") and not (out / "sft.pt").exists()


def test_another_arm_takes_the_chat_format_of_its_sft_model(run, hf_folder, text):
    """Bug: --template forgotten in a second arm, whose stage 3 then trains M1 on a format that it never saw."""
    flags = text_flags(hf_folder, text, "u")
    sft = str(run(*text_flags(hf_folder, text, "t"), "--stages", "sft", "--template", "none") / "sft.pt")
    said = refuse(*TINY, *flags, "--sft", sft, "--stages", "entropy")
    assert "sft.pt was trained in another chat format (--template none) than this run's (--template auto)" in said
    run(*flags, "--sft", sft, "--stages", "entropy", "--template", "none")


def test_weights_of_text_without_text_say_what_is_missing(hf_folder, tmp_path, monkeypatch):
    """Bug: --data forgotten, and a sentence on fingerprints of tokenizers in answer."""
    monkeypatch.chdir(tmp_path)
    spec = json.loads((hf_folder / "tokenizer.json").read_text())
    shutil.copytree(hf_folder, "m")
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s|\S"          # another tokenizer than the toy's
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(spec))
    assert "m was trained on text, this run is on toy-math; pass --data" in refuse(*TINY, "--base", "m")


@pytest.mark.parametrize("flags, said", [
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--data", "empty.jsonl"], "empty.jsonl"),
    (["--max-len", "5"], "--long"),
    (["--max-len", "100000"], "--max-len"),
    (["--base", "nobody/nothing"], "nobody/nothing"),
    (["--max-new-tokens", "256"], "--max-new-tokens"),
    (["--score-data", "amc23=nowhere.jsonl"], "nowhere.jsonl"),
    (["--task", "toy-math"], "--data"),
    (["--score-data", "mbpp"], "--allow-code-execution"),
    (["--template", "nowhere.jinja"], "nowhere.jinja")])
def test_wrong_text_is_refused_before_anything_is_written(run, hf_folder, text, tmp_path, flags, said):
    """Bug: a refusal after an hour of training, or one that has deleted the old run."""
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "out" / "t").mkdir(parents=True)
    (tmp_path / "out" / "t" / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match=re.escape(said)):
        run(*text_flags(hf_folder, text, "t"), "--overwrite", *flags)
    assert (tmp_path / "out" / "t" / "config.json").read_text() == "{}"


def test_presets_are_whole_and_printed(capsys):
    """Bug: a preset whose values the flags refuse."""
    for name in train_wmss.PRESETS:
        cfg = train_wmss.parse(["--preset", name])
        assert cfg.preset == name and all(getattr(cfg, k) == v for k, v in train_wmss.PRESETS[name].items())


# ----------------------------------------------------------------------------------------------------------------------
# arms


RATES = ("--wmss-lr", "1e-3", "--sft-steps-lr", "1e-3", "--sft-flops-lr", "1e-3")
OTHERS = ("d0", "label-smoothing", "weights-only", "joint", "frozen", "permuted")


@pytest.fixture(scope="module")
def arms(tmp_path_factory, trained):
    """Folder of one run of every arm from the tiny run's M1, at one rate, and scored."""
    return whole_run(tmp_path_factory, *m1(trained)[:4], "--stages", "entropy,wmss,score", "--gap", "both", "--arm", "wmss", "sft", "sft-flops", *OTHERS,
                     *RATES)


def test_every_arm_leaves_its_checkpoint_its_curve_and_its_row(arms):
    """Bug: an arm that trains another's model, that is left out of the table, or that overwrites M1."""
    names = ("sft-steps", "sft-flops", *OTHERS, "wmss")
    rows = [r["model"] for r in json.loads((arms / "scores.json").read_text())["rows"]]
    assert rows == ["base", "sft", *names, "weak", "fused"]
    traces = {name: trace(arms, name) for name in names}
    assert len({tuple(t) for t in traces.values()}) == len(names) and all(len(traces[n]) == 3 for n in names if n != "sft-flops")
    first = {name: t[0] for name, t in traces.items()}                 # the same samples, the same M1, another loss
    assert first["sft-steps"] == first["sft-flops"] and first["joint"] == first["frozen"] != first["permuted"]
    assert not any(same(arms / f"{a}.pt", arms / f"{b}.pt") for a, b in itertools.combinations(names, 2))
    assert not (arms / "sft.pt").exists()


def test_arms_are_what_the_flags_make_of_wmss(run, trained, arms):
    """Bug: an arm of another definition than section 4's: each equals the full method with the other parts switched off."""
    go = lambda name, *flags: run("--name", name, *m1(trained), *RATES, *flags)
    none = go("a", "--gap", "none")
    assert same(none / "wmss.pt", arms / "joint.pt") and trace(none, "wmss") == trace(arms, "joint")
    assert same(go("b", "--gap", "none", "--weak", "frozen") / "wmss.pt", arms / "frozen.pt")
    assert same(none / "sft-steps.pt", arms / "sft-steps.pt") and not same(none / "sft-flops.pt", arms / "sft-flops.pt")
    alone = go("c", "--arm", "sft-flops", "d0", "weights-only", "--lam", "1")          # nothing else is trained, wmss neither
    assert same(alone / "sft-flops.pt", arms / "sft-flops.pt") and same(alone / "d0.pt", arms / "sft-steps.pt")
    assert not (alone / "wmss.pt").exists() and not (alone / "weak.pt").exists()
    sampled = go("d", "--arm", "wmss", "--gap", "sample", "--lam", "1")                # T8: at lam 1 only the curriculum is left
    assert same(sampled / "wmss.pt", arms / "weights-only.pt")
    assert load_checkpoint(alone / "weights-only.pt")[1]["spent"]["flops"] > load_checkpoint(alone / "weights-only.pt")[1]["flops"]
    frozen = go("e", "--arm", "permuted", "--weak", "frozen", "--gap", "none")
    assert not same(frozen / "permuted.pt", arms / "permuted.pt") and not (frozen / "gaps.pt").exists()


def test_permuted_is_joint_at_share_0_and_the_same_whatever_the_micro_batches_and_crashes(run, trained, arms, monkeypatch):
    """Bug: a permutation drawn from a stream, so that batching or a restart changes it; one that also does something else."""
    flags = (*m1(trained), *RATES, "--arm", "permuted", "--gap", "none")
    assert trace(run("--name", "m", *flags, "--micro-batch", "3"), "permuted") == pytest.approx(trace(arms, "permuted"), rel=2e-5)
    with monkeypatch.context() as m:
        m.setitem(train_wmss.ARMS, "permuted", train_wmss.ARMS["permuted"]._replace(permuted=1e-300))
        assert same(run("--name", "0", *flags) / "permuted.pt", arms / "joint.pt")
    real, seen = train_wmss.lr_at, []

    def crash(step, *args):
        seen.append(step)
        if seen == [0, 1, 2]:
            raise Crash
        return real(step, *args)

    monkeypatch.setattr(train_wmss, "lr_at", crash)
    with pytest.raises(Crash):
        run("--name", "c", *flags, "--save-every", "1")
    assert same(run("--name", "c", *flags, "--save-every", "1", "--resume") / "permuted.pt", arms / "permuted.pt") and seen == [0, 1, 2, 2]


def test_each_step_and_token_has_its_own_permutation(run, trained, monkeypatch):
    """Bug: one permutation for all tokens, or the same again each step, which a model could learn."""
    seen, real = [], train_wmss.permute_logits
    monkeypatch.setattr(train_wmss, "permute_logits", lambda z, y, keys, share: seen.extend(keys.tolist()) or real(z, y, keys, share))
    run("--name", "a", *m1(trained), "--arm", "permuted", "--gap", "none", "--wmss-epochs", "2")
    assert len(seen) == len(set(seen)) == 2 * sum(int(s.loss[1:].sum()) for s in clean_set(toy_encoding(), 24, 0))


def test_more_arms_can_join_a_finished_run(run, trained):
    """Bug: a night's run that has to be repeated for one more control."""
    out = run("--name", "a", *m1(trained), *RATES, "--arm", "sft")
    before = snapshot_of(out)[str(out / "sft-steps.pt")]
    run("--name", "a", *m1(trained), *RATES, "--arm", "sft", "d0", "--resume")
    assert (out / "d0.pt").exists() and snapshot_of(out)[str(out / "sft-steps.pt")] == before


def test_arms_that_cannot_be_are_refused():
    """Bug: --arm temperature taken for the default; rounds of an arm that has none."""
    assert "--arm: expected some of wmss, sft, sft-flops, d0" in refuse("--arm", "sft", "temperature")
    assert "--rounds: expected 1 where" in refuse("--rounds", "2", "--arm", "d0")
    assert "--rounds: expected 1 where" in refuse("--rounds", "2", "--arm", "wmss", "joint")


def test_token_statistics_agree_with_their_definitions(pair):
    """Bug: a margin to the target itself, an affinity above 1, an entropy of unnormalised products."""
    z2, z1, y = pair
    found, p2, p1 = token_statistics(z2, y, z1, 0.3, 0.5, 1.0), softmax(z2), softmax(z1)
    ent = lambda p: -(p * p.log()).sum(-1)
    margin = [z2[i, y[i]] - max(z2[i, k] for k in range(9) if k != y[i]) for i in range(6)]
    c = (p2 ** 0.3 * p1 ** 0.7).sum(-1)
    want = dict(margin=torch.stack(margin), p_target=p2[range(6), y], ent_strong=ent(p2), ent_weak=ent(p1),
                ent_mix=ent(softmax(mix_logits(z2, z1, 0.3))), affinity=c)
    assert {k: v for k, v in found.items() if k != "codes"} == pytest.approx({k: v.mean().item() for k, v in want.items()})
    assert found["codes"] == torch.bincount(gap_mask(ent(p1), ent(p2), 0.5, 1.0).int(), minlength=4).tolist() and sum(found["codes"]) == 6
    assert token_statistics(z2, y, z2)["affinity"] == pytest.approx(1) and list(token_statistics(z2, y)) == ["margin", "p_target", "ent_strong"]


def test_diagnostics_are_in_the_log_and_leave_training_alone(run, trained, arms, monkeypatch):
    """Bug: statistics of heads that a step has already changed, norms after the clip, a run that depends on how often it logs."""
    def record(folder, arm):
        with open(folder / "log.jsonl") as f:
            return [r for r in map(json.loads, f) if r.get("arm") == arm]
    joint, plain = record(arms, "joint")[0], record(arms, "sft-steps")[0]
    assert joint["gnorm"] == pytest.approx((joint["gnorm_strong"] ** 2 + joint["gnorm_weak"] ** 2) ** 0.5, rel=1e-5)
    assert plain["gnorm"] == pytest.approx(plain["gnorm_strong"], rel=1e-5) and "affinity" not in plain
    assert "gnorm_weak" not in record(arms, "frozen")[0]
    assert all(100 < sum(r["codes"]) <= 128 + 8 for r in record(arms, "joint"))                 # of each step its own rows
    # step 1 looks at M1 as it was: every loss token of the first batch, one in ceil(tokens / 128)
    samples, model = clean_set(toy_encoding(), 24, 0), load_checkpoint(trained / "sft.pt")[0]
    first = data.schedule(24, 8, 0, 3, epochs=1)[0]
    rows, every = [], -(-joint["loss_tokens"] // 128)
    for b in data.micro_batches([samples[i] for i in first.tolist()], 64):
        rows.append([t[b.loss_mask][::every] for t in (model.logits(b.x).detach(), b.y)])
    z, y = (torch.cat(t) for t in zip(*rows))
    assert {k: joint[k] for k in ("margin", "p_target", "ent_strong")} == pytest.approx(token_statistics(z, y), rel=1e-4)
    with open(arms / "log.jsonl") as f:
        mass = next(r["mass"] for r in map(json.loads, f) if "mass" in r)
    gaps = torch.load(arms / "gaps.pt", weights_only=True)
    assert mass["carry"] == pytest.approx(sum(w for w, s in zip(gaps["weights"].tolist(), samples) if s.family == "carry"))
    monkeypatch.setattr(train_wmss, "diagnose", lambda *args: {})
    quiet = run("--name", "a", *m1(trained), *RATES, "--arm", "joint", "--log-every", "1000")
    assert same(quiet / "joint.pt", arms / "joint.pt")


def test_bf16_autocast_runs_every_stage_close_to_fp32(run, trained):
    """Bug: a stage that only works in fp32, which is never what a GPU runs."""
    out = run("--name", "a", "--dtype", "bf16")
    for arm in ("base", "sft", "wmss", "sft-flops"):
        assert trace(out, arm) == pytest.approx(trace(trained, arm), rel=5e-3) and trace(out, arm) != trace(trained, arm)
    assert all(torch.isfinite(w).all() and w.dtype == torch.float32 for w in weights(out / "wmss.pt").values())


def test_rounds_mix_the_previous_model_into_the_current_one(run, trained):
    """Bug: round 2 that starts again from M1, or that takes the trained weak branch for M_{t-1}."""
    out = run("--name", "a", *m1(trained), "--rounds", "2", "--wmss-lr", "1e-3")
    again = run("--name", "b", "--stages", "entropy,wmss", "--base", str(trained / "sft.pt"), "--sft", str(out / "wmss-round1.pt"), "--wmss-lr", "1e-3")
    one = run("--name", "c", *m1(trained), "--wmss-lr", "1e-3")
    assert same(out / "wmss-round1.pt", one / "wmss.pt")
    two, by_hand = (torch.load(f, weights_only=True) for f in (out / "gaps-round2.pt", again / "gaps.pt"))
    assert torch.equal(two["ent_live"], by_hand["ent_live"]) and torch.equal(two["ent_weak"], by_hand["ent_weak"])
    assert not same(out / "wmss.pt", out / "wmss-round1.pt")
    assert load_checkpoint(out / "sft-steps.pt")[1]["step"] == 2 * load_checkpoint(one / "sft-steps.pt")[1]["step"]


def test_weak_snapshot_is_the_model_that_is_mixed_in(run, trained):
    """Bug: a flag stored and never used."""
    snapshot = sorted((trained / "snapshots").iterdir())[0]
    out = run("--name", "a", *m1(trained), "--weak-snapshot", str(snapshot), "--weak", "frozen")
    assert same(out / "weak.pt", snapshot) and not same(out / "weak.pt", trained / "base.pt")
    assert torch.load(out / "gaps.pt", weights_only=True)["weak"] == str(snapshot)


# ----------------------------------------------------------------------------------------------------------------------
# wrong input


def refuse(*flags):
    with pytest.raises(SystemExit) as e:
        train_wmss.main(list(flags))
    return str(e.value)


def test_bad_flags_are_reported_together_before_anything_is_written(tmp_path, monkeypatch):
    """Bug: typos ignored (the official code), one error per run, a bad value noticed after an hour."""
    monkeypatch.chdir(tmp_path)
    assert "--score-data: expected each set once" in refuse("--score-data", "mbpp", "mbpp-test=a", "--allow-code-execution")
    text = refuse("--lamda", "0.3", "--lam", "2", "--weak", "melted", "--clean", "many", "--stages", "sft,base", "--clip", "nan",
                  "--base", "nowhere.pt", "stray")
    for words in ("unknown argument --lamda; did you mean --lam?", "unknown argument stray", "--lam: expected a share", "one of joint, frozen, found 'melted'",
                  "--clean: expected int, found 'many'", "--stages: expected some of base,sft,entropy,wmss,score", "--clip",
                  "--base: expected an existing checkpoint"):
        assert words in text, words
    assert os.listdir(tmp_path) == []
    assert "--dim" in refuse("--dim", "30") and "--n-heads" in refuse("--n-heads", "0")


def test_help_shows_every_flag_with_its_comment_and_default(capsys):
    """Bug: a field whose comment is missing or out of the pattern."""
    with pytest.raises(SystemExit):
        train_wmss.parse(["-h"])
    out = " ".join(capsys.readouterr().out.split())
    for f in dataclasses.fields(Config):
        assert f"--{f.name.replace('_', '-')}" in out
    assert "weight of the strong logits in the mix; chosen on val (paper: 0.5) [0.9]" in out and "--no-compile" in out
    assert train_wmss.parse(["--no-compile"]).compile is False and train_wmss.parse([]).compile is None


def test_flags_beat_the_preset(tmp_path):
    """Bug: a preset that overwrites what the user typed."""
    smoke = train_wmss.parse(["--preset", "smoke", "--dim", "32"])
    assert smoke.dim == 32 and smoke.corpus == train_wmss.PRESETS["smoke"]["corpus"]


def snapshot_of(folder):
    return {os.path.join(d, f): os.stat(os.path.join(d, f)).st_mtime_ns for d, _, fs in os.walk(folder) for f in fs}


def test_existing_run_is_neither_overwritten_nor_resumed_with_other_values(run):
    """Bug: a night's checkpoints gone, or half a run at one lambda and half at another."""
    out = run("--name", "a", "--stages", "base")
    before = snapshot_of(out)
    assert "--resume goes on with it, --overwrite deletes it" in refuse(*TINY, "--name", "a")
    text = refuse(*TINY, "--name", "a", "--resume", "--lam", "0.3", "--base-lr", "1e-2")
    assert "--lam 0.9 -> 0.3" in text and "--base-lr 0.003 -> 0.01" in text
    assert "would delete" in refuse(*TINY, "--name", "a", "--overwrite", "--base", str(out / "base.pt"))
    assert "not both" in refuse(*TINY, "--name", "a", "--overwrite", "--resume")
    assert snapshot_of(out) == before
    os.mkdir(os.path.join("out", "mine"))
    open(os.path.join("out", "mine", "thesis.tex"), "w").close()
    assert "not a run of ours" in refuse(*TINY, "--name", "mine", "--overwrite")
    assert os.path.exists(os.path.join("out", "mine", "thesis.tex"))
    assert "nothing to resume" in refuse(*TINY, "--name", "new", "--resume")
    run("--name", "a", "--stages", "base", "--overwrite", "--base-lr", "1e-2")
    assert json.loads((out / "config.json").read_text())["base_lr"] == 0.01


def test_foreign_missing_and_unfitting_checkpoints_are_refused_before_work(tmp_path, monkeypatch, trained):
    """Bug: an error from the middle of stage 3, an hour after the flag was read."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": 1}, "foreign.pt")
    model, meta = load_checkpoint(trained / "base.pt")
    wide = GPT(GPTConfig(vocab_size=97, dim=32, n_layers=1, n_heads=2))
    save_checkpoint("wide.pt", wide, **meta)
    save_checkpoint("words.pt", model, **{**meta, "tokenizer": "0123456789abcdef"})
    files = sorted(os.listdir(tmp_path))
    base = ("--base", str(trained / "base.pt"))
    assert "not a whole wmss-checkpoint-1" in refuse(*TINY, "--base", "foreign.pt")
    assert "different shape (dim 16 / 32" in refuse(*TINY, *base, "--sft", "wide.pt")
    assert "different shape (dim 16 / 32" in refuse(*TINY, *base, "--weak-snapshot", "wide.pt")
    assert "tokenizer 0123456789abcdef" in refuse(*TINY, *base, "--weak-snapshot", "words.pt")
    assert "was trained on toy-math" in refuse(*TINY, *base, "--task", "toy-code", "--allow-code-execution")
    assert "need out/toy/base.pt" in refuse(*TINY, "--stages", "sft").replace(os.sep, "/")
    assert "need out/toy/sft.pt" in refuse(*TINY, *base, "--stages", "entropy,wmss").replace(os.sep, "/")
    assert "too few" in refuse(*TINY, "--score-n", "100000")
    assert "add the stage entropy" in refuse(*TINY, *base, "--sft", str(trained / "sft.pt"), "--stages", "wmss")
    assert "which base was it fine-tuned from?" in refuse(*TINY, "--sft", str(trained / "sft.pt"))
    assert "pass --dim 16 --n-layers 1" in refuse(*TINY, *base, "--dim", "32", "--n-layers", "2")
    assert "--max-new-tokens: expected at most" in refuse(*TINY, "--max-new-tokens", "250")
    assert "no checkpoint in" in refuse(*TINY, "--stages", "score")
    assert "--seed" in refuse("--seed", "99999999999999999999")
    (tmp_path / "out").write_text("a file")
    assert "out" in refuse(*TINY)
    os.remove("out")
    assert sorted(os.listdir(tmp_path)) == files


def test_gaps_of_another_data_set_are_refused(run, trained, tmp_path):
    """Bug: missing entropies that silently weigh 0 (the official code)."""
    out = run("--name", "a", *m1(trained)[:4], "--stages", "entropy")
    gaps = torch.load(out / "gaps.pt", weights_only=True)
    gaps["ids"] = torch.cat([gaps["ids"][:17], gaps["ids"][18:]])
    torch.save(gaps, out / "gaps.pt")
    words = "24 samples in the data but 23 in .*first missing id 17"
    assert re.search(words, refuse(*TINY, "--name", "a", *m1(trained)[:4], "--stages", "wmss", "--resume"))
    for other in (("--seed", "1"), ("--weak-snapshot", str(trained / "sft.pt"))):
        foreign = run("--name", "b", *m1(trained)[:4], "--stages", "entropy", "--overwrite", *other)
        (out / "gaps.pt").write_bytes((foreign / "gaps.pt").read_bytes())
        assert "was made for other samples or models" in refuse(*TINY, "--name", "a", *m1(trained)[:4], "--stages", "wmss", "--resume")
    (out / "gaps.pt").write_bytes(b"half")
    assert "not a gaps file" in refuse(*TINY, "--name", "a", *m1(trained)[:4], "--stages", "wmss", "--resume")


@pytest.mark.parametrize("steps", ("30", "1"))
def test_divergence_stops_the_run_and_saves_no_wreck(run, steps):
    """Bug: hours of NaN; a base.pt of NaN after its last step, for which the next stage's rate is blamed."""
    with pytest.raises(SystemExit, match="base has diverged at step .*start it again with a lower learning rate"):
        run("--name", "a", "--stages", "base", "--base-lr", "3e38", "--base-steps", steps, "--weight-decay", "1e30")
    assert not os.path.exists("out/a/base.pt")


def test_divergence_leaves_no_wreck_among_the_snapshots(run, trained):
    """Bug: a snapshot of NaN, the weak model of a later run, from a step between two lines of the log."""
    with pytest.raises(SystemExit, match="sft has diverged at step .*it has no checkpoint"):
        run("--name", "a", "--stages", "sft", "--base", str(trained / "base.pt"), "--sft-lr", "1e30", "--sft-epochs", "20",
            "--snapshots", "50", "--log-every", "100")
    for name in (found := os.listdir("out/a/snapshots")):
        model, _ = load_checkpoint(os.path.join("out/a/snapshots", name))
        assert all(p.isfinite().all() for p in model.parameters()), name
    assert found


def test_interim_state_that_is_none_is_refused(run, trained):
    """Bug: a KeyError from a resume-sft.pt that is another checkpoint."""
    out = run("--name", "a", "--stages", "base")
    (out / "resume-sft.pt").write_bytes((trained / "sft.pt").read_bytes())
    assert "no interim state" in refuse(*TINY, "--name", "a", "--stages", "sft", "--resume")


def test_no_git_is_no_reason_not_to_run(monkeypatch):
    """Bug: FileNotFoundError: git, on a cluster node."""
    monkeypatch.setenv("PATH", "")
    assert train_wmss.eval_math.commit() == "unknown"


def test_a_run_needs_none_of_the_heavy_and_optional_packages(tmp_path):
    """Bug: `datasets` imported (and slow) for a task that does not use it; training that waits two seconds for the compiler."""
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train_wmss; train_wmss.main({TINY}); "
            "print([m for m in ('datasets', 'transformers', 'wandb', 'torch._dynamo') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


@pytest.mark.parametrize("module", ("data", "entropy", "eval_math", "tokenizer", "train_wmss"))
def test_worked_examples_in_docstrings_are_true(module):
    """Bug: an example that nobody has run."""
    import doctest
    mod = __import__(module)
    result = doctest.testmod(mod)
    assert result.failed == 0 and result.attempted > 0

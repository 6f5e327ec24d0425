"""plumbing/loss.py: the theory of mixing in float64 on the shipped loss, and the chunked loss
against its naive forms."""

import pytest
import torch
import torch.nn.functional as F
from tensors import largest_tensor, leaves, mix_logits, rand, softmax

from plumbing.controls import Smoothing, Temperature, hash_ids, permute_logits
from plumbing.loss import linear_cross_entropy
from train_wmss import Config

LAMS = (0.2, 0.5, 0.9)
EYE = torch.eye(9, dtype=torch.float64)


def plain(h, w, y, chunk_rows=None, scale=1.0, **how):
    """The loss of one model."""
    return linear_cross_entropy([(scale, h, w)], y, chunk_rows, **how)


def mixed(h_strong, w_strong, h_weak, w_weak, y, lam, chunk_rows=None, **how):
    """The loss on mixed logits, as training calls it."""
    branches = [(lam, h_strong, w_strong), (1 - lam, h_weak, w_weak)]
    return linear_cross_entropy(branches, y, chunk_rows, **how)


def loss_of_logits(z_strong, z_weak, y, lam):
    """The loss of logits (N, V): with the identity as head, hidden states are logits."""
    eye = torch.eye(z_strong.size(-1), dtype=torch.float64)
    return mixed(z_strong, eye, z_weak, eye, y, lam)


def grads_of(z_strong, z_weak, y, lam):
    z_strong, z_weak = leaves((z_strong, z_weak))
    return torch.autograd.grad(loss_of_logits(z_strong, z_weak, y, lam), (z_strong, z_weak))


def of_target(t, y):
    """The entry of each row at its target -> (N, 1)."""
    return t.gather(-1, y[:, None])


# -------------------------------------------------------------------------------------------------
# theory of mixed logits


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
    return of_target(z, y) - z


@pytest.mark.parametrize("lam", LAMS)
def test_T2_margins_mix_linearly(pair, lam):
    """Bug: probabilities mixed where logits should be."""
    z2, z1, y = pair
    z = mix_logits(z2, z1, lam)
    torch.testing.assert_close(margins(z, y), (1 - lam) * margins(z1, y) + lam * margins(z2, y))
    logp = z.log_softmax(-1)
    torch.testing.assert_close(logp - of_target(logp, y), -margins(z, y))
    torch.testing.assert_close(loss_of_logits(z2, z1, y, lam), -of_target(logp, y).sum())


@pytest.mark.parametrize("lam", LAMS)
def test_T3_T4_amplification_of_a_wrong_token_follows_the_weak_margin(pair, lam):
    """Bug: lam on the wrong side: then the amplification has the other sign."""
    z2, z1, y = pair
    p_mix, p2 = softmax(mix_logits(z2, z1, lam)), softmax(z2)
    lower = margins(z1, y) < margins(z2, y)
    assert lower.any()
    assert (p_mix / of_target(p_mix, y) > p2 / of_target(p2, y))[lower].all()
    ratio = of_target(p_mix, y) / of_target(p2, y)
    formula = ratio * torch.exp((1 - lam) * (margins(z2, y) - margins(z1, y)))
    torch.testing.assert_close(p_mix / p2, formula)


@pytest.mark.parametrize("lam", LAMS)
def test_T5_a_less_confident_weak_model_lowers_the_targets_probability(pair, lam):
    """Bug: none that T4 would miss; the counter-test keeps the claim from being vacuous."""
    z2, _, y = pair
    onto = F.one_hot(y, 9).double()
    alone = of_target(softmax(z2), y)
    assert (of_target(softmax(mix_logits(z2, z2 - 1.5 * onto, lam)), y) < alone).all()
    assert (of_target(softmax(mix_logits(z2, z2 + 1.5 * onto, lam)), y) > alone).all()


def test_T6_hessian_is_psd_annihilates_constants_vanishes_and_couples_by_lam(pair):
    """Bug: a second order that the theory of saturation does not describe."""
    z2, z1, y = pair[0][0], pair[1][0], pair[2][0]
    lam, v = 0.3, 9

    def naive(a, b):
        return F.cross_entropy(mix_logits(a, b, lam), y)

    p = softmax(mix_logits(z2, z1, lam))
    h = torch.diag(p) - torch.outer(p, p)
    assert torch.linalg.eigvalsh(h).min() > -1e-12
    assert (h @ torch.ones(v, dtype=torch.float64)).abs().max() < 1e-12
    (h22, h21), (_, h11) = torch.autograd.functional.hessian(naive, (z2, z1))
    torch.testing.assert_close(h22, lam ** 2 * h)
    torch.testing.assert_close(h21, lam * (1 - lam) * h)
    torch.testing.assert_close(h11, (1 - lam) ** 2 * h)
    sure = softmax(z2 + 60 * F.one_hot(y, v))
    assert (torch.diag(sure) - torch.outer(sure, sure)).abs().max() < 1e-12
    # the shipped gradient is the one whose derivative this is: central differences of it
    eps = 1e-5
    up, down = (grads_of(z2 + s * eps * EYE, z1.expand(v, v), y.expand(v), lam)[0] for s in (1, -1))
    torch.testing.assert_close((up - down) / (2 * eps), lam ** 2 * h, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("lam", LAMS)
def test_T7_constants_on_either_branch_change_nothing(pair, lam):
    """Bug: a shift by the maximum that is subtracted from one branch only."""
    z2, z1, y = pair
    shift = rand(6, 1, scale=5.0)
    want = loss_of_logits(z2, z1, y, lam)
    torch.testing.assert_close(loss_of_logits(z2 + shift, z1, y, lam), want)
    torch.testing.assert_close(loss_of_logits(z2, z1 + shift, y, lam), want)


def test_T8_lam_one_is_sft_and_equal_branches_give_its_loss_and_lam_times_its_gradient(pair):
    """Bug: a weak branch that still moves, or is still read, at lam = 1."""
    z2, z1, y = pair
    (alone,) = leaves((z2,))
    sft = plain(alone, EYE, y)
    sft.backward()
    assert torch.equal(loss_of_logits(z2, z1, y, 1.0), sft)
    d2, d1 = grads_of(z2, z1, y, 1.0)
    assert torch.equal(d2, alone.grad) and not d1.any()
    for lam in LAMS:
        torch.testing.assert_close(loss_of_logits(z2, z2, y, lam), sft)
        torch.testing.assert_close(grads_of(z2, z2, y, lam)[0], lam * alone.grad)


def cross_entropy_of(q, p):
    return -(q * p.log()).sum(-1)


@pytest.mark.parametrize("lam", LAMS)
def test_T9_T10_the_mix_is_a_product_of_experts(pair, lam):
    """Bug: an ambiguity term of the wrong sign, or a mix that does not normalise."""
    z2, z1, y = pair
    p2, p1 = softmax(z2), softmax(z1)
    product = p1 ** (1 - lam) * p2 ** lam
    c = product.sum(-1, keepdim=True)
    assert (c <= 1).all()
    torch.testing.assert_close(softmax(mix_logits(z2, z1, lam)), product / c)
    d = -c.log().squeeze(-1)
    assert (d >= 0).all()
    onto = F.one_hot(y, 9).double()
    for q in (onto, softmax(rand(6, 9))):
        parts = (1 - lam) * cross_entropy_of(q, p1) + lam * cross_entropy_of(q, p2) - d
        torch.testing.assert_close(cross_entropy_of(q, product / c), parts)
    torch.testing.assert_close(loss_of_logits(z2, z1, y, lam),
                               cross_entropy_of(onto, product / c).sum())


@pytest.mark.parametrize("lam", LAMS)
def test_T11_no_amplification_while_the_strong_model_is_unsure(lam):
    """Bug: a gradient larger than lam allows.

    lam (1 - P_mix(y)) <= lam <= 1 - p2(y) where p2(y) <= 1 - lam.
    """
    torch.manual_seed(0)
    z2, y = rand(500, 5), torch.randint(0, 5, (500,))
    p2 = of_target(softmax(z2), y)[:, 0]
    unsure, seen = p2 <= 1 - lam, 0
    for scale in (1.0, 5.0, 30.0):
        z1 = rand(500, 5, scale=scale)
        d2, _ = grads_of(z2, z1, y, lam)
        gain = of_target(d2, y)[:, 0].abs() / (1 - p2)
        assert (gain[unsure] <= 1 + 1e-12).all()
        seen += int((gain[~unsure] > 1).sum())
    assert seen > 0, "the sure tokens must show amplification, or the test shows nothing"


@pytest.mark.parametrize("lam", LAMS)
def test_T12_constant_weak_logits_are_temperature(pair, lam):
    """Bug: a control that is no control."""
    z2, _, y = pair
    constant = torch.full_like(z2, 3.0)
    torch.testing.assert_close(softmax(mix_logits(z2, constant, lam)), softmax(lam * z2))
    torch.testing.assert_close(loss_of_logits(z2, constant, y, lam),
                               F.cross_entropy(lam * z2, y, reduction="sum"))


@pytest.mark.parametrize("p1, p_mix, grad", [
    ((0.8, 0.1, 0.1), 0.717, 0.141),
    ((0.3, 0.6, 0.1), 0.447, 0.276),
    ((0.3, 0.1, 0.6), 0.504, 0.248),
    ((1, 1, 1), 0.473, 0.264)])
def test_T13_golden_values(p1, p_mix, grad):
    """Bug: any of the above, against numbers worked out by hand."""
    z2, z1 = torch.tensor([[0.6, 0.3, 0.1]]).double().log(), torch.tensor([p1]).double().log()
    y = torch.tensor([0])
    assert softmax(mix_logits(z2, z1, 0.5))[0, 0].item() == pytest.approx(p_mix, abs=5e-4)
    assert grads_of(z2, z1, y, 0.5)[0][0, 0].abs().item() == pytest.approx(grad, abs=5.1e-4)
    assert loss_of_logits(z2, z1, y, 0.5).exp().item() == pytest.approx(1 / p_mix, rel=2e-3)


# -------------------------------------------------------------------------------------------------
# the chunked loss against naive ones


def naive(hs, ws, hw, ww, y, lam, **how):
    lam = lam[:, None] if isinstance(lam, torch.Tensor) else lam
    return F.cross_entropy(mix_logits(hs @ ws.T, hw @ ww.T, lam), y, reduction="sum", **how)


def compare(inputs, ours, want):
    """ours(*inputs) and want(*inputs) have equal values and gradients, the second by autograd."""
    a, b = leaves(inputs), leaves(inputs)
    x, y = ours(*a), want(*b)
    (3 * x).backward()
    (3 * y).backward()
    torch.testing.assert_close(x, y)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    return [p.grad for p in a]


def a_batch():
    """Hidden states and heads of two models, (16, 6) and (11, 6) each, and targets."""
    torch.manual_seed(0)
    return [rand(16, 6), rand(11, 6), rand(16, 6), rand(11, 6)], torch.randint(0, 11, (16,))


def some_rows_plain():
    """A coefficient for each row, 1 in every third."""
    return torch.where(torch.arange(16) % 3 == 0, 1.0, 0.42).double()


@pytest.mark.parametrize("chunk", (1, 5, 16, 17, 4096))
@pytest.mark.parametrize("lam", (0.0, 0.42, 1.0, "per row"))
def test_chunked_loss_and_gradients_equal_the_naive_ones(chunk, lam):
    """Bug: a dropped last chunk, a gradient overwritten where it should be added, lam forgotten in
    one of four gradients."""
    inputs, y = a_batch()
    lam = some_rows_plain() if lam == "per row" else lam
    compare(inputs, lambda *t: mixed(*t, y, lam, chunk), lambda *t: naive(*t, y, lam))
    compare(inputs[:2], lambda h, w: plain(h, w, y, chunk),
            lambda h, w: F.cross_entropy(h @ w.T, y, reduction="sum"))


@pytest.mark.parametrize("chunk", (1, 5, 16, 4096))
def test_any_number_of_models_of_any_width_can_be_mixed(chunk):
    """Bug: a loss that knows of two branches, or of one width."""
    inputs, y = a_batch()
    inputs += [rand(16, 3), rand(11, 3)]
    c = (0.5, some_rows_plain(), torch.tensor(-0.2, dtype=torch.float64))

    def ours(*t):
        return linear_cross_entropy(list(zip(c, t[::2], t[1::2], strict=True)), y, chunk)

    def want(*t):
        z = 0.5 * t[0] @ t[1].T + c[1][:, None] * (t[2] @ t[3].T) - 0.2 * t[4] @ t[5].T
        return F.cross_entropy(z, y, reduction="sum")

    compare(inputs, ours, want)


@pytest.mark.parametrize("chunk", (1, 5, 16, 4096))
@pytest.mark.parametrize("scale, smoothing", [(0.3, 0.0), (1.0, 0.1), (0.5, 0.25), (1.0, 1.0)])
def test_temperature_and_label_smoothing_equal_their_naive_forms(chunk, scale, smoothing):
    """Bug: lam forgotten in a gradient; eps spread over V - 1 tokens instead of V, or a gradient
    without its share of eps."""
    inputs, y = a_batch()

    def want(h, w):
        return F.cross_entropy(scale * h @ w.T, y, reduction="sum", label_smoothing=smoothing)

    compare(inputs[:2], lambda h, w: plain(h, w, y, chunk, scale, smoothing=smoothing), want)
    cfg = Config(lam=scale, chunk_rows=chunk)
    if smoothing == 0.1:
        compare(inputs[:2], lambda h, w: Smoothing(cfg)([(1.0, h, w)], y), want)
    if smoothing == 0:
        compare(inputs[:2], lambda h, w: Temperature(cfg)([(1.0, h, w)], y), want)


@pytest.mark.parametrize("smoothing", (0.1, 0.25, 1.0))
def test_label_smoothing_of_mixed_logits_equals_its_naive_form(smoothing):
    """Bug: a mean over the logits of one branch."""
    inputs, y = a_batch()
    compare(inputs, lambda *t: mixed(*t, y, 0.42, 5, smoothing=smoothing),
            lambda *t: naive(*t, y, 0.42, label_smoothing=smoothing))


@pytest.mark.parametrize("lam", LAMS)
def test_temperature_is_a_constant_weak_model_in_loss_and_gradient(pair, lam):
    """Bug: a temperature control that scales the loss or its gradient otherwise than mixing does
    (T12)."""
    z2, _, y = pair
    a, b = leaves((z2, z2))
    Temperature(Config(lam=lam))([(1.0, a, EYE)], y).backward()
    loss_of_logits(b, torch.full_like(z2, -3.0), y, lam).backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert torch.equal(plain(z2, EYE, y, scale=1.0), plain(z2, EYE, y))


def permuting(y, keys):
    """The weak logits of the arm `permuted`, as linear_cross_entropy wants them."""
    def permute(z, rows):
        return permute_logits(z, y[rows], keys[rows])
    return permute


@pytest.mark.parametrize("chunk", (1, 5, 16, 4096))
def test_permuted_loss_and_gradients_equal_the_naive_ones(chunk):
    """Bug: a gradient that goes back to where the logit went instead of where it came from, keys
    of another chunk's rows."""
    inputs, y = a_batch()
    keys, lam = hash_ids(5, torch.arange(16)), some_rows_plain()

    def ours(*t):
        return mixed(*t, y, lam, chunk, permute=permuting(y, keys))

    def want(hs, ws, hw, ww):
        z = hw @ ww.T
        moved = z.gather(-1, permute_logits(z, y, keys)[1])      # by hand: a gather
        z = mix_logits(hs @ ws.T, moved, lam[:, None])
        return F.cross_entropy(z, y, reduction="sum")

    of_strong = compare(inputs, ours, want)[:2]
    frozen = [t.clone().requires_grad_(i < 2) for i, t in enumerate(inputs)]
    (3 * ours(*frozen)).backward()
    torch.testing.assert_close([t.grad for t in frozen[:2]], of_strong)


def test_gradients_of_every_loss_agree_with_central_differences():
    """Bug: one shared by the shipped form and the naive one that it is compared with."""
    torch.manual_seed(0)
    tensors, y = [rand(7, 4), rand(9, 4), rand(7, 4), rand(9, 4)], torch.randint(0, 9, (7,))
    keys = hash_ids(torch.arange(7))
    losses = [lambda a, b, *_: plain(a, b, y, 3, 0.4),
              lambda a, b, *_: plain(a, b, y, 3, smoothing=0.1),
              lambda *t: mixed(*t, y, 0.4, 3, permute=permuting(y, keys))]
    for loss in losses:
        inputs = leaves(tensors)
        loss(*inputs).backward()
        for i, leaf in enumerate(inputs):
            way = rand(*leaf.shape)
            up, down = list(tensors), list(tensors)
            up[i] = up[i] + 1e-5 * way
            down[i] = down[i] - 1e-5 * way
            slope = (loss(*up) - loss(*down)) / 2e-5
            want = 0.0 if leaf.grad is None else (leaf.grad * way).sum().item()
            assert slope.item() == pytest.approx(want, rel=1e-6, abs=1e-7)


def test_per_row_lam_of_one_takes_plain_cross_entropy_on_the_strong_logits():
    """Bug: settled tokens still pulled by the weak model."""
    hs, ws, hw, ww = rand(8, 4, seed=0), rand(5, 4), rand(8, 4), rand(5, 4)
    y = torch.arange(8) % 5
    settled = torch.tensor([True, False] * 4)
    got = mixed(hs, ws, hw, ww, y, torch.where(settled, 1.0, 0.5).double())
    in_a_gap = ~settled
    want = plain(hs[settled], ws, y[settled])
    want = want + mixed(hs[in_a_gap], ws, hw[in_a_gap], ww, y[in_a_gap], 0.5)
    torch.testing.assert_close(got, want)


def test_losses_never_hold_more_logits_than_a_chunk():
    """Bug: 4,096 x 151,936 logits, twice, upcast: the official code's 7.5 GB."""
    n, v, c, chunk = 300, 400, 8, 16
    tensors = leaves(torch.randn(s, c) for s in (n, v, n, v))
    with largest_tensor() as seen:
        mixed(*tensors, torch.randint(0, v, (n,)), 0.5, chunk).backward()
    assert seen.numel == chunk * v < n * v
    v = 2 ** 18                                 # by default: as many rows as fill 128 MB
    tensors = leaves(torch.randn(s, 2) for s in (n, v, n, v))
    with largest_tensor() as seen:
        mixed(*tensors, torch.randint(0, v, (n,)), 0.5).backward()
    assert seen.numel == 2 ** 25 < n * v


def test_half_precision_keeps_the_sums_in_fp32():
    """Bug: a softmax over 150,000 values in bf16, whose sum stops growing at 256."""
    torch.manual_seed(0)
    h, w = leaves((torch.randn(64, 16), torch.randn(3000, 16)))
    y = torch.randint(0, 3000, (64,))
    want = F.cross_entropy(h @ w.T, y, reduction="sum")
    exact = torch.autograd.grad(want, (h, w))
    with torch.autocast("cpu", torch.bfloat16):
        got = plain(h, w, y, 10)
    got.backward()
    assert got.dtype == h.grad.dtype == w.grad.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=2e-3)
    for ours, of_autograd in zip((h.grad, w.grad), exact, strict=True):
        assert F.cosine_similarity(ours.flatten(), of_autograd.flatten(), 0) > 0.9995


def test_half_precision_mixes_in_fp32():
    """Bug: branches summed in bf16, where the weak logits' last bits get lost."""
    torch.manual_seed(0)
    tensors = leaves(torch.randn(s, 16) for s in (64, 3000, 64, 3000))
    y = torch.randint(0, 3000, (64,))
    want = naive(*tensors, y, 0.5)
    exact = torch.autograd.grad(want, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        got = mixed(*tensors, y, 0.5, 10)
    got.backward()
    assert got.dtype == torch.float32 and got.item() == pytest.approx(want.item(), rel=2e-3)
    for leaf, of_autograd in zip(tensors, exact, strict=True):
        assert leaf.grad.dtype == torch.float32
        assert F.cosine_similarity(leaf.grad.flatten(), of_autograd.flatten(), 0) > 0.9995


def test_no_rows_give_zero_and_zero_gradients():
    """Bug: 0/0 on a micro-batch of prompts only."""
    h, w = torch.randn(0, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    loss = mixed(h, w, h, w, torch.empty(0, dtype=torch.long), 0.5)
    loss.backward()
    assert loss.item() == 0 and not w.grad.any()


def test_second_backward_is_an_error_not_a_wrong_gradient():
    """Bug: gradients handed on in place, then scaled twice."""
    h, w = leaves((torch.randn(3, 4), torch.randn(7, 4)))
    loss = plain(h, w, torch.tensor([0, 1, 2]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        loss.backward()


def test_second_derivatives_are_an_error_not_zero():
    """Bug: a Hessian of the shipped loss that is silently 0, where the naive loss has one."""
    h, w = torch.randn(3, 4, requires_grad=True), torch.randn(7, 4)
    loss = plain(h, w, torch.tensor([0, 1, 2]))
    (g,) = torch.autograd.grad(loss, h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        torch.autograd.grad(g.sum(), h)


def test_shapes_that_do_not_match_are_refused():
    """Bug: a broadcast that silently repeats targets or lam, a chunk of no rows that gives a loss
    of 0."""
    h, w, y = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(3, dtype=torch.long)
    for lam in (torch.ones(1), torch.ones(3, 1), torch.ones(1, 3)):
        with pytest.raises(ValueError, match="expected y .* a coefficient"):
            mixed(h, w, h, w, y, lam, 8)
    for bad in ((h, w, h[:1], w, y), (h[:1], w, h, w, y), (h, w, h, w, y[:2])):
        with pytest.raises(ValueError, match="expected y .* found"):
            mixed(*bad, 0.5, 8)
    with pytest.raises(ValueError, match="expected y .* found"):
        plain(h[None], w, y[None])
    for chunk in (0, -5):
        with pytest.raises(ValueError, match=f"chunk_rows >= 1, found {chunk}"):
            mixed(h, w, h, w, y, 0.5, chunk)
    with pytest.raises(ValueError, match="chunk_rows >= 1, found 0"):
        plain(h, w, y, 0)
    with pytest.raises(RuntimeError):
        mixed(h, w, h, torch.zeros(6, 4), y, 0.5)       # two vocabularies

"""plumbing/neighbours.py: losses beside the method, each against its published formula."""

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from runs import RATES, Crash, from_m1, same
from tensors import rand

import train_wmss
from model import load_checkpoint
from plumbing.controls import ARMS
from plumbing.neighbours import Averaged, Confidence, Dft, Distilled, Focal, Gce, Reweighted

CFG = SimpleNamespace(lam=0.3, chunk_rows=0)


def case(n=7, branches=1):
    """-> (branches with gradients, targets) of 11 tokens and 4 channels, in float32."""
    parts = []
    for _ in range(branches):
        h = (0.3 * rand(n, 4)).float().requires_grad_()
        parts.append((0.5, h, (0.3 * rand(11, 4)).float().requires_grad_()))
    return parts, torch.randint(0, 11, (n,))


def published(kind, z, y):
    """The loss of each token by the formula of its paper, in plain probabilities."""
    p = F.softmax(z, -1)
    of_y = p[range(len(y)), y]
    if kind is Dft:
        return -of_y.detach() * of_y.log()
    if kind is Focal:
        return -(1 - of_y) ** 2 * of_y.log()
    if kind is Gce:
        return (1 - of_y ** 0.7) / 0.7
    return -of_y.log() - 0.1 * -(p * p.log()).sum(-1)


@pytest.mark.parametrize("kind", [Dft, Focal, Gce, Confidence])
@pytest.mark.parametrize("chunk_rows", [0, 3])
def test_a_neighbour_has_the_value_and_gradient_of_its_paper(kind, chunk_rows):
    """Bug: a sign, a weight with a gradient, a chunk that is forgotten or counted twice."""
    torch.manual_seed(0)
    [(c, h, w)], y = case()
    loss = kind(SimpleNamespace(lam=0.3, chunk_rows=chunk_rows))([(c, h, w)], y)
    found = torch.autograd.grad(loss, (h, w))
    want_loss = published(kind, h @ w.T, y).sum()
    torch.testing.assert_close(loss, want_loss)
    for got, want in zip(found, torch.autograd.grad(want_loss, (h, w)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_the_distilled_arm_is_kl_to_the_teacher_up_to_a_constant():
    """Bug: teacher and student in each other's place, a teacher that gets a gradient."""
    torch.manual_seed(1)
    branches, y = case(branches=2)
    (_, h, w), (_, h_t, w_t) = branches
    w_t.requires_grad_(False)
    h_t.requires_grad_(False)
    grad = torch.autograd.grad(Distilled(CFG)(branches, y), h)[0]
    soft = F.kl_div(F.log_softmax(h @ w.T, -1), F.log_softmax(h_t @ w_t.T, -1), log_target=True,
                    reduction="sum")
    want = 0.3 * F.cross_entropy(h @ w.T, y, reduction="sum") + 0.7 * soft
    torch.testing.assert_close(grad, torch.autograd.grad(want, h)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_rows", [0, 3])
def test_the_reweighted_arm_counts_what_the_weak_model_would_have_said_a_fifth(chunk_rows):
    """Bug: agreement asked of the strong model, the two weights in each other's place."""
    torch.manual_seed(3)
    branches, y = case(40, branches=2)
    (_, h, w), (_, h_weak, w_weak) = branches
    z_weak = (h_weak @ w_weak.T).detach()
    y[::2] = z_weak[::2].argmax(-1)                     # at least half of them agree
    weight = torch.where(z_weak.argmax(-1) == y, 0.2, 1.0)
    assert 20 <= (weight < 1).sum() < 40
    loss = Reweighted(SimpleNamespace(chunk_rows=chunk_rows))(branches, y)
    want = (weight * F.cross_entropy(h @ w.T, y, reduction="none")).sum()
    torch.testing.assert_close(loss, want)
    for got, known in zip(torch.autograd.grad(loss, (h, w)), torch.autograd.grad(want, (h, w)),
                          strict=True):
        torch.testing.assert_close(got, known, rtol=1e-4, atol=1e-6)


def test_a_micro_batch_without_loss_tokens_gives_zero_and_gradients_of_zero():
    """Bug: a rank that has no loss token and so no gradient to exchange."""
    [(c, h, w)], y = case(0)
    loss = Focal(CFG)([(c, h, w)], y)
    assert loss == 0 and not torch.autograd.grad(loss, w)[0].any()


def test_the_average_is_that_of_the_weights_after_each_step():
    """Bug: an average that begins at zero, misses a step, or is put in place too early."""
    torch.manual_seed(2)
    p = torch.nn.Parameter(torch.zeros(3))
    opt = torch.optim.AdamW([p], 0.1)
    Averaged(CFG).attach(opt, steps=20)
    mean = None
    for _ in range(20):
        before, p.grad = p.detach().clone(), torch.randn(3)
        twin = torch.nn.Parameter(before)
        alone = torch.optim.AdamW([twin], 0.1)
        alone.load_state_dict(deepcopy(opt.state_dict()))
        twin.grad = p.grad.clone()
        alone.step()
        opt.step()
        after = twin.detach()
        mean = after.clone() if mean is None else 0.8 * mean + 0.2 * after
    torch.testing.assert_close(p.detach(), mean)


def test_an_interrupted_average_goes_on_to_the_same_bits(run, trained, monkeypatch):
    """Bug: an average that a crash loses and that begins anew at the resumption."""
    flags = (*from_m1(trained), *RATES, "--gap", "none", "--arm", "averaged", "--save-every", "1")
    whole = run("--name", "a", *flags)
    real, seen = train_wmss.lr_at, []

    def lr_at(step, *args):
        seen.append(step)
        if len(seen) == 3:
            raise Crash
        return real(step, *args)

    with monkeypatch.context() as m:
        m.setattr(train_wmss, "lr_at", lr_at)
        with pytest.raises(Crash):
            run("--name", "b", *flags)
    assert same(run("--name", "b", *flags, "--resume") / "averaged.pt", whole / "averaged.pt")


def test_the_teacher_of_the_distilled_arm_is_m1_and_not_the_weak_model(run, trained, monkeypatch):
    """Bug: an arm that asks what M1 gives as a teacher, taught by M0."""
    teachers, real = [], train_wmss.train

    def spy(*args, weak=None, **kw):
        teachers.append(weak)
        return real(*args, weak=weak, **kw)

    monkeypatch.setattr(train_wmss, "train", spy)
    run("--name", "a", *from_m1(trained), *RATES, "--gap", "none", "--arm", "distilled")
    m1 = load_checkpoint(trained / "sft.pt")[0].state_dict()
    assert all(torch.equal(t, m1[name]) for name, t in teachers[0].state_dict().items())
    assert ARMS["distilled"].weak == "itself"

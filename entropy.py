"""Entropy dynamics: where did uncertainty move between a weak snapshot and the
live model?

The entropies of both models' predictions on exactly the loss tokens of training
(paper v2, section 3.2 and eq. 7), and from them one sampling weight for each
sample and one gap code for each token: settled, consolidating, regressing or
hard.

    python entropy.py --weak out/toy/base.pt --live out/toy/sft.pt   # a table
    python entropy.py --weak out/toy/base.pt --live out/toy/sft.pt --show 3

Shapes: N samples, M loss tokens of all samples together, C width, V vocabulary.
Entropies are in nats.
"""

import plumbing  # noqa: F401  (how threads wait; before torch)

# isort: split

from dataclasses import asdict, dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data import Sample, micro_batches
from model import GPT, load_checkpoint, read_config
from plumbing.bar import bar
from plumbing.checks import check_gaps, entropy_flags, read_gaps, settings_of
from plumbing.cli import program
from plumbing.devices import pick
from plumbing.files import write_atomically, write_text
from plumbing.loss import chunk_of, tiles
from plumbing.report import gap_table, show_samples, token_page
from plumbing.tasks import tokenizer_of, training_set
from plumbing.tokenizer import fingerprint


@torch.no_grad()
def token_entropy(hidden: Tensor, weight: Tensor, chunk_rows: int | None = None):
    """Entropy of softmax(hidden @ weight.T) in nats for each row, paper v2 eq. 7.

    hidden (..., C), weight (V, C) -> hidden.shape[:-1]. At most chunk_rows * V logits exist at a
    time (default: 128 MB of them). Half precision is raised to fp32 before the head, also under
    autocast: a logit rounded to bf16 moves the entropy by more than a gap is wide.

    H = log sum e^z - sum softmax(z) z, with z shifted so that its largest is 0. Both terms are then
    at least 0, and a distribution that is almost certain keeps its tiny entropy; log(p + eps) would
    report eps instead. The sums run over tiles of the vocabulary, and are rescaled whenever a tile
    brings a new maximum: logits that stay in the cache make this cost 3 % more than the matrix
    product alone (CPU, V 49,152; all of V at once: 20 % more).

    >>> token_entropy(torch.zeros(1, 8), torch.ones(4, 8)).exp()
    tensor([4.])
    """
    rows = hidden.reshape(-1, hidden.size(-1))                      # (n, C)
    exact = torch.promote_types(hidden.dtype, torch.float32)        # float64 stays float64
    weight = weight.to(exact)
    out = []
    with torch.autocast(hidden.device.type, enabled=False):
        for h in rows.split(chunk_rows or chunk_of(len(weight))):
            top = total = dot = None        # so far: max z, sum e^(z-top), sum e^(z-top) (z-top)
            for w in tiles(weight):
                z = F.linear(h.to(exact), w)                        # (chunk, tile)
                high = z.amax(-1, keepdim=True)
                if top is not None:
                    high = torch.maximum(high, top)
                z = z.sub_(high).clamp_(min=-1e4)                   # or 0 * -inf would be NaN
                p = z.exp()
                new_total = p.sum(-1, keepdim=True)
                new_dot = p.mul_(z).sum(-1, keepdim=True)
                if top is not None:
                    fall = (top - high).clamp_(min=-1e4)    # old terms: z - high = z - top + fall
                    new_dot = new_dot + (dot + total * fall) * fall.exp()
                    new_total = new_total + total * fall.exp()
                top, total, dot = high, new_total, new_dot
            out.append((total.log() - dot / total)[:, 0])
    return torch.cat(out).reshape(hidden.shape[:-1]) if out else hidden.new_zeros(hidden.shape[:-1])


def _share(term):
    """A term divided by its sum; where it is 0 everywhere there is nothing to share out."""
    return term / term.sum() if term.sum() > 0 else term


def weights_code(w: Tensor, s: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """The released code: terms that are not 0 share the mass as alpha : beta : gamma."""
    consolidating, regressing = (w - s).clamp_min(0), (s - w).clamp_min(0)
    return alpha * _share(w) + beta * _share(consolidating) + gamma * _share(regressing)


def weights_v1(w: Tensor, s: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """Version 1 of the paper: base difficulty, consolidation and regression repair, in nats."""
    return alpha * w + beta * (w - s).clamp_min(0) + gamma * (s - w).clamp_min(0)


def weights_v2(w: Tensor, s: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """Version 2: alpha weighs consolidation, beta the live entropy: near uncertainty sampling."""
    return alpha * (w - s).clamp_min(0) + beta * s + gamma * (s - w).clamp_min(0)


# a formula of your own: (ent_weak, ent_live, alpha, beta, gamma) -> weights >= 0; add its name here
WEIGHTS = {"code": weights_code, "v1": weights_v1, "v2": weights_v2}


def gap_weights(ent_weak: Tensor, ent_live: Tensor, alpha: float = 0.1,
                beta: float = 0.8, gamma: float = 0.1, kind: str = "code") -> Tensor:
    """Sampling weights from the samples' mean entropies -> (N,) float64, sums to 1.

    ent_weak, ent_live (N,) in nats. kind: one of WEIGHTS, the three published readings of
    (alpha, beta, gamma). Where all terms are 0 there is no gap to prefer: the weights are uniform.
    Raises ValueError on shapes that differ, values that are no entropies, negative shares.

    >>> gap_weights(torch.tensor([1., 1.]), torch.tensor([0., 1.5])).numpy().round(6).tolist()
    [0.85, 0.15]
    """
    w, s = ent_weak.double(), ent_live.double()
    if w.shape != s.shape or w.dim() != 1:
        raise ValueError("gap_weights: expected two vectors of one length, found "
                         f"{tuple(w.shape)} and {tuple(s.shape)}")
    both = torch.cat([w, s])
    if not (torch.isfinite(both).all() and (both >= 0).all()):
        raise ValueError("gap_weights: entropies must be finite and >= 0; a NaN here means that a "
                         "checkpoint has diverged")
    if not (alpha >= 0 and beta >= 0 and gamma >= 0):
        raise ValueError("gap_weights: alpha, beta, gamma must be >= 0, found "
                         f"{alpha}, {beta}, {gamma}")
    if kind not in WEIGHTS:
        raise ValueError(f"gap_weights: unknown kind {kind!r}; expected {', '.join(WEIGHTS)}")
    out = WEIGHTS[kind](w, s, alpha, beta, gamma)
    return out / out.sum() if out.sum() > 0 else torch.full_like(out, 1 / len(out))


def gap_mask(ent_weak: Tensor, ent_live: Tensor, tau: float = 0.0,
             h: float = 0.0) -> Tensor:
    """Gap code of each token -> uint8, 0 to 3; the gap mask is code > 0.

    1 consolidating: the live model is surer than the weak one by more than tau. 2 regressing: less
    sure by more than tau. 3 hard: neither, and the weak model's entropy is above h. 0 settled: the
    rest. ent_weak, ent_live: any one shape, nats; tau, h >= 0 in nats. With tau = h = 0 every token
    that has any entropy is in the mask, which is the paper.

    >>> weak, live = torch.tensor([.1, 2., .1, 2.]), torch.tensor([.1, 1., 1., 2.])
    >>> gap_mask(weak, live, tau=.5, h=1.).tolist()
    [0, 1, 2, 3]
    """
    if not (tau >= 0 and h >= 0):
        raise ValueError(f"gap_mask: tau and h must be >= 0 nats, found {tau} and {h}")
    if ent_weak.shape != ent_live.shape or (ent_live - ent_weak).isnan().any():
        raise ValueError("gap_mask: expected entropies of one shape without NaN, found "
                         f"{tuple(ent_weak.shape)} and {tuple(ent_live.shape)}")
    d_ent = ent_live - ent_weak
    code = torch.zeros_like(d_ent, dtype=torch.uint8)
    code[(d_ent.abs() <= tau) & (ent_weak > h)] = 3
    code[d_ent < -tau] = 1
    code[d_ent > tau] = 2
    return code


@dataclass
class Gaps:
    """The entropies of both models on every loss token, and what follows from them.

    The tokens of sample n are offsets[n]:offsets[n + 1] of the flat vectors of length M.
    """
    ids: Tensor               # (N,) the samples' ids
    offsets: Tensor           # (N + 1,)
    ent_weak: Tensor          # (M,) nats
    ent_live: Tensor          # (M,) nats
    mean_weak: Tensor         # (N,) float64, nats per token
    mean_live: Tensor         # (N,)
    codes: Tensor = None      # (M,) uint8, see gap_mask
    weights: Tensor = None    # (N,) float64, see gap_weights
    settings: dict = field(default_factory=dict)
    flops: float = 0.0              # what measuring cost
    seconds: float = 0.0
    commit: str = ""
    weak: str = ""                  # the two checkpoints, and the fingerprint of their tokenizer
    live: str = ""
    tokenizer: str = ""

    def save(self, path: str):
        write_atomically(path, lambda f: torch.save(asdict(self), f))

    @classmethod
    def load(cls, path: str, samples: list[Sample], weak: str, live: str, tokenizer: str):
        """Read what save() wrote; ValueError unless it was made for these samples and models."""
        gaps = read_gaps(path, cls)
        check_gaps(path, gaps, samples, (weak, live, tokenizer))
        return gaps

    def of_sample(self, i: int, name: str) -> Tensor:
        """The part of a flat vector that belongs to sample i."""
        return getattr(self, name)[self.offsets[i]:self.offsets[i + 1]]

    def codes_of(self, ids: Tensor) -> Tensor:
        """Codes of a batch's loss tokens, row by row as hidden[loss_mask] has them -> (n,) uint8.

        ids (B,): sample ids, which number the rows 0..N-1; -1 is a row without loss.
        """
        rows = [self.of_sample(i, "codes") if i >= 0 else self.codes[:0] for i in ids.tolist()]
        return torch.cat(rows)


@torch.no_grad()
def measure(weak: GPT, live: GPT, samples: list[Sample], micro_batch: int = 64,
            chunk_rows: int | None = None, rank: int = 0, world: int = 1,
            tokens_per_batch: int = 0) -> Gaps:
    """Token entropies of both models over the samples, teacher-forced, in fp32.

    Positions are the loss positions of training, found by the same collate(). Each rank measures
    its share; all ranks return the whole. Raises ValueError where a sample has no loss token.
    """
    n_loss = {s.id: int(s.loss[1:].sum()) for s in samples}
    for i, n in n_loss.items():
        if n == 0:
            raise ValueError(f"entropy: sample {i} has no loss token; expected a completion in "
                             "every sample")
    device = next(live.parameters()).device
    found = {}                                              # id -> entropies of its loss tokens
    batches = micro_batches(samples, micro_batch, rank, world, tokens_per_batch)
    for batch in bar(batches, "entropies", "batch"):
        b = batch.to(device)
        counts = [n_loss.get(i, 0) for i in batch.ids.tolist()]     # a row without loss is id -1
        by_model = []
        for model in (weak, live):
            ent = token_entropy(model(b.x)[b.loss_mask], model.lm_head.weight, chunk_rows)
            by_model.append(ent.cpu().split(counts))
        found.update(zip(batch.ids.tolist(), zip(*by_model, strict=True), strict=True))
    if world > 1:
        shares = [None] * world
        dist.all_gather_object(shares, found)
        found = {k: v for share in shares for k, v in share.items()}
    ent_weak, ent_live = zip(*[found[s.id] for s in samples], strict=True)
    lengths = [0] + [len(ent) for ent in ent_weak]
    return Gaps(ids=torch.tensor([s.id for s in samples]), offsets=torch.tensor(lengths).cumsum(0),
                ent_weak=torch.cat(ent_weak), ent_live=torch.cat(ent_live),
                mean_weak=torch.stack([ent.double().mean() for ent in ent_weak]),
                mean_live=torch.stack([ent.double().mean() for ent in ent_live]))


def find_gaps(weak: GPT, live: GPT, samples: list[Sample], *, tau: float, h: float, alpha: float,
              beta: float, gamma: float, kind: str, **how) -> Gaps:
    """measure(), and from it the gap codes of all tokens and the weights of all samples."""
    gaps = measure(weak, live, samples, **how)
    gaps.codes = gap_mask(gaps.ent_weak, gaps.ent_live, tau, h)
    gaps.weights = gap_weights(gaps.mean_weak, gaps.mean_live, alpha, beta, gamma, kind)
    gaps.settings = dict(tau=tau, h=h, alpha=alpha, beta=beta, gamma=gamma, kind=kind)
    return gaps


def check_pair(weak_path: str, live_path: str, tokenizer: str):
    """(GPTConfig, meta) of the live checkpoint, if logits of the two can be compared and mixed.

    That takes one tokenizer and one vocabulary, and no more: the weak model may have another size.
    Reads no weights; raises ValueError.
    """
    (weak, _), (live, meta) = read_config(weak_path, tokenizer), read_config(live_path, tokenizer)
    if weak.vocab_size != live.vocab_size:
        raise ValueError(f"{weak_path} and {live_path} have vocabularies of {weak.vocab_size:,} "
                         f"and {live.vocab_size:,} logits; mixing needs one and the same")
    return live, meta


def load_pair(weak_path: str, live_path: str, tokenizer: str, device: str = "cpu"):
    """-> (weak model, live model, meta of the live one); what check_pair refuses is refused."""
    check_pair(weak_path, live_path, tokenizer)
    weak, _ = load_checkpoint(weak_path, device, tokenizer)
    return weak, *load_checkpoint(live_path, device, tokenizer)


@program("entropy")
def main(argv: list[str] | None = None):
    args = entropy_flags(__doc__, WEIGHTS, argv)
    device, (_, meta) = pick(args.device), read_config(args.live)
    enc, cfg = tokenizer_of(meta), settings_of(args, meta)
    check_pair(args.weak, args.live, fingerprint(enc))
    samples = training_set(cfg, enc)                # before the weights: it may refuse a row
    weak, live, _ = load_pair(args.weak, args.live, fingerprint(enc), device)
    gaps = find_gaps(weak, live, samples, tau=cfg["tau"], h=cfg["h"], alpha=cfg["alpha"],
                     beta=cfg["beta"], gamma=cfg["gamma"], kind=cfg["weights"],
                     tokens_per_batch=cfg.get("tokens_per_batch", 0))
    print(gap_table(gaps, samples))
    if args.show:
        print("\n" + show_samples(gaps, samples, enc, args.show))
    if args.report:
        gaps.weak, gaps.live = args.weak, args.live
        write_text(args.report, token_page(gaps, samples, enc, weak, live, cfg["lam"]))


if __name__ == "__main__":
    main()

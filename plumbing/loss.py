"""Cross-entropy of mixed logits without ever storing them: the one loss of this project.

At a vocabulary of 151,936 and 4,096 tokens a matrix of logits takes 2.5 GB in fp32, and a loss by
the book holds several. Here the logits exist for some rows at a time, and their gradient is
computed in the same pass: 1/8 of the memory, and no product is computed twice.

Shapes: N rows (tokens that carry loss), C width, V vocabulary.
"""

import torch


def tiles(t, dim=0):
    """`t` cut along the vocabulary into parts that stay in a CPU's cache; on a GPU `t` as a whole.

    A product with the whole matrix would first copy it, and what follows would fetch the logits
    from memory (V 49,152, 32 rows: a product takes 27 ms instead of 36).
    """
    return t.split(1024, dim) if t.device.type == "cpu" else (t,)


def chunk_of(vocab_size):
    """How many rows' logits fill 128 MB in fp32: what losses and entropies hold at a time.

    >>> chunk_of(151936)
    220
    """
    return max(1, 2 ** 25 // vocab_size)


def linear_cross_entropy(branches, y, chunk_rows=None, smoothing=0.0, permute=None):
    """Sum over N rows of CE(softmax(z), y) in nats, with z = sum over branches of c * h @ W.T.

    With one branch (1, h, W) this is the loss of ordinary training; with the branches
    (lam, h_strong, W_strong) and (1 - lam, h_weak, W_weak) it is the loss on mixed logits of the
    paper (v2, eq. 5 and 6). It is a sum, not a mean: the caller divides by the number of loss
    tokens of the whole step, so that the value depends on neither micro-batches nor ranks.

    branches: list of (coefficient, hidden, weight); coefficient a number or (N,), hidden (N, C),
        weight (V, C). Gradients flow to every hidden and weight that requires them.
    y: targets (N,), long. No rows give 0.
    chunk_rows: rows whose logits exist at a time; None: as many as fill 128 MB.
    smoothing: this share of the target is spread over all V tokens alike (Szegedy et al. 2016).
    permute: None, or a function (z (n, V), rows: slice) -> (permuted z, source) that is applied to
        the last branch's logits, permuted[i, k] = z[i, source[i, k]] (see controls.permute_logits).
    Raises ValueError on shapes that do not fit. One backward per call.

    With one target of 3 and all logits equal the loss is log 3:

    >>> h, W = torch.zeros(1, 2), torch.ones(3, 2)
    >>> linear_cross_entropy([(0.5, h, W), (0.5, h, W)], torch.tensor([1])).exp()
    tensor(3.)
    """
    if chunk_rows is None:
        chunk_rows = chunk_of(len(branches[0][2]))
    coefficients = []
    tensors = []
    for c, h, w in branches:
        per_row = isinstance(c, torch.Tensor) and c.dim() > 0
        if h.shape[:-1] != y.shape or y.dim() != 1 or (per_row and c.shape != y.shape):
            raise ValueError(
                "linear_cross_entropy: expected y (N,), hidden (N, C) and a coefficient that is a "
                f"number or (N,); found {tuple(y.shape)}, {tuple(h.shape)}, "
                f"{tuple(c.shape) if per_row else c}")
        coefficients.append(c[:, None] if per_row else float(c))
        tensors += [h, w]
    if chunk_rows < 1:
        raise ValueError(f"linear_cross_entropy: expected chunk_rows >= 1, found {chunk_rows}")
    return _LinearCrossEntropy.apply(y, chunk_rows, coefficients, smoothing, permute, *tensors)


class Control:
    """Plain cross-entropy: what a subclass changes of it is its control."""

    def __init__(self, cfg):
        self.cfg, self.chunk_rows = cfg, cfg.chunk_rows or None

    def __call__(self, branches, y):
        return linear_cross_entropy(branches, y, self.chunk_rows)


class _LinearCrossEntropy(torch.autograd.Function):
    """linear_cross_entropy, chunk_rows rows at a time; the gradients come in the same pass.

    A chunk's logits give its loss and, overwritten in place, its gradient g = softmax(z) -
    onehot(y). So nothing of size V is kept for backward or computed twice: three matrix products
    per branch, as in the naive form, instead of the four that recomputing the chunks would cost.
    What stays is one gradient of the size of each input.
    """

    @staticmethod
    def forward(ctx, targets, chunk_rows, coefficients, smoothing, permute, *tensors):
        hidden, weight = tensors[::2], tensors[1::2]
        device = hidden[0].device.type
        dtype = hidden[0].dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        half = dtype in (torch.bfloat16, torch.float16)
        exact = torch.float32 if half else dtype          # of softmax and sums: fp32 or better
        grads = [torch.zeros_like(t) if needed else None
                 for t, needed in zip(tensors, ctx.needs_input_grad[5:], strict=True)]
        wanted = any(g is not None for g in grads)
        loss = torch.zeros((), dtype=exact, device=targets.device)
        with torch.autocast(device, enabled=False):
            # the coefficient goes to the hidden states: N * C products, not N * V after the head
            scaled = [(c * h).to(dtype) for c, h in zip(coefficients, hidden, strict=True)]
            heads = [w.to(dtype) for w in weight]
            n = min(chunk_rows, len(targets))
            logits = torch.empty(n, len(heads[0]), dtype=exact, device=targets.device)
            for i in range(0, len(targets), chunk_rows):
                rows = slice(i, i + chunk_rows)
                y = targets[rows, None]
                z = logits[:len(y)]                       # (chunk, V): one buffer for all chunks
                source = None
                _mix([h[rows] for h in scaled], heads if permute is None else heads[:-1], z)
                if permute is not None:
                    moved, source = permute(scaled[-1][rows] @ heads[-1].T, rows)
                    z.add_(moved)
                chunk_loss, g = _loss_and_gradient(z, y, smoothing, wanted)
                loss += chunk_loss
                if not wanted:
                    continue
                g = g.to(dtype)
                for b, c in enumerate(coefficients):
                    if b > 0 and source is not None:      # back to where the values came from
                        g = torch.empty_like(g).scatter_(-1, source, g)
                    grad_h, grad_w = grads[2 * b:2 * b + 2]
                    if grad_h is not None:                # dL/dh = c g W
                        c_rows = c[rows] if isinstance(c, torch.Tensor) else c
                        grad_h[rows] = (c_rows * (g @ heads[b])).to(grad_h.dtype)
                    if grad_w is None:
                        continue
                    if grad_w.dtype == dtype:             # dL/dW = g^T (c h)
                        grad_w.addmm_(g.T, scaled[b][rows])
                    else:
                        grad_w += g.T @ scaled[b][rows]
        ctx.grads = grads
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable          # a second derivative is an error, not 0
    def backward(ctx, grad_loss):
        grads, ctx.grads = ctx.grads, None                # handed on, not copied: large as a model
        if grads is None:
            raise RuntimeError("linear_cross_entropy: second backward through one loss; "
                               "its gradients were already handed on")
        return None, None, None, None, None, *(g if g is None else g.mul_(grad_loss) for g in grads)


def _mix(hidden, heads, out):
    """out (n, V) = sum over branches of h @ W.T, part by part of the vocabulary."""
    for part, *ws in zip(tiles(out, 1), *map(tiles, heads), strict=True):
        tile = hidden[0] @ ws[0].T
        others = list(zip(hidden[1:], ws[1:], strict=False))
        if tile.dtype == out.dtype:                       # summed in the cache, then stored
            for h, w in others:
                tile.addmm_(h, w.T)
            part.copy_(tile)
        else:                                             # products in bf16, their sum in fp32
            part.copy_(tile)
            for h, w in others:
                part.add_(h @ w.T)


def _loss_and_gradient(z, y, smoothing, wanted):
    """Summed cross-entropy of logits z (n, V) and targets y (n, 1), and g = P - target, in place.

    g is None unless it is wanted; z is overwritten by P or by g.
    """
    top = z.amax(-1, keepdim=True)
    of_y = z.gather(-1, y)
    if smoothing:                                         # the target is (1 - eps) e_y + eps / V
        of_y = (1 - smoothing) * of_y + smoothing * z.mean(-1, keepdim=True)
    p = torch.softmax(z, -1, out=z)                       # P in place: one pass, not six
    loss = (top - p.amax(-1, keepdim=True).log() - of_y).sum()   # log sum e^z = max z - log max P
    if not wanted:
        return loss, None
    if smoothing:
        p = p.sub_(smoothing / p.size(-1))
    return loss, p.scatter_add_(-1, y, torch.full_like(y, smoothing - 1, dtype=z.dtype))

"""Expectation-maximisation contrastive learning of Jin et al. (EMCL, NeurIPS 2022): embeddings rebuilt from few bases.

E (b, n): all text and video embeddings of a call, one per row, n channels. The data points of the EM algorithm are the
n channels, each a vector of b numbers, so a result depends on the other embeddings of the call.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = 1e-6  # ε of the paper's code
TILE = 1 << 17  # responsibilities that `similarity` computes at once for each thread: they stay in a cache
GPU_TILE = 1 << 26  # on a GPU


class EMCL(nn.Module):
    """β Ê + E, where Ê is E rebuilt from `bases` vectors (section 3.2). As a training layer both embeddings of a batch,
    stacked, go through it before the contrastive loss; `similarity` applies it to those of any trained model.

    bases K, stages, temperature λ, beta β: EMCL-Net's by default; the inference module on CLIP2Video has K 7, 10
        stages, λ 0.1, β 4. λ divides dot products of basis and channel: it must fit the length of the embeddings. With
        unit rows and λ = 1 the responsibilities are nearly uniform, and all bases become one whatever the start.
    momentum m: in training mode the start of the next call is m × start + (1 - m) × mean over rows of the bases.
    released: step for step as the public code, which differs from the paper. Its responsibilities are normalised over
        the channels before they rebuild Ê, which makes Ê smaller by about n / K, so the two forms need different β.
        Its start is ±1 up to 1e-6, so the K bases are only two, unless many stages at a low temperature amplify the
        difference.

    Ours starts from K different numbers. The means of a call's bases are nearly equal, so the momentum update alone
    would pull all starts to one number; they are scaled back to mean 0 and the deviation that they were drawn with.
    Both starts are constant over the rows, hence a permutation of the rows of E permutes those of the result, and
    likewise for channels. Both are saved in state_dict, so that a run can be read back; the public code saves none.
    """

    def __init__(
        self,
        bases: int = 32,
        stages: int = 9,
        temperature: float = 1.0,
        beta: float = 3.0,
        momentum: float = 0.9,
        released: bool = False,
    ):
        super().__init__()
        if min(bases, stages) < 1 or temperature <= 0 or not 0 <= momentum <= 1:
            raise ValueError(
                f"bases={bases}, stages={stages}, temperature={temperature}, momentum={momentum}; wanted bases and "
                "stages of at least 1, a positive temperature, a momentum from 0 to 1"
            )
        self.stages, self.temperature, self.beta = stages, temperature, beta
        self.momentum, self.released = momentum, released
        start = torch.randn(1, bases) * math.sqrt(2 / bases)
        if released:
            start = start / (TINY + start.norm(dim=0))  # the norm of a column of one number: its absolute value
        self.register_buffer("start", start)  # (1, K)

    @torch.no_grad()
    def fit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """EM on the channels of x (b, n) → bases (b, K) of unit length, responsibilities (n, K) of the last E-step.
        Leading dimensions are separate calls."""
        bases = self.start.to(x.dtype).expand(*x.shape[:-1], -1)
        for _ in range(self.stages):
            z = (bases.mT @ x / self.temperature).softmax(dim=-2)  # (K, n), a fast layout where K is small
            total = TINY + z.sum(dim=-1, keepdim=True)
            if self.released:
                z = z / total
                bases = x @ z.mT
                bases = bases / (TINY + bases.norm(dim=-2, keepdim=True))
            else:
                bases = F.normalize(x @ z.mT / total.mT, dim=-2)
        return bases, z.mT

    def forward(self, embeddings: Tensor) -> Tensor:
        """E (b, n) → β Ê + E (b, n). The gradient is that of the summand E alone: the EM result counts as constant. In
        training mode the start of the next call moves. ValueError for another number of dimensions or no rows."""
        if embeddings.dim() != 2 or not embeddings.numel():
            raise ValueError(f"EMCL takes embeddings of shape (rows, channels), got {tuple(embeddings.shape)}")
        rebuilt, bases = self.reconstruct(embeddings)
        if self.training:
            mean = bases.mean(dim=0, keepdim=True).to(self.start.dtype)
            start = self.momentum * self.start + (1 - self.momentum) * mean
            if not self.released and start.numel() > 1:
                start = start - start.mean()
                start = start / start.std().clamp(min=TINY) * math.sqrt(2 / start.numel())
            self.start.copy_(start)
        return self.beta * rebuilt + embeddings

    def reconstruct(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Ê (..., b, n) and its bases (..., b, K), without gradient; leading dimensions are separate calls."""
        with torch.autocast(embeddings.device.type, enabled=False):
            x = embeddings.detach()
            bases, z = self.fit(x if x.dtype == torch.float64 else x.float())
            return (bases @ z.mT).to(embeddings.dtype), bases


@torch.no_grad()
def similarity(
    text: Tensor,
    video: Tensor,
    module: EMCL,
    block: int | None = 32,
    unit: bool = True,
    score: str = "cosine",
    seed: int | None = None,
) -> Tensor:
    """Scores of text (Q, n) and video (C, n) after EMCL → (Q, C). The module's start does not change.

    block: number of captions and of clips in one call. The scores of block × block pairs come from one call on those
        embeddings alone, as in the public code (32), so a score depends on the block and on the order of the rows;
        report it with the result. None: one call on everything, which depends on neither.
    unit: normalise rows to unit length first, as the public inference module does. False: as they are, for a model that
        was trained with the layer.
    score: "cosine", or "dot" as in the public inference module, which favours long rows.
    seed: shuffles the rows before they are cut into blocks. None: in the order given; captions of one clip that follow
        each other then share blocks, which reveals that they belong together: information a real query lacks.
    ValueError for an unknown score, and for a block below 1.
    """
    if score not in ("cosine", "dot"):
        raise ValueError(f"score={score!r}; wanted 'cosine' or 'dot'")
    if block is not None and block < 1:
        raise ValueError(f"block={block}; wanted at least 1, or None for all at once")
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        t, v = (torch.randperm(len(x), generator=generator).to(x.device) for x in (text, video))
        shuffled = similarity(text[t], video[v], module, block, unit, score)
        return torch.empty_like(shuffled).index_put_((t[:, None], v), shuffled)
    sizes = [max(1, min(block or len(x), len(x))) for x in (text, video)]  # of a block
    device, n = text.device, text.shape[1]
    numbers = GPU_TILE if device.type == "cuda" else TILE * torch.get_num_threads()
    each = max(module.start.numel() * n, math.prod(sizes))
    side = max(1, math.isqrt(numbers // each))  # blocks of captions and of clips in a tile
    dtype = torch.float64 if text.dtype == torch.float64 else torch.float32
    scores = text.new_empty(len(text), len(video))
    with torch.autocast(device.type, enabled=False):
        texts, videos = (_blocks(F.normalize(x, dim=1) if unit else x, k, dtype) for x, k in zip((text, video), sizes))
        for i in range(0, len(texts), side):
            for j in range(0, len(videos), side):
                tile = _scores(texts[i : i + side], videos[j : j + side], module, score)
                part = scores[i * sizes[0] :, j * sizes[1] :][: len(tile), : tile.shape[1]]
                part.copy_(tile[: len(part), : part.shape[1]])
    return scores


def _blocks(x: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Rows (R, n) as blocks (R / size, size, n), the last one filled up with rows of zeros, which change no result."""
    return F.pad(x.to(dtype), (0, 0, 0, -len(x) % size)).reshape(-1, size, x.shape[1])


def _scores(text: Tensor, video: Tensor, module: EMCL, score: str) -> Tensor:
    """Scores of T blocks of captions (T, a, n) and V blocks of clips (V, b, n), each pair of blocks a call of its own →
    (T a, V b). The same as `EMCL.reconstruct` on each pair, in an order of sums that makes few large products of it.

    With P = x zᵀ for the last responsibilities z (K, n), the bases are P c, where c is one number for each basis, and
    β Ê + E is β P c z + x. The dot products of its rows are thus P M Pᵀ + x xᵀ, where M = β² c z zᵀ c + 2 β c is only
    (K, K).
    """
    (t, a, n), (v, b, _), k = text.shape, video.shape, module.start.numel()
    start = module.start.to(text).mT
    logits = start / module.temperature * (text.sum(1)[:, None, None] + video.sum(1)[:, None])  # (T, V, K, n)
    for stage in range(module.stages):
        z = logits.softmax(dim=2)
        p_text = (z.reshape(t, v * k, n) @ text.mT).reshape(t, v, k, a)
        p_video = (z.transpose(0, 1).reshape(v, t * k, n) @ video.mT).reshape(v, t, k, b)
        length = (p_text.square().sum(-1) + p_video.square().sum(-1).transpose(0, 1)).sqrt()  # (T, V, K)
        if module.released:
            total = TINY + z.sum(-1)
            c = 1 / (TINY * total + length)
        else:
            c = 1 / length.clamp(min=TINY * TINY)
        if stage + 1 < module.stages:
            of_text = (p_text * c[..., None] / module.temperature).reshape(t, v * k, a)
            of_video = (p_video * c.transpose(0, 1)[..., None] / module.temperature).reshape(v, t * k, b)
            logits = (of_text @ text).reshape(t, v, k, n)
            logits += (of_video @ video).reshape(v, t, k, n).transpose(0, 1)
    weight = module.beta / total if module.released else torch.full_like(c, module.beta)
    inner = (z @ z.mT) * (weight * c)[..., None] * (weight * c)[..., None, :] + torch.diag_embed(2 * weight * c)
    p_video = p_video.transpose(0, 1)  # (T, V, K, b)
    left = p_text.mT @ inner  # (T, V, a, K)
    products = left @ p_video + (text.reshape(-1, n) @ video.reshape(-1, n).T).reshape(t, a, v, b).transpose(1, 2)
    if score == "cosine":
        of_text = (left * p_text.mT).sum(-1) + text.square().sum(-1)[:, None]  # (T, V, a), squared lengths
        of_video = ((inner @ p_video) * p_video).sum(-2) + video.square().sum(-1)  # (T, V, b)
        lengths = of_text.clamp(min=0).sqrt()[..., None] * of_video.clamp(min=0).sqrt()[..., None, :]
        products = products / lengths.clamp(min=TINY * TINY)
    return products.transpose(1, 2).reshape(t * a, v * b)


def effective_rank(x: Tensor) -> float:
    """exp of the entropy of the singular values of x (rows, columns), normalised to sum 1 (Roy & Vetterli, EUSIPCO
    2007): from 1 for parallel rows to min(rows, columns) for equal singular values. ValueError for a matrix that is
    zero, empty or not finite."""
    if not x.any() or not x.isfinite().all():
        raise ValueError("effective_rank of a matrix that is zero, empty or not finite")
    values = torch.linalg.svdvals(x.detach().double())
    return torch.special.entr(values / values.sum()).sum().exp().item()

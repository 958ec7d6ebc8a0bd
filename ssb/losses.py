"""The objectives of Patrick et al. (2021): contrastive losses, support-set weights, cross-captioning.

text and video are the joint embeddings c_t and c_v, (B, d), row i of both from pair i. They need not be normalised:
s(a, b) is always the cosine similarity.
"""

import functools
import importlib
import inspect
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssb import machine, processes, s2dtw
from ssb.config import OBJECTIVES, Config, ConfigError, located

CONSTANT = 1e-5  # share of its mean below which the deviation of a feature is no more than the rounding of one number
LARGEST = 128.0  # deviations from the mean that a standardised feature may be; on our corpora it is 113 at most


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """s(a_i, b_j): (A, d), (B, d) → (A, B) in [-1, 1]."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def dot_product(a: Tensor, b: Tensor) -> Tensor:
    """a_i · b_j: (A, d), (B, d) → (A, B)."""
    return a @ b.T


SIMILARITIES = {"cosine": cosine, "dot product": dot_product}  # that Config.weights_by names


def triplet(
    text: Tensor,
    video: Tensor,
    margin: float | Tensor = 0.2,
    negatives: str | float = "hardest",
    intra: Tensor | None = None,
) -> Tensor:
    """Hinge loss in both directions, mean over the batch (eq. 1).

    text, video: (B, d) embeddings c_t and c_v of the pairs, of any length; row i of the two belongs together.
    margin: α, in units of cosine similarity, or that of each pair of captions, (B, B) and symmetric.
    negatives: "hardest": the hardest other clip (caption) of the batch, as the paper; "mean": the mean over all of
        them; a number h in [0, 1]: (1 - h) × the mean over the violating ones + h × the hardest. A schedule of h from 0
        to 1 begins with many gradients and ends at eq. 1.
    intra: (B, d) embeddings of another caption of each clip; adds the hinge within each modality (Table 2e, "inter and
        intra"): each caption against the other captions, with this one as the positive; each clip against the other
        clips, with itself as the positive because a clip has no second video.
    Returns a scalar; exactly 2 × margin (4 × with intra) means that all embeddings are one point (collapse).
    ValueError for fewer than 2 pairs, and for unknown negatives.
    """
    if len(text) < 2:
        raise ValueError(f"triplet needs at least 2 pairs in a batch, got {len(text)}")
    if negatives not in ("hardest", "mean") and (isinstance(negatives, str) or not 0 <= negatives <= 1):
        raise ValueError(f"negatives={negatives!r}; wanted 'hardest', 'mean' or a number from 0 to 1")
    s = cosine(text, video)  # (B, B)
    own = torch.eye(len(s), dtype=torch.bool, device=s.device)
    # similarity to the positive, and to all: each caption against other clips, each clip against other captions
    parts = [(s.diagonal(), s), (s.diagonal(), s.T)]
    if intra is not None:
        parts += [(F.cosine_similarity(text, intra), cosine(text, text)), (s.new_ones(len(s)), cosine(video, video))]
    loss = s.new_zeros(())
    for positive, scores in parts:
        hinge = (margin - positive[:, None] + scores).clamp(min=0).masked_fill(own, 0)
        hardest = hinge.max(dim=1).values
        if negatives == "hardest":
            loss = loss + hardest.mean()
        elif negatives == "mean":
            loss = loss + (hinge.sum(dim=1) / (len(s) - 1)).mean()
        else:
            violating = hinge.sum(dim=1) / (hinge > 0).sum(dim=1).clamp(min=1)
            loss = loss + ((1 - negatives) * violating + negatives * hardest).mean()
    return loss


def info_nce(text: Tensor, video: Tensor, temperature: float = 0.05, target: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of s / temperature with the own clip (caption) as the class (Table 2e), mean of both
    directions. target: (B, B) probabilities of the classes of each row instead. Returns a scalar."""
    s = cosine(text, video) / temperature
    target = torch.arange(len(s), device=s.device) if target is None else target
    return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2


def caption_similarity(states: Tensor, mask: Tensor) -> Tensor:
    """The cosine of the mean states of captions: (B, L, W) of a frozen text encoder, mask (B, L) → (B, B), float32 or
    better."""
    states = states.to(torch.promote_types(states.dtype, torch.float32)).masked_fill(~mask[..., None], 0)
    means = states.sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return cosine(means, means)


def soft_target(similarity: Tensor, temperature: float, share: float) -> Tensor:
    """(1 - share) × the own class + share × softmax_j(sim_ij / temperature): (B, B) → (B, B), rows of sum 1."""
    own = torch.eye(len(similarity), dtype=similarity.dtype, device=similarity.device)
    return (1 - share) * own + share * (similarity / temperature).softmax(dim=1)


def support_set_weights(
    text: Tensor,
    video: Tensor,
    objective: str = "cross",
    temperature: float = 0.1,
    candidates: Tensor | None = None,
    by: str = "cosine",
) -> Tensor:
    """w_ij = softmax over j in S_i of s(c_t^i, c_v^j) / T (eq. 3): how much of clip j goes into captioning i.

    text (B, d), or other queries in its place; video (S, d), S ≥ B: first the B clips of the batch, then, if any, clips
        of earlier batches.
    objective: "identity" S_i = {i}; "full" S_i = {1..S}; "hybrid" the mean of the two; "cross" all j ≠ i.
    candidates: (B, S) bool, False where clip j may not be in S_i; None: every clip may. The own clip of "identity" and
        "hybrid" is always in.
    by: "cosine", or "dot product" in its place, of embeddings as long as they are.
    Returns (B, S), each row non-negative with sum 1. Gradient flows to both embeddings, except for "identity", which is
    constant: since Ψ' is frozen, this is the only way the captioning loss reaches the pooling heads.
    ValueError for another objective or similarity and, but for `candidates` on a GPU, for an empty support set.
    """
    if objective not in OBJECTIVES[1:]:
        raise ValueError(f"objective={objective!r}; wanted one of {', '.join(OBJECTIVES[1:])}")
    if by not in SIMILARITIES:
        raise ValueError(f"by={by!r}; wanted one of {', '.join(SIMILARITIES)}")
    own = torch.eye(len(text), len(video), dtype=torch.bool, device=text.device)
    if objective == "identity":
        return own.to(text.dtype)
    out = torch.zeros_like(own) if candidates is None else ~candidates
    if objective == "cross":
        out = out | own
    if candidates is None:
        empty = objective == "cross" and len(video) < 2
    else:  # a GPU would be waited for; there the weights of an empty set are NaN
        empty = not machine.on_gpu(out.device) and out.all(dim=1).any()
    if empty:
        raise ValueError(f"objective {objective!r} leaves a support set empty; 'cross' needs at least 2 pairs")
    w = (SIMILARITIES[by](text, video) / temperature).masked_fill(out, -math.inf).softmax(dim=1)
    return (w + own) / 2 if objective == "hybrid" else w


def by_meaning(weights: Tensor, true: Tensor, candidates: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """An oracle in the place of the decoder: the ceiling of what cross-captioning can teach the heads.

    The decoder is to teach them which other clips show what the caption says. Where that is known, these clips are
    captioned from, with equal weights u_ij over the j in S_i that caption i is true of. But such weights do not depend
    on the embeddings: from captioning alone the heads would learn nothing and rank as without it. Therefore they learn
    u itself, by the cross-entropy -Σ_j u_ij log w_ij, whose minimum is w = u, as if the decoder knew the meaning.

    weights (B, S): w of `support_set_weights` with "cross", and its candidates; true (B, S) bool, caption i is true of
    clip j. Returns the weights (B, S) to caption from, u, or w where caption i is true of no member, without gradient;
    and the mean of the cross-entropy over the captions that are true of one, (B,) terms whose sum it is.
    """
    members = true & ~torch.eye(*true.shape, dtype=torch.bool, device=true.device)
    members = members if candidates is None else members & candidates
    count = members.sum(dim=1, keepdim=True)
    u = members / count.clamp(min=1)
    entropy = -(u * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).sum(dim=1)
    return torch.where(count > 0, u, weights).detach(), entropy / (count > 0).sum().clamp(min=1)


def weighted_mean(weights: Tensor, sequences: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """ē_v^i = Σ_j w_ij e_v^j (eq. 3) of sequences of different lengths.

    weights (B, S), sequences (S, M, D), mask (S, M) True at real steps. The mean at a step is over the members that
    have that step, their weights renormalised; a step that no member of positive weight has is masked.
    Returns (B, M, D) and its mask (B, M).
    """
    present = weights @ mask.to(weights.dtype)  # (B, M): the weight of the members that have the step
    total = torch.einsum("bs,smd->bmd", weights, sequences.masked_fill(~mask[..., None], 0))
    some = present > torch.finfo(present.dtype).tiny ** 0.5  # below it the gradient of the division overflows
    return total / present.where(some, torch.ones_like(present))[..., None], some


def share(captioning: Tensor, contrast: Tensor, embeddings: tuple[Tensor, ...]) -> Tensor:
    """Captioning's share of the gradient that reaches the heads: a / (a + b), with a and b the norms of the gradients
    of both terms of eq. 3, each with its factor, with respect to the embeddings (c_t, c_v); a scalar, 0 where neither
    has one. Of several processes both terms are the part of this one. Nothing is changed by it."""
    norms = []
    for term in (captioning, contrast):
        parts = [torch.zeros_like(x) for x in embeddings]
        if term.requires_grad:
            found = torch.autograd.grad(term, embeddings, retain_graph=True, allow_unused=True)
            parts = [zero if part is None else part for part, zero in zip(found, parts)]
        norms.append(processes.total(torch.cat([part.detach().flatten() for part in parts]).float()).norm())
    return norms[0] / (norms[0] + norms[1]).clamp_min(torch.finfo(torch.float32).tiny)


def scale_of(mean, deviation):
    """What to divide each dimension of the features by: its deviation over the training clips; infinity where it is
    constant on them, so that it is 0 on every clip, because nothing can be learnt of it. mean, deviation: (D,) over the
    training clips, arrays or tensors. Returns (D,), of the kind of `deviation`."""
    constant = abs(mean) * CONSTANT >= deviation
    if isinstance(deviation, Tensor):
        return deviation.masked_fill(constant, math.inf)
    return np.where(constant, np.asarray(math.inf, deviation.dtype), deviation)


def standardised(values, mean, scale):
    """Features (…, D) by the mean and `scale_of` of the training clips (D,), at most LARGEST, arrays or tensors: a
    dimension that hardly moves in training may be anything on other clips."""
    return ((values - mean) / scale).clip(-LARGEST, LARGEST)


WITHOUT_GRADIENT = (
    "has no gradient: its value must depend on text (c_t) or video (c_v) through torch operations, without detach(), "
    "item() or numpy()"
)


class Contrast:
    """L_contrast of a Config, a class of `CONTRASTS`, called with the embeddings of a batch.

    paired: row i of text and video is a pair, so captioning knows each caption's own clip. False: only the video of a
        caption is known, so captioning takes clips of other videos.
    intra: accepts the embeddings of another caption of each clip (Config.intra).
    soft: accepts `Config.soft_targets`.
    named: its module and its name are in the Config, so that it can be imported again.
    floor: its value when all embeddings are one point, where it has no gradient; None where it has no such value.
    floor_name: the floor in words.
    """

    paired = True
    intra = False
    soft = False
    named = False
    floor: float | None = None

    def __init__(self, config: Config):
        """ConfigError where the loss does not fit the other settings."""
        self.config = config
        if config.intra and not self.intra:
            raise ConfigError(f"intra = True is a part of the triplet loss; contrast is {config.contrast!r}")
        if config.soft_targets and not self.soft:
            raise ConfigError(f"soft_targets are of 'triplet' and 'info_nce'; contrast is {config.contrast!r}")
        if config.soft_targets and not config.freeze_text:
            raise ConfigError("soft_targets are by the states of a frozen text encoder; set freeze_text = True")

    def __call__(
        self, text: Tensor, video: Tensor, batch, progress: float = 1.0, other: Tensor | None = None
    ) -> Tensor:
        """text, video (B, d), and other (B, d) where `intra`; batch: the `ssb.model.Batch` that they embed; progress:
        share of the training steps done. Returns a scalar."""
        raise NotImplementedError

    @property
    def floor_name(self) -> str:
        """The floor as messages name it, with its value."""
        return f"its floor = {self.floor:g}"

    def advice(self) -> str:
        """What to change where all embeddings have become one point, in a sentence."""
        return f"No gradient separates the clips: take another contrast, or a lower lr = {self.config.lr:g}."

    @property
    def module(self):
        """The module that defines the loss; its source is part of a run's name where it is your own."""
        return inspect.getmodule(type(self))


class Triplet(Contrast):
    """`triplet` (eq. 1) with the negatives of the Config; scheduled ones follow `progress`. With Config.soft_targets s
    the margin of a negative pair is α (1 - s × max(0, similarity of the captions))."""

    intra = soft = True

    def __init__(self, config: Config):
        super().__init__(config)
        if not config.soft_targets:  # with them the margins of a batch depend on its captions
            self.floor = (4 if config.intra else 2) * config.margin

    @property
    def floor_name(self) -> str:
        """The floor as a multiple of the margin."""
        return f"{self.floor / self.config.margin:g} × margin = {self.floor:g}"

    def advice(self) -> str:
        """What to change where hard negatives or captioning have made all embeddings one point."""
        config = self.config
        less = "larger" if config.weighted_term == "contrast" else "smaller"
        less = f"a {less} captioning = {config.captioning:g}, " if config.objective != "none" else ""
        return (
            f"With negatives = {config.negatives!r} no gradient separates the clips: take {less}negatives = 'mean' "
            f"or 'scheduled', contrast = 'info_nce', a pretrained text_encoder, or a lower lr = {config.lr:g}."
        )

    def __call__(self, text, video, batch, progress=1.0, other=None):
        negatives, (begin, end) = self.config.negatives, self.config.schedule
        if negatives == "scheduled":
            negatives = min(max((progress - begin) / max(end - begin, 1e-9), 0.0), 1.0)
        margin, share = self.config.margin, self.config.soft_targets
        if share:  # clips of captions that say the same need not be as far apart
            margin = margin * (1 - share * caption_similarity(batch.text, batch.text_mask).clamp(min=0))
        return triplet(text, video, margin, negatives, other)


class InfoNCE(Contrast):
    """`info_nce` at the temperature of the Config; with its soft_targets towards `soft_target`."""

    soft = True

    def __call__(self, text, video, batch, progress=1.0, other=None):
        temperature, share = self.config.info_nce_temperature, self.config.soft_targets
        if not share:
            return info_nce(text, video, temperature)
        similarity = caption_similarity(batch.text, batch.text_mask)
        return info_nce(text, video, temperature, soft_target(similarity, temperature, share))


class S2DTW(Contrast):
    """`ssb.s2dtw.loss` of VT-TWINS (Ko et al., 2022), on all captions and all clips of each long video."""

    paired = False

    def __init__(self, config: Config):
        super().__init__(config)
        name = f"contrast = {config.contrast!r}"
        if not config.sequences:
            raise ConfigError(f"{name} aligns caption sequences with long videos; set sequences = True")
        if config.objective not in ("none", "full", "cross"):
            raise ConfigError(
                f"objective = {config.objective!r}: with {name} a caption's own clip is not known; take 'none', "
                "'cross' (clips of other videos) or 'full'"
            )

    def __call__(self, text, video, batch, progress=1.0, other=None):
        config = self.config
        text, video = (x.unflatten(0, (batch.stories, -1)) for x in (text, video))  # (videos, of each, d)
        options = {name: getattr(config, f"s2dtw_{name}") for name in ("contrastive", "symmetric", "temperature")}
        return s2dtw.loss(video, text, **options, **alignment_options(config))


class Custom(Contrast):
    """A loss of your own, a function of (text, video) named "package.module:function". ConfigError where it cannot be
    imported, is no such function, or does not give one number."""

    named = True

    def __init__(self, config: Config):
        if ":" not in config.contrast:
            raise ConfigError(_wanted(config.contrast))
        super().__init__(config)
        self.function = _imported(config.contrast)
        _tried(self.function, config.contrast, min(config.batch, 1024), config.dim)

    def __call__(self, text, video, batch, progress=1.0, other=None):
        return _number(self.function(text, video), self.config.contrast)

    @property
    def module(self):
        """The module of the function."""
        return inspect.getmodule(self.function)


def _wanted(name: str) -> str:
    return f"contrast = {name!r}: wanted {', '.join(map(repr, CONTRASTS))} or 'package.module:function'"


def _imported(name: str):
    """The Python function that "package.module:function" names; ConfigError where there is none, or where its module
    cannot be imported."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"{_wanted(name)} ({module!r} is no name of a module)")
    try:
        loaded = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module does
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"{_wanted(name)} ({error})") from None
        raise ConfigError(f"contrast = {name!r}: {module} cannot be imported, {located(error)}") from error
    if not hasattr(loaded, function):
        raise ConfigError(f"{_wanted(name)} ({module} has no {function!r})")
    value = getattr(loaded, function)
    if not inspect.isfunction(value):
        raise ConfigError(f"{_wanted(name)} ({name} is a {type(value).__name__}, not a function written in Python)")
    try:
        inspect.signature(value).bind(None, None)
    except TypeError as error:
        raise ConfigError(f"contrast = {name!r}: wanted a function of (text, video), two tensors ({error})") from None
    return value


@functools.lru_cache(maxsize=8)
def _tried(function, name: str, size: int, dim: int):
    """Call a loss once on random embeddings (size, dim), before anything is trained; ConfigError where it fails."""
    generator = torch.Generator().manual_seed(0)
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"  # where it will be trained
    pair = torch.randn(2, size, dim, generator=generator).to(device).requires_grad_()
    with torch.random.fork_rng():
        try:
            loss = other = function(*pair.unbind())
            if isinstance(loss, Tensor) and not loss.requires_grad:
                other = function(*torch.randn(2, size, dim, generator=generator).to(device))
        except (Exception, SystemExit) as error:  # whatever the function does
            raise ConfigError(f"contrast = {name!r} fails on embeddings {(size, dim)}: {located(error)}") from error
    _number(loss, name)
    if loss.isnan():
        raise ConfigError(f"contrast = {name!r} is NaN on random embeddings {(size, dim)}; look for 0 / 0 in it")
    if _number(other, name).item() != loss.item():  # it depends on the embeddings
        raise ConfigError(f"contrast = {name!r} {WITHOUT_GRADIENT}")


def _number(loss, name: str) -> Tensor:
    """The value of a loss; ConfigError where it is not one number to take the gradient of."""
    if not isinstance(loss, Tensor):
        raise ConfigError(f"contrast = {name!r} gives a {type(loss).__name__}; wanted one number, as a tensor")
    if loss.ndim or not loss.is_floating_point():
        of = f"shape {tuple(loss.shape)} of {str(loss.dtype).removeprefix('torch.')}"
        raise ConfigError(f"contrast = {name!r} gives {of}; wanted one number")
    return loss


CONTRASTS: dict[str, type[Contrast]] = {"triplet": Triplet, "info_nce": InfoNCE, "s2dtw": S2DTW}


def contrast(config: Config) -> Contrast:
    """L_contrast of a Config; ConfigError where its name is unknown or it does not fit the other settings."""
    return CONTRASTS.get(config.contrast, Custom)(config)


def alignment_options(config: Config) -> dict:
    """The arguments of `s2dtw.loss` and `s2dtw.distances` that say how sequences are aligned."""
    return {name: getattr(config, f"s2dtw_{name}") for name in ("gamma", "dummy", "smooth", "shifted")}

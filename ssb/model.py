"""The model of Figure 2: two pooling heads into a joint space, and a decoder that captions from a support set."""

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from ssb import decoder, losses, processes, text
from ssb.config import Config
from ssb.emcl import EMCL

DECODER = ("decoder.", "to_decoder.")  # prefixes of the parameters that only captioning trains


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm over real steps only: padding must not move the statistics. (B, M, d) → (B, M, d), 0 at padding."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, M, d), mask (B, M) → (B, M, d)."""
        padding, values = ~mask[..., None], x.to(self.weight.dtype)
        if self.training:
            n = processes.total(mask.sum().to(values.dtype))
            mean = processes.total(values.masked_fill(padding, 0).sum((0, 1))) / n
            variance = processes.total((values - mean).masked_fill(padding, 0).square().sum((0, 1))) / n
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * n / (n - 1), self.momentum)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = (variance + self.eps).rsqrt() * self.weight
        return ((values - mean) * scale + self.bias).masked_fill(padding, 0).to(x.dtype)


class Convolutions(nn.Module):
    """f on video (section 4.1): a linear layer to d, then 1-D convolutions over time with kernels 2, 3, 4 and 6 side by
    side, d / 4 channels each. (B, M, D) → (B, M, d)."""

    kernels = (2, 3, 4, 6)

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim // 4, k) for k in self.kernels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, M, D), mask (B, M) → (B, M, d)."""
        x = self.linear(x).masked_fill(~mask[..., None], 0).transpose(1, 2)  # (B, d, M)
        parts = [conv(F.pad(x, ((k - 1) // 2, k // 2))) for k, conv in zip(self.kernels, self.convs)]  # (B, d / 4, M)
        return torch.cat(parts, dim=1).transpose(1, 2)


class ConvolutionsInTurn(nn.Module):
    """`Convolutions` with the kernels 2, 3, 4 and 6 one after the other, d channels each. A ReLU stands between them,
    since four linear layers in turn would be one. (B, M, D) → (B, M, d)."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, k) for k in Convolutions.kernels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, M, D), mask (B, M) → (B, M, d)."""
        x = self.linear(x)
        for conv, k in zip(self.convs, Convolutions.kernels):
            x = x if conv is self.convs[0] else x.relu()
            x = x.masked_fill(~mask[..., None], 0).transpose(1, 2)  # no step sees the padding
            x = conv(F.pad(x, ((k - 1) // 2, k // 2))).transpose(1, 2)
        return x


# the convolutions that Config.kernels names
KERNELS: dict[str, type[nn.Module]] = {"side by side": Convolutions, "in turn": ConvolutionsInTurn}


class Recurrence(nn.Module):
    """f on text: a bidirectional GRU, d / 2 channels in each direction. (B, L, D) → (B, L, d)."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.gru = nn.GRU(width, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D), mask (B, L) → (B, L, d)."""
        steps = torch.arange(x.shape[1], device=x.device)
        turned = (mask.sum(1, keepdim=True) - 1 - steps) % x.shape[1]  # the real steps backwards, then the padding
        forwards, backwards = self.gru.all_weights
        ahead = self.one_way(x, forwards)
        back = self.one_way(_rows(x, turned), backwards)
        return torch.cat([ahead, _rows(back, turned)], dim=2).masked_fill(~mask[..., None], 0)

    def one_way(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """The states (B, L, d / 2) of one direction. No real step sees padding, which comes after it; so that, unlike
        with packed sequences, no length is needed on the host."""
        start = x.new_zeros(1, len(x), self.gru.hidden_size)
        return torch.gru(x, start, weights, True, 1, 0.0, self.training, False, True)[0]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B, L, D) with the steps of each row in the order of index (B, L)."""
    return x.gather(1, index[..., None].expand_as(x))


class Linear(nn.Linear):
    """f without a pre-encoder, and of the mean and max heads. (B, M, D) → (B, M, d)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (..., D) → (..., d); the mask is not needed."""
        return super().forward(x)


class Identity(nn.Module):
    """No f, in a layer after the first. (B, M, d) → (B, M, d)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x as it is."""
        return x


class Attention(nn.MultiheadAttention):
    """Self-attention among real steps, whose dropout is that of `processes.Dropout`. (B, M, d) → (B, M, d)."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, M, d), mask (B, M) → (B, M, d)."""
        if not self.training or self.dropout == 0:
            return super().forward(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # (B, heads, M, ·)
        scores = (q @ k.transpose(2, 3) * self.head_dim**-0.5).masked_fill(~mask[:, None, None], -torch.inf)
        weights = processes.dropout(scores.softmax(-1), self.dropout)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """e_attn = BN(MHA(f(e)) + f(e));  ψ(e) = BN(FFN(e_attn) + e_attn)  (section 4.1). (B, M, D) → (B, M, d)."""

    def __init__(self, f: nn.Module, dim: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        self.f = f
        self.attention = Attention(dim, heads, dropout=dropout, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn), nn.ReLU(), processes.Dropout(dropout), nn.Linear(ffn, dim))
        self.norm_attention = MaskedBatchNorm(dim)
        self.norm_ffn = MaskedBatchNorm(dim)
        self.dropout = processes.Dropout(dropout)

    def forward(self, e: Tensor, mask: Tensor) -> Tensor:
        """e (B, M, D), mask (B, M) → (B, M, d)."""
        x = self.f(e, mask)
        x = self.norm_attention(self.dropout(self.attention(x, mask)) + x, mask)
        return self.norm_ffn(self.dropout(self.ffn(x)) + x, mask)


class MeanHead(nn.Module):
    """The mean over time of a linear layer. A head Ψ'' or Φ'': a sequence e (B, M, D) and its mask (B, M) → (B, d).

    pre_encoder: f of the modality, for heads that use it. width: D.
    mean_suffices: e may be the mean of its steps, as one step, since the head gives the same for both.
    """

    mean_suffices = True

    def __init__(self, pre_encoder: type[nn.Module], width: int, config: Config):
        super().__init__()
        self.dropout = processes.Dropout(config.dropout)
        self.f = Linear(width, config.dim)

    def forward(self, e: Tensor, mask: Tensor) -> Tensor:
        """e (B, M, D), mask (B, M) → (B, d)."""
        return self.f(self.dropout(masked_mean(e, mask)), mask)  # the mean first: cheaper, and it commutes with f


class MaxHead(MeanHead):
    """The maximum over time of a linear layer. (B, M, D), (B, M) → (B, d)."""

    mean_suffices = False

    def forward(self, e: Tensor, mask: Tensor) -> Tensor:
        """e (B, M, D), mask (B, M) → (B, d)."""
        return self.f(self.dropout(e), mask).masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


class ConvHead(nn.Module):
    """The mean over time of one layer of convolutions, a small head for a few hundred clips. (B, M, D) → (B, d)."""

    @staticmethod
    def weights(config: Config) -> int:
        """About how many weights it has, for `ssb.training.runs.check`; a head that stays small needs no estimate."""
        return (16 if config.kernels == "in turn" else 4) * config.dim**2

    def __init__(self, pre_encoder: type[nn.Module], width: int, config: Config):
        super().__init__()
        self.dropout = processes.Dropout(config.dropout)
        self.f = KERNELS[config.kernels](width, config.dim)

    def forward(self, e: Tensor, mask: Tensor) -> Tensor:
        """e (B, M, D), mask (B, M) → (B, d)."""
        return masked_mean(self.f(self.dropout(e), mask).relu(), mask)


class TransformerHead(nn.Module):
    """The paper's: transformer layers, whose first output vector is the embedding: that of the first step, or of a
    learned [CLS] vector put before it. (B, M, D), (B, M) → (B, d)."""

    @staticmethod
    def weights(config: Config) -> int:
        """About how many weights it has, as `ConvHead.weights`."""
        of_f = 16 if config.kernels == "in turn" else 5
        return config.pool_layers * config.dim * ((4 + of_f) * config.dim + 2 * config.pool_ffn)

    def __init__(self, pre_encoder: type[nn.Module], width: int, config: Config):
        super().__init__()
        self.dropout = processes.Dropout(config.dropout)
        f, sizes = pre_encoder if config.pre_encoder else Linear, (config.pool_heads, config.pool_ffn, config.dropout)
        fs = [f(width, config.dim)]
        for _ in range(config.pool_layers - 1):
            fs.append(f(config.dim, config.dim) if config.pre_encoder_in == "all" else Identity())
        self.layers = nn.ModuleList(TransformerLayer(f, config.dim, *sizes) for f in fs)
        self.cls = nn.Parameter(torch.randn(width)) if config.pool_query == "cls" else None

    def forward(self, e: Tensor, mask: Tensor) -> Tensor:
        """e (B, M, D), mask (B, M) → (B, d)."""
        e = self.dropout(e)
        if self.cls is not None:
            e = torch.cat([self.cls.to(e.dtype).expand(len(e), 1, -1), e], dim=1)
            mask = F.pad(mask, (1, 0), value=True)
        for layer in self.layers:
            e = layer(e, mask)
        return e[:, 0]


# the heads that Config.video_pooling and text_pooling name
HEADS: dict[str, type[nn.Module]] = {"mean": MeanHead, "max": MaxHead, "conv": ConvHead, "transformer": TransformerHead}


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """(B, M, D), (B, M) → (B, D), the mean over real steps."""
    return x.masked_fill(~mask[..., None], 0).sum(dim=1) / mask.sum(dim=1, keepdim=True)


@dataclass
class Past:
    """P clips of earlier batches: c_v as it was then; e_v is frozen and so never out of date."""

    clips: Tensor  # (P,) rows of the corpus
    c_v: Tensor  # (P, d), no gradient
    video: Tensor  # (P, M, D)
    video_mask: Tensor  # (P, M)


@dataclass
class Batch:
    """B pairs (t_i, v_i): captions for the text encoder and for the decoder, and the clips' features."""

    text: Tensor  # (B, L) ids, or (B, L, W) states of a frozen encoder; (B, 1, W) their means, for a mean head
    text_mask: Tensor  # (B, L)
    video: Tensor  # (B, M, D) e_v
    video_mask: Tensor  # (B, M)
    labels: Tensor | None = None  # (B, L') ids for the decoder, -100 at padding; None without captioning
    clips: Tensor | None = None  # (B,) which clip of the corpus each is; needed with `past`
    other: Tensor | None = None  # another caption of each clip, as `text`, and its mask; None: not needed
    other_mask: Tensor | None = None
    past: Past | None = None  # more clips to reconstruct captions from
    support: Tensor | None = None  # (captions, clips) bool, the clips in each support set; None: by Config.objective
    true: Tensor | None = None  # (B, S) bool, is the caption true of the clip, of the batch and then of `past`?
    stories: int = 0  # number of long videos, each with equally many of the clips and of the captions; 0: single clips


class SupportSetModel(nn.Module):
    """c_t = Φ''(Φ'(t)), c_v = Ψ''(e_v), and p(t | ē_v).

    video_width: D of the early-fused frozen features. text_width: W of the text encoder's states. vocabulary: size of
    the decoder's tokenizer, unused without captioning. encoder: Φ', or None where batches hold its states.
    """

    def __init__(
        self, config: Config, video_width: int, text_width: int, vocabulary: int, encoder: nn.Module | None = None
    ):
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.contrast = losses.contrast(config)
        self.text_head = HEADS[config.text_pooling](Recurrence, text_width, config)
        self.video_head = HEADS[config.video_pooling](KERNELS[config.kernels], video_width, config)
        # mean and `losses.scale_of` of the features over the training clips, where Config.standardise is set
        self.register_buffer("shift", torch.zeros(video_width))
        self.register_buffer("scale", torch.ones(video_width))
        # built last, so that all objectives of one seed begin with the same heads
        if config.objective != "none":
            self.decoder = text.build_decoder(config, vocabulary)
            width = self.decoder.config.d_model
            self.to_decoder = nn.Sequential(nn.Linear(video_width, width), nn.LayerNorm(width))
        self.progress = 0.0  # of training, of the last batch
        self.emcl = None
        if config.emcl:
            constants = config.emcl_bases, config.emcl_stages, config.emcl_temperature, config.emcl_beta
            self.emcl = EMCL(*constants, released=config.emcl_released)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters that only captioning trains: the decoder and the layer before it."""
        return [p for name, p in self.named_parameters() if name.startswith(DECODER)]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of the text encoder, where it is trained."""
        return [] if self.encoder is None else list(self.encoder.parameters())

    def head_parameters(self) -> list[nn.Parameter]:
        """The other parameters: both pooling heads."""
        return [p for name, p in self.named_parameters() if not name.startswith((*DECODER, "encoder."))]

    def embed_text(self, values: Tensor, mask: Tensor) -> Tensor:
        """(B, L) ids or (B, L, W) states → c_t (B, d)."""
        if self.encoder is not None:
            with processes.apart(self.progress):
                values = self.encoder(input_ids=values, attention_mask=mask.long()).last_hidden_state
        return self.text_head(values.to(self.shift.dtype), mask)

    def normalise(self, values: Tensor, mask: Tensor) -> Tensor:
        """e_v (B, M, D), with Config.standardise by the mean and deviation of the training clips; 0 at padding."""
        if self.config.standardise:
            values = losses.standardised(values, self.shift, self.scale)
        return values.masked_fill(~mask[..., None], 0)

    def embed_video(self, values: Tensor, mask: Tensor) -> Tensor:
        """e_v (B, M, D) → c_v (B, d)."""
        return self.video_head(self.normalise(values, mask), mask)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """c_t and c_v (B, d) of a batch in float32, after EMCL where the model has it; and with Config.intra the c_t of
        another caption of each clip, else None."""
        exact = self.shift.dtype  # float32, whatever the heads compute in
        c_t = processes.spread(self.embed_text, batch.text, batch.text_mask).to(exact)
        c_v = processes.spread(self.embed_video, batch.video, batch.video_mask).to(exact)
        other = (
            processes.spread(self.embed_text, batch.other, batch.other_mask).to(exact) if self.config.intra else None
        )
        return *self.rebuilt(c_t, c_v), other

    def rebuilt(self, c_t: Tensor, c_v: Tensor) -> tuple[Tensor, Tensor]:
        """c_t (A, d) and c_v (B, d) after one call of EMCL on all of them; as they are where the model has no EMCL."""
        if self.emcl is None:
            return c_t, c_v
        return self.emcl(torch.cat([c_v, c_t])).split([len(c_v), len(c_t)])[::-1]

    def candidates(self, batch: Batch) -> Tensor | None:
        """Which clips may be in each caption's support set, (B, S) bool; None: all of the batch.

        support_set = n below B: the own clip and n - 1 others, drawn at random in each step, as if the batch were of n.
        Above B: the batch and the past clips, without an entry of the caption's own clip from an earlier epoch.
        """
        if batch.support is not None:
            return batch.support
        n, size = self.config.support_set, len(batch.text)
        if n is not None and n < size:
            draw = torch.rand(size, size, device=batch.video.device).fill_diagonal_(2)
            return torch.zeros_like(draw, dtype=torch.bool).scatter(1, draw.topk(n, dim=1).indices, True)
        if batch.past is None:
            return None
        return F.pad(batch.clips[:, None] != batch.past.clips, (size, 0), value=True)

    def support(self, weights: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's input for each support set: ē_v at the decoder's width, (B, M, W), and its mask (B, M).

        weights (B, S), values (S, M, D), mask (S, M). The layer to the decoder's width comes before the mean, so it is
        applied to S sequences; with Config.mixing = "before" after it, to B.
        """
        steps, before = self.normalise(values, mask), self.config.mixing == "before"
        steps = steps if before else self.to_decoder(steps)
        with torch.autocast(steps.device.type, enabled=False):
            steps, mask = losses.weighted_mean(weights, steps.to(self.shift.dtype), mask)
        return self.to_decoder(steps) if before else steps, mask

    def caption_loss(self, support: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """-log p(t | ē_v) (eq. 2), the mean over tokens that are not -100, a scalar. support (B, M, W), mask (B, M), as
        `support` returns them; labels (B, L)."""
        return decoder.caption_loss(self.decoder, support, mask, labels)

    def forward(self, batch: Batch, progress: float = 1.0, with_share: bool = False) -> dict[str, Tensor]:
        """The terms of L = L_contrast + λ L_cross (eq. 3), unweighted, the cosine similarities (B, B), and c_v (B, d).

        progress: share of the training steps done (see `losses.Contrast`). with_share: where there is captioning, also
        its share of the gradient that reaches the heads, see `losses.share`. Of several processes, each gets the whole
        batch, and "loss" is its part, of which the sum is L (see `ssb.processes`).
        """
        config, self.progress = self.config, progress
        c_t, c_v, other = self.embed(batch)
        with torch.autocast(c_t.device.type, enabled=False):  # a cosine in bfloat16 is off by a hundredth of α
            contrast = self.contrast(c_t, c_v, batch, progress, other)
            similarity = losses.cosine(c_t, c_v)
        of_contrast, of_captioning = config.factors
        terms = {"loss": of_contrast * contrast / processes.count(), "contrast": contrast.detach()}
        terms |= {"similarity": similarity.detach(), "c_v": c_v.detach()}
        if config.objective != "none":
            with self.aside():
                captioning = self.captioning(c_t, c_v, batch, learn_weights=progress >= config.decoder_warmup)
            if with_share:
                terms["share"] = losses.share(of_captioning * captioning, terms["loss"], (c_t, c_v))
            terms["loss"] = terms["loss"] + of_captioning * captioning
            terms["captioning"] = processes.total(captioning.detach())
        return terms

    def aside(self):
        """A context for captioning: where the heads learn nothing from it, they draw the same random numbers as without
        it, and so learn the same."""
        if self.config.weights_gradient != "none":
            return contextlib.nullcontext()
        return torch.random.fork_rng([self.shift.device] if self.shift.is_cuda else [])

    def query(self, c_t: Tensor, c_v: Tensor, batch: Batch) -> Tensor:
        """What the clips are compared with, (B, d): c_t, or with Config.weights_from that of another caption of the
        clip, or c_v of the clip itself."""
        if self.config.weights_from == "other caption":
            return processes.spread(self.embed_text, batch.other, batch.other_mask).to(self.shift.dtype)
        return c_v if self.config.weights_from == "clip" else c_t

    def captioning(self, c_t: Tensor, c_v: Tensor, batch: Batch, learn_weights: bool = True) -> Tensor:
        """L_cross (eq. 2-3) of a batch, a scalar: the mean over its tokens, or by Config.over_tokens the sum over those
        of a caption; of several processes the part of this one, of its own captions. learn_weights: False stops its
        gradient to the embeddings (B, d), as Config.weights_gradient = "none"."""
        video, mask = batch.video, batch.video_mask
        learning = self.config.weights_gradient if learn_weights else "none"
        query = self.query(c_t, c_v, batch)
        query = query if learning in ("both", "text") else query.detach()
        c_v = c_v if learning in ("both", "video") else c_v.detach()
        if batch.past is not None:
            c_v = torch.cat([c_v, batch.past.c_v])
            video, mask = torch.cat([video, batch.past.video]), torch.cat([mask, batch.past.video_mask])
        objective = self.config.objective if batch.support is None else "full"  # over the clips of batch.support
        with torch.autocast(c_t.device.type, enabled=False):
            candidates = self.candidates(batch)
            of_weights = self.config.temperature, candidates, self.config.weights_by
            weights = losses.support_set_weights(query, c_v, objective, *of_weights)
            if self.config.weights_from == "meaning":
                weights, towards = losses.by_meaning(weights, batch.true, candidates)
        own = processes.own(len(weights))
        labels = batch.labels[own]
        with processes.apart(self.progress):
            loss = self.caption_loss(*self.support(weights[own], video, mask), labels)
        real, of = (x.ne(-100).sum().to(loss.dtype) for x in (labels, batch.labels))
        loss = loss * (real / (of if self.config.over_tokens == "mean" else len(batch.labels)))
        return loss + towards[own].sum() if self.config.weights_from == "meaning" else loss

    def generate(self, support: Tensor, mask: Tensor, beams: int, max_tokens: int) -> Tensor:
        """Captions of the decoder as token ids (B, L), each beginning with T5's start mark; after its end mark follow
        only padding or more end marks. support (B, M, W), mask (B, M): as `support` returns them."""
        t5 = self.decoder.config
        settings = GenerationConfig(  # every setting that matters, as a pretrained model may bring its own
            num_beams=beams,
            max_new_tokens=max_tokens,
            do_sample=False,
            length_penalty=1.0,
            early_stopping=False,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            min_length=0,
            pad_token_id=t5.pad_token_id,
            eos_token_id=t5.eos_token_id,
            decoder_start_token_id=t5.decoder_start_token_id,
        )
        return self.decoder.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=support),
            attention_mask=mask.long(),
            generation_config=settings,
        )

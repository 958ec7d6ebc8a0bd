"""The captioning loss of a T5 decoder whose tokens are packed: all captions of a batch end to end, without padding.

On a GPU the padding is computed too: to find out which tokens are real, the host would wait for it, and layers of equal
shapes in every step are worth more there than the work on some tokens.

The modules are those of transformers, which own the parameters, and every layer but attention works on single tokens.
So these get the N real tokens of a batch, (N, W), in place of (B, L, W); only attention is computed on padded captions,
where no token sees those after it, and so none sees padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from ssb import machine


def caption_loss(t5: T5ForConditionalGeneration, support: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """The loss of T5 itself, the mean of -log p over the labels that are not -100, a scalar.

    support (B, M, W): in place of the encoder's output, and its mask (B, M). labels (B, L) ids, -100 at padding.
    """
    rows = _rows(labels)
    tokens = t5.prepare_decoder_input_ids_from_labels(labels).flatten()[rows]
    states = _states(t5.decoder, tokens, rows, labels.shape, support, mask)
    if t5.config.scale_decoder_outputs:
        states = states * t5.config.d_model**-0.5
    scores = t5.lm_head(states)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return F.cross_entropy(scores, labels.flatten()[rows])


def _rows(labels: Tensor) -> Tensor | slice:
    """Where in the flattened captions (B, L) the tokens to compute are: up to the last label of each, or all."""
    if machine.on_gpu(labels.device):
        return slice(None)
    inside = (labels != -100).flip(1).cumsum(1).flip(1) > 0
    return inside.flatten().nonzero()[:, 0]


def _states(decoder, tokens: Tensor, rows: Tensor | slice, shape: torch.Size, support: Tensor, mask: Tensor) -> Tensor:
    """The last hidden states (N, W) of N tokens, of which token i is at rows[i] of the flattened captions (B, L)."""

    def padded(x: Tensor) -> Tensor:
        """(N, W) → (B, L, W), 0 at padding."""
        if isinstance(rows, Tensor):
            x = x.new_zeros(shape.numel(), x.shape[1]).index_copy(0, rows, x)
        return x.unflatten(0, shape)

    def packed(x: Tensor) -> Tensor:
        """(B, L, W) → (N, W)."""
        x = x.flatten(0, 1)
        return x.index_select(0, rows) if isinstance(rows, Tensor) else x

    first = decoder.block[0].layer[0].SelfAttention  # whose position bias all layers share
    length = shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
    bias = first.compute_bias(length, length, tokens.device).masked_fill(later, -torch.inf)
    present = mask[:, None, None]
    x = decoder.dropout(decoder.embed_tokens(tokens))
    for block in decoder.block:
        layer, cross, feed_forward = block.layer
        own, other = layer.SelfAttention, cross.EncDecAttention
        e = layer.layer_norm(x)
        e = packed(_attended(own, padded(own.q(e)), padded(own.k(e)), padded(own.v(e)), bias))
        x = x + layer.dropout(own.o(e))
        e = cross.layer_norm(x)
        e = packed(_attended(other, padded(other.q(e)), other.k(support), other.v(support), present))
        x = x + cross.dropout(other.o(e))
        x = feed_forward(x)
    return decoder.dropout(decoder.final_layer_norm(x))


def _attended(attention: T5Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of T5, which does not scale by √d: q (B, L, W), k and v (B, M, W) → (B, L, W). mask: what is added to
    the scores or, boolean, which of them count; it fits (B, heads, L, M)."""
    q, k, v = (x.unflatten(2, (attention.n_heads, -1)).transpose(1, 2) for x in (q, k, v))
    dropout = attention.dropout if attention.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=1.0).transpose(1, 2).flatten(2)

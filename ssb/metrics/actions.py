"""Linear action recognition on frozen features (section 6.6): the classes of clips, the paper's recipe, one layer."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedGroupKFold

from ssb import losses
from ssb.corpora.reading import listed
from ssb.corpora.record import Recipe
from ssb.machine import threads
from ssb.metrics import retrieval


class Linear(NamedTuple):
    """A trained layer on features (N, D): scores = (x − shift) / scale @ weight + bias, see
    `losses.standardised`."""

    weight: np.ndarray  # (D, C)
    bias: np.ndarray  # (C,)
    shift: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    epoch: int  # whose weights were kept

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features (N, D) → class scores (N, C)."""
        return losses.standardised(x, self.shift, self.scale) @ self.weight + self.bias


class Table(NamedTuple):
    """The result of `recognise`. rows: one for each kind of features and seed. ranks: features → (seeds, Q), the rank
    of the right class of each test clip, 1 where it is recognised; R@1 of these ranks is top-1."""

    rows: pd.DataFrame
    ranks: dict[str, np.ndarray]


def mean_over_time(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N, M, D), (N, M) → (N, D), the mean over the valid steps."""
    return (values * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)


def fit(
    x: np.ndarray, y: np.ndarray, val=None, groups: np.ndarray | None = None, recipe: Recipe = Recipe(), seed: int = 0
) -> Linear:
    """Train the layer on features x (N, D) of classes y (N,), integers from 0; cross-entropy. Features are standardised
    to mean 0 and deviation 1 over the training clips, which the paper leaves open.

    val: features and classes to choose the epoch on by accuracy, then by loss; None: recipe.held_out of the clips, all
    classes alike and whole groups (N,) together (clips cut from one film). No test clip is used. The weights are a
    function of the arguments, bit by bit. ValueError for shapes that do not fit and for features that are not finite.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y)
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}; wanted (N, D) and (N,)")
    if not np.isfinite(x).all():
        raise ValueError(f"features of clip {int(np.argmin(np.isfinite(x).all(axis=1)))} are not finite; drop it")
    classes = int(y.max()) + 1
    if val is None and recipe.held_out > 0:
        train, held_out = hold_out(y, groups, recipe.held_out, seed)
        (x, y), val = (x[train], y[train]), (x[held_out], y[held_out])
    shift = x.mean(0)
    scale = losses.scale_of(shift, x.std(0))
    inputs, target = torch.from_numpy(losses.standardised(x, shift, scale)), torch.from_numpy(y).long()
    if val is not None:
        val_inputs = torch.from_numpy(losses.standardised(np.asarray(val[0], np.float32), shift, scale))
        val_target = torch.from_numpy(np.asarray(val[1])).long()
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)  # the problem is convex: zeros are a fine start
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe.milestones, gamma=0.1)
    generator = torch.Generator().manual_seed(seed)
    size = recipe.batch or len(inputs)
    best = None
    with threads(1):
        for epoch in range(1, recipe.epochs + 1):
            every = torch.arange(len(inputs))
            order = torch.randperm(len(inputs), generator=generator) if size < len(inputs) else every
            for rows in order.split(size):
                optimizer.zero_grad()
                F.cross_entropy(inputs[rows] @ weight + bias, target[rows]).backward()
                optimizer.step()
            schedule.step()
            score = (epoch, 0.0)  # the last epoch, without clips to choose on
            if val is not None:
                with torch.no_grad():
                    out = val_inputs @ weight + bias
                    score = (out.argmax(1) == val_target).sum().item(), -F.cross_entropy(out, val_target).item()
            if best is None or score > best[0]:
                best = score, epoch, weight.detach().clone(), bias.detach().clone()
    _, epoch, weight, bias = best
    return Linear(weight.numpy(), bias.numpy(), shift, scale, epoch)


def hold_out(y: np.ndarray, groups, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, about `share` of them; all classes alike, groups whole. ValueError where no
    class has enough clips for that share."""
    folds = max(2, round(1 / share))
    if folds > (most := np.bincount(y).max()):
        raise ValueError(f"held_out = {share} of at most {most} clips per class is none; wanted a larger share or 0")
    groups = np.arange(len(y)) if groups is None else groups
    return next(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, groups))


def recognise(
    inputs: Mapping[str, np.ndarray],
    classes: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    val: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    recipe: Recipe = Recipe(),
    seeds: Iterable[int] = (0, 1, 2),
) -> Table:
    """Train on some clips and test on others, each kind of features with each seed.

    inputs: name → (N, D) features; classes: (N,) names; train, test, val: rows of these, val to choose the epoch on;
    groups: (N,) which clips belong together when some are held out. Rows: features, seed, top-1 and top-5 (percent,
    ties counted as in `retrieval.ranks`), classes, epoch, n. ValueError for a test clip of a class without training
    clips.
    """
    classes = np.asarray(classes)
    names = np.unique(classes[train])
    evaluated = classes[test] if val is None else classes[np.concatenate([test, val])]
    if unseen := sorted(set(evaluated.tolist()) - set(names.tolist())):
        raise ValueError(f"no training clip of class {listed(unseen)}; leave its clips out of the test and val clips")
    y = np.searchsorted(names, classes)
    rows, ranks = [], {}
    for name, x in inputs.items():
        for seed in seeds:
            chosen = None if val is None else (x[val], y[val])
            layer = fit(x[train], y[train], chosen, None if groups is None else groups[train], recipe, seed)
            rank = retrieval.ranks(torch.from_numpy(layer(x[test])), y[test])
            ranks.setdefault(name, []).append(rank)
            top = {f"top-{k}": retrieval.metrics(rank, (k,))[f"R@{k}"] for k in (1, 5)}
            about = {"classes": len(names), "epoch": layer.epoch, "n": len(test)}
            rows.append({"features": name, "seed": seed, **top, **about})
    return Table(pd.DataFrame(rows), {name: np.stack(each) for name, each in ranks.items()})

"""Linear action recognition on frozen features (section 6.6): the classes of clips, the paper's recipe, one layer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.model_selection import StratifiedGroupKFold

from ssb.corpora.reading import listed
from ssb.machine import threads
from ssb.metrics import retrieval


@dataclass(frozen=True)
class Recipe:
    """How the linear layer is trained; the defaults are the paper's for UCF-101 unless a comment says otherwise."""

    epochs: int = 500
    milestones: tuple[int, ...] = (200, 400)  # epochs after which the rate is divided by 10
    lr: float = 1e-4  # Adam
    weight_decay: float = 1e-4  # L2, of all weights
    batch: int | None = 64  # the paper does not say; None: all training clips
    patience: int | None = None  # epochs without a better one before it stops; None: the best of all, at full length
    held_out: float = 0.1  # share of the training clips to choose the epoch on, where no others are given; 0: the last
    standardise: bool = True  # features to mean 0, deviation 1 over the clips trained on; the paper does not say


UCF101 = Recipe()
HMDB51 = Recipe(epochs=1500, milestones=(1000, 1200))
RECIPES = {"ucf101": UCF101, "hmdb51": HMDB51}


class Linear(NamedTuple):
    """A trained layer on features (N, D): scores = (x − shift) / scale @ weight + bias."""

    weight: np.ndarray  # (D, C)
    bias: np.ndarray  # (C,)
    shift: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    epoch: int  # after which its weights were taken

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.shift) / self.scale) @ self.weight + self.bias


class Table(NamedTuple):
    """What `recognise` gives. rows: one for each kind of features and seed. ranks: features → (seeds, Q) rank of the
    right class of each test clip, 1 where it is recognised, for `retrieval.paired_bootstrap` with R@1 as top-1."""

    rows: pd.DataFrame
    ranks: dict[str, np.ndarray]

    @property
    def correct(self) -> dict[str, np.ndarray]:
        """features → (seeds, Q) bool: is the right class above all others?"""
        return {name: ranks == 1 for name, ranks in self.ranks.items()}


def fit(
    x: np.ndarray, y: np.ndarray, val=None, groups: np.ndarray | None = None, recipe: Recipe = UCF101, seed: int = 0
) -> Linear:
    """Train the layer on features x (N, D) of classes y (N,), integers from 0; cross-entropy.

    val: features and classes to choose the epoch on by accuracy, then by loss; None: recipe.held_out of the clips, all
    classes alike, whole groups (N,) together (clips cut from one film). Test clips are never seen here. The bits depend
    on the arguments alone. ValueError for what does not fit.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y)
    if x.ndim != 2 or y.shape != (len(x),):
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}; wanted (N, D) and (N,)")
    if not np.isfinite(x).all():
        raise ValueError(f"features of clip {int(np.argmin(np.isfinite(x).all(axis=1)))} are not finite; drop it")
    classes = int(y.max()) + 1
    if val is None and recipe.held_out > 0:
        kept, held = hold_out(y, groups, recipe.held_out, seed)
        (x, y), val = (x[kept], y[kept]), (x[held], y[held])
    shift, scale = (x.mean(0), x.std(0).clip(1e-6)) if recipe.standardise else (np.zeros(x.shape[1]), 1.0)
    scale = np.broadcast_to(np.float32(scale), x.shape[1:])
    seen, target = torch.from_numpy((x - shift) / scale).float(), torch.from_numpy(y).long()
    if val is not None:
        asked = torch.from_numpy((np.asarray(val[0], np.float32) - shift) / scale).float()
        answer = torch.from_numpy(np.asarray(val[1])).long()
    weight = torch.zeros(x.shape[1], classes, requires_grad=True)  # a convex problem needs no luck to begin with
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe.milestones, gamma=0.1)
    draw = torch.Generator().manual_seed(seed)
    size = recipe.batch or len(seen)
    best = None
    with threads(1):
        for epoch in range(1, recipe.epochs + 1):
            order = torch.randperm(len(seen), generator=draw) if size < len(seen) else torch.arange(len(seen))
            for rows in order.split(size):
                optimizer.zero_grad()
                F.cross_entropy(seen[rows] @ weight + bias, target[rows]).backward()
                optimizer.step()
            schedule.step()
            score = (epoch, 0.0)  # the last one, where there is nothing to choose on
            if val is not None:
                with torch.no_grad():
                    out = asked @ weight + bias
                    score = (out.argmax(1) == answer).sum().item(), -F.cross_entropy(out, answer).item()
            if best is None or score > best[0]:
                best = score, epoch, weight.detach().clone(), bias.detach().clone()
            elif recipe.patience is not None and epoch - best[1] >= recipe.patience:
                break
    _, epoch, weight, bias = best
    return Linear(weight.numpy(), bias.numpy(), np.asarray(shift), np.asarray(scale), epoch)


def hold_out(y: np.ndarray, groups, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, about `share` of them; all classes alike, groups whole."""
    folds = max(2, round(1 / share))
    if folds > (most := np.bincount(y).max()):
        raise ValueError(f"held_out = {share} of at most {most} clips a class is none; wanted a larger share or 0")
    groups = np.arange(len(y)) if groups is None else groups
    return next(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(y, y, groups))


def recognise(
    inputs: Mapping[str, np.ndarray],
    classes: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    val: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    recipe: Recipe = UCF101,
    seeds: Iterable[int] = (0, 1, 2),
) -> Table:
    """Train on some clips and test on others, each kind of features with each seed.

    inputs: name → (N, D) features; classes: (N,) names; train, test, val: rows of these, val to choose the epoch on;
    groups: (N,) which clips belong together when some are held out. Rows: features, seed, top-1 and top-5 (percent,
    ties counted as in `retrieval.ranks`), classes, epoch, n. ValueError for a test clip of a class never trained on.
    """
    names, y = np.unique(np.asarray(classes)[train], return_inverse=True)
    number = {name: i for i, name in enumerate(names)}
    for rows in (test, [] if val is None else val):
        if unseen := sorted({str(classes[i]) for i in rows} - set(number)):
            raise ValueError(f"no training clip of class {listed(unseen)}; it cannot be recognised")
    target = np.array([number[classes[i]] for i in test])
    chosen = None if val is None else np.array([number[classes[i]] for i in val])
    rows, ranks = [], {}
    for name, x in inputs.items():
        for seed in seeds:
            asked = None if val is None else (x[val], chosen)
            layer = fit(x[train], y, asked, None if groups is None else groups[train], recipe, seed)
            found = retrieval.ranks(torch.from_numpy(layer(x[test])), target)
            ranks.setdefault(name, []).append(found)
            top = {f"top-{k}": retrieval.metrics(found, (k,))[f"R@{k}"] for k in (1, 5)}
            about = {"classes": len(names), "epoch": layer.epoch, "n": len(test)}
            rows.append({"features": name, "seed": seed, **top, **about})
    return Table(pd.DataFrame(rows), {name: np.stack(found) for name, found in ranks.items()})

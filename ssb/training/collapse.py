"""Collapse: all embeddings become one point, where a loss such as eq. 1 has no gradient to separate them. A run
that has not learnt otherwise gets a remark, and is no failure."""

import numpy as np
import torch

from ssb.losses import Contrast, cosine
from ssb.machine import threads
from ssb.model import SupportSetModel
from ssb.training.protocol import TrainingData

STUCK_STEPS = 100  # in a row at the floor before a run counts as collapsed
NEAR, EQUAL = 1e-3, 1e-2  # largest distance of the loss from its floor, deviation of the similarities, at one point
FEW = 30  # validation clips, up to which recall by chance is too high to tell it from learning


class Watch:
    """Detects collapse during a run. A loss without a floor (`Contrast.floor`) cannot collapse to it.

    stuck: for how many steps in a row the loss has been at its floor with all similarities equal.
    """

    def __init__(self, contrast: Contrast):
        self.contrast, self.floor, self.stuck = contrast, contrast.floor, 0

    def after_step(self, loss: float, spread: float) -> str | None:
        """Why the run has collapsed, or None. loss: the contrastive term; spread: deviation of the similarities."""
        one_point = self.floor is not None and abs(loss - self.floor) <= NEAR and spread <= EQUAL
        self.stuck = self.stuck + 1 if one_point else 0
        if self.stuck < STUCK_STEPS:
            return None
        floor = self.contrast.floor_name
        return f"for {STUCK_STEPS} steps the contrastive loss has been {floor} and all similarities equal"

    def at_the_end(self, model: SupportSetModel, data: TrainingData, note: str) -> str | None:
        """As `after_step`, of the trained model without dropout, with which the similarities of a collapsed model are
        not equal. note: of the best epoch, `at_chance`; what has learnt something is not given up."""
        if self.floor is None or not (note or len(data.pairs("val")) <= FEW):
            return None
        loss, spread = without_dropout(model, data, "val")
        if loss < self.floor - NEAR or spread > EQUAL:  # one point, up to differences that separate nothing
            return None
        floor = self.contrast.floor_name
        return f"on validation clips the contrastive loss is not below {floor} and all similarities are equal"


def without_dropout(model: SupportSetModel, data: TrainingData, split: str) -> tuple[float, float]:
    """The contrastive loss and the deviation of the similarities on the pairs of a split, means over batches of about
    Config.batch; infinity for fewer than two pairs."""
    rows, model, results = data.pairs(split), model.eval(), []
    if len(rows) < 2:
        return np.inf, np.inf
    with torch.inference_mode(), threads(model.config.threads):
        for part in np.array_split(rows, -(-len(rows) // model.config.batch)):
            batch = data.batch(part)
            c_t, c_v, other = model.embed(batch)
            results.append((model.contrast(c_t, c_v, batch, 1.0, other).item(), cosine(c_t, c_v).std().item()))
    loss, spread = np.mean(results, axis=0)
    return float(loss), float(spread)


def at_chance(recall: float, clips: int) -> str:
    """A remark on a run that retrieves validation clips no better than chance, else "". recall: R@1 + R@5 + R@10, in
    percent; clips: how many these are."""
    chance = sum(100 * k / clips for k in (1, 5, 10))
    if clips <= FEW or recall >= 2 * chance:
        return ""
    return (
        f"it has not learnt to retrieve: on {clips} validation clips R@1 + R@5 + R@10 is {recall:.1f}, and "
        f"{chance:.1f} by chance; train longer, with a higher lr, or with a pretrained text_encoder"
    )

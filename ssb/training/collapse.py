"""Collapse: all embeddings become one point, where a loss such as eq. 1 has no gradient to separate them."""

from ssb.config import Config
from ssb.losses import Contrast

STUCK_STEPS = 100  # in a row at the floor before a run counts as collapsed


class Watch:
    """Detects collapse during a run. A loss without a floor (`Contrast.floor`) cannot collapse to it.

    stuck: for how many steps in a row the loss has been at its floor with all similarities equal.
    """

    def __init__(self, config: Config, contrast: Contrast):
        self.config, self.floor, self.stuck = config, contrast.floor, 0

    def after_step(self, loss: float, spread: float) -> str | None:
        """Why the run has collapsed, or None. loss: the contrastive term; spread: deviation of the similarities."""
        if self.floor is None or abs(loss - self.floor) > 1e-3 or spread > 1e-2:
            self.stuck = 0
            return None
        self.stuck += 1
        if self.stuck < STUCK_STEPS:
            return None
        return f"for {STUCK_STEPS} steps the contrastive loss has been {self.where} and all similarities equal"

    def at_the_end(self, loss: float, recall: float, clips: int) -> str | None:
        """The other sign of collapse, or None: with dropout the similarities of a collapsed model are not equal, but
        its loss is not below the floor, and it retrieves validation clips no better than chance.

        loss: the contrastive term of the last epoch; recall: R@1 + R@5 + R@10 on the validation clips, in percent;
        clips: how many these are. With at most 30 of them chance is too high to tell.
        """
        chance = sum(100 * k / clips for k in (1, 5, 10))
        if self.floor is None or loss < self.floor - 1e-3 or recall >= 2 * chance or clips <= 30:
            return None
        return f"the contrastive loss ends at {loss:.3f}, not below {self.where}, and validation recall is at chance"

    @property
    def where(self) -> str:
        """The floor in words: 2 × margin = 0.4."""
        return f"{self.floor / self.config.margin:g} × margin = {self.floor:g}"

    def advice(self) -> str:
        """What to change, in words."""
        config = self.config
        less = f"a smaller captioning = {config.captioning:g}, " if config.objective != "none" else ""
        return (
            f"With negatives = {config.negatives!r} no gradient separates the clips: take {less}negatives = 'mean' "
            f"or 'scheduled', contrast = 'info_nce', a pretrained text_encoder, or a lower lr = {config.lr:g}. "
            f"No number of this run is reported."
        )

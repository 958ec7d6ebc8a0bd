"""Durations in words."""


def minutes(seconds: float) -> str:
    """85.2 → "85 s", 480 → "8 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

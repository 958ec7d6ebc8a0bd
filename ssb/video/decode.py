"""Decoding: the frames of a clip in their time, and those that a backbone sees of each second of it."""

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SILENCE = 600  # seconds without a frame after which timestamps are held to be wrong
HALF = Fraction(1, 2)


class VideoError(ValueError):
    """A clip that cannot be read, or only in part; clips or a folder of features that do not fit what is to be done."""


def frames(path: str | Path) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
    """The frames of a clip in order, each with the second since the first at which it is shown; last of all the second
    at which the last one goes, and None. Timestamps are taken as they are, so a variable rate is no matter.

    A packet that cannot be decoded is passed over, as players do. VideoError where no frame is left, or where more
    than a second is missing at the end."""
    start = now = length = None
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoError("has no video stream")
            avi, declared = container.format.name == "avi", announced(container, stream)
            gap = 1 / Fraction(stream.average_rate or 25)
            read: list[Fraction] = []  # first and last second of the packets that could be decoded
            for frame in decoded(container, stream, read):
                stamp = frame.dts if avi else frame.pts  # an AVI has no pts, FFmpeg guesses them
                last, now = now, None if stamp is None else stamp * stream.time_base
                if now is None or last is not None and now <= last:  # no timestamp, or one that goes back
                    now = Fraction(0) if last is None else last + gap
                start = now if last is None else start
                if last is not None and now - last > SILENCE:
                    raise VideoError(f"its clock jumps from {float(last - start):.0f} to {float(now - start):.0f} s")
                gap = frame.duration * stream.time_base if frame.duration else gap if last is None else now - last
                length = now - start + gap
                yield now - start, frame
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"not readable as video ({error.strerror or error})") from None
    if length is None:
        raise VideoError("no frame of it can be decoded")
    there = max(length, read[1] - read[0] if read else 0)  # a cut without new encoding has packets that are not shown
    if there < declared - 1:
        raise VideoError(f"ends after {float(there):.1f} of {float(declared):.1f} s: cut short or damaged")
    yield length, None


def announced(container, stream) -> Fraction:
    """Seconds of pictures that a file says it has, 0 where it does not say."""
    if container.format.name == "avi":  # of a cut one, FFmpeg makes the duration what is left
        return stream.frames * stream.time_base
    if stream.duration:
        return stream.duration * stream.time_base
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska and WebM: 00:01:23.456
    with contextlib.suppress(ValueError):
        return 3600 * int(hours) + 60 * int(rest[:2]) + Fraction(rest[3:].rstrip("\0 "))
    alone = len(container.streams) == 1  # else it may be the sound that is as long
    return Fraction(container.duration or 0, av.time_base) if alone else Fraction(0)


def decoded(container, stream, read: list[Fraction]) -> Iterator[av.VideoFrame]:
    """Frames as they come, whatever packets fail; `read` becomes the times at which those that do not begin and end."""
    stream.codec_context.thread_count = 1  # the workers are what runs side by side
    packets, more = container.demux(stream), True
    while more:
        try:
            packet = next(packets)
        except av.error.InvalidDataError:  # nothing can be found in the file after this
            packet = None
        more = packet is not None and packet.size > 0  # the last packet is empty: out comes what the decoder held back
        try:
            found = stream.decode(packet if more else None)
        except (av.error.InvalidDataError, av.error.EOFError):
            continue
        time = packet and (packet.dts if packet.pts is None else packet.pts)
        if more and time is not None:
            begin, end = time * stream.time_base, (time + (packet.duration or 0)) * stream.time_base
            read[:] = (min(read[0], begin), max(read[1], end)) if read else (begin, end)
        yield from found


def windows(path: str | Path, count: int, rate: Fraction, prepare: Callable) -> Iterator[np.ndarray]:
    """What a backbone sees of each step, (count, …): the `count` frames that are shown 1 / `rate` seconds from one
    another around the middle of the step, the first and the last frame standing in for what is beyond the ends.

    Step k is the second from k to k + 1; a clip has a step for each second whose middle it shows, and at least one.
    Frames are let go as soon as they are seen; `prepare` makes an array of those that are."""
    moments = [HALF + (2 * i + 1 - count) * HALF / rate for i in range(count)]  # from the beginning of a step
    begun: dict[int, list[np.ndarray]] = {}  # step → what it has seen
    steps, shown = 0, None
    for until, frame in frames(path):
        picture = None
        while shown is not None and steps + moments[0] < until:
            begun[steps] = []
            steps += 1
        for step, seen in list(begun.items()):
            while len(seen) < count and step + moments[len(seen)] < until:
                picture = prepare(shown) if picture is None else picture
                seen.append(picture)
            if len(seen) == count:
                yield np.stack(begun.pop(step))
        shown = frame or shown
    if steps == 0:  # the whole clip is over before its middle
        begun[0] = []
    for step, seen in begun.items():
        if step == 0 or step + HALF < until:
            yield np.stack(seen + [prepare(shown)] * (count - len(seen)))

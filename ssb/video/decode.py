"""Decoding: the frames of a clip with their times, and the window of frames that represents each second."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

LONGEST_GAP = 600  # seconds between two frames; after more, timestamps are taken to be wrong
HALF = Fraction(1, 2)
MOST_PIXELS = 1 << 26  # of a frame, twice those of 8K; one with more does not fit the memory of every decoder
NO_VIDEO = {"tty", "concat", "hls", "dash"}  # FFmpeg draws text as a video, and follows lists to other files
# EXIF orientation → are the axes swapped, and are then the rows, and the columns, reversed
TURNS = {1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False)}
TURNS |= {5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False)}
QUARTERS = {0: 1, 90: 8, 180: 3, -180: 3, -90: 6}  # degrees counter-clockwise → EXIF orientation


class VideoError(ValueError):
    """A clip that cannot be read completely; clips or a folder of features that do not fit the other arguments."""


def frames(path: str | Path) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
    """The frames of a clip in order, each with its time in seconds since the first; then the time at which the last one
    ends, and None. Times are the clip's own timestamps, so its frame rate may vary.

    Frames are as they are stored; `upright` turns them. A packet that cannot be decoded is skipped, as players do.
    VideoError where no frame is left, or where more than a second is missing at the end."""
    start = now = length = None
    try:
        if Path(path).exists() and not Path(path).is_file():  # reading a pipe or a device may never end
            raise VideoError("is a folder, a pipe or a device; give a video file")
        with av.open(f"file:{path}", metadata_errors="replace") as container:  # a name may look like an address
            stream = container.streams.best("video")
            if stream is None or container.format.name in NO_VIDEO:
                raise VideoError("has no video stream")
            if stream.codec_context is None:
                raise VideoError("has a video stream that cannot be decoded; convert it to H.264")
            if stream.width * stream.height > MOST_PIXELS:
                raise VideoError(f"has frames of {stream.width} × {stream.height} pixels; scale them down")
            if container.format.name == "image2" or container.format.name.endswith("_pipe"):
                check_image(path)
            avi, declared = container.format.name == "avi", declared_duration(container, stream)
            gap = 1 / Fraction(stream.average_rate or 25)
            read: list[Fraction] = []  # first and last second of the packets that could be decoded
            for frame in decoded_frames(container, stream, read):
                stamp = frame.dts if avi else frame.pts  # an AVI has no pts, FFmpeg guesses them
                last, now = now, None if stamp is None else stamp * stream.time_base
                if now is None or last is not None and now <= last:  # no timestamp, or one that goes back
                    now = Fraction(0) if last is None else last + gap
                start = now if last is None else start
                if last is not None and now - last > LONGEST_GAP:
                    raise VideoError(f"its clock jumps from {float(last - start):.0f} to {float(now - start):.0f} s")
                gap = frame.duration * stream.time_base if frame.duration else gap if last is None else now - last
                length = now - start + gap
                yield now - start, frame
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"not readable as video ({error.strerror or error})") from None
    if length is None:
        raise VideoError("no frame of it can be decoded")
    decoded = max(length, read[1] - read[0] if read else 0)  # a cut without new encoding has packets that are not shown
    if decoded < declared - 1:
        raise VideoError(f"ends after {float(decoded):.1f} of {float(declared):.1f} s: cut short or damaged")
    yield length, None


def declared_duration(container, stream) -> Fraction:
    """The duration of the video in seconds according to the file, 0 where it does not say."""
    if container.format.name == "avi":  # FFmpeg derives the duration of a truncated one from the rest
        return stream.frames * stream.time_base
    if stream.duration:
        return stream.duration * stream.time_base
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")  # Matroska and WebM: 00:01:23.456
    with contextlib.suppress(ValueError):
        return 3600 * int(hours) + 60 * int(rest[:2]) + Fraction(rest[3:].rstrip("\0 "))
    alone = len(container.streams) == 1  # else it may be the duration of the sound
    return Fraction(container.duration or 0, av.time_base) if alone else Fraction(0)


def decoded_frames(container, stream, read: list[Fraction]) -> Iterator[av.VideoFrame]:
    """The frames of all packets that can be decoded; `read` becomes the time at which these packets begin and end."""
    stream.codec_context.thread_count = 1  # since several workers decode in parallel
    packets, more = container.demux(stream), True
    while more:
        try:
            packet = next(packets)
        except av.error.InvalidDataError:  # the rest of the file cannot be read
            packet = None
        more = packet is not None and packet.size > 0  # the last packet is empty: it flushes the decoder
        try:
            pictures = stream.decode(packet if more else None)
        except (av.error.InvalidDataError, av.error.EOFError):
            continue
        time = packet and (packet.dts if packet.pts is None else packet.pts)
        if more and time is not None:
            begin, end = time * stream.time_base, (time + (packet.duration or 0)) * stream.time_base
            read[:] = (min(read[0], begin), max(read[1], end)) if read else (begin, end)
        yield from pictures


def check_image(path: str | Path):
    """VideoError where an image is cut short, of which FFmpeg makes a picture that is partly grey."""
    try:
        with Image.open(path) as image:
            image.load()
    except UnidentifiedImageError:  # a kind that Pillow does not read; FFmpeg may
        return
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise VideoError(f"cut short or damaged ({error})") from None


def turns(path: str | Path, frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """How a frame is to be turned, by the display matrix of the file or the orientation of an image: are its axes
    swapped, and are then its rows, and its columns, reversed. An oblique angle counts as the nearest quarter."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV stops at kinds of side data that it has no name for, such as EXIF
        try:
            with Image.open(path) as image:
                return TURNS.get(image.getexif().get(0x0112), TURNS[1])
        except OSError:  # a video: then the angle is all that can be read
            return TURNS[QUARTERS.get(90 * round(frame.rotation / 90), 1)]
    if data is None:
        return TURNS[1]
    # a pixel (x, y) is shown at (a x + c y, b x + d y)
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    swapped = abs(b) + abs(c) > abs(a) + abs(d)
    return (True, b < 0, c < 0) if swapped else (False, d < 0, a < 0)


def upright(path: str | Path, frame: av.VideoFrame) -> av.VideoFrame:
    """A frame of this file as it is to be shown."""
    swap, rows, columns = turns(path, frame)
    if not (swap or rows or columns):
        return frame
    image = frame.to_ndarray(format="rgb24")
    image = image.swapaxes(0, 1) if swap else image
    image = image[:: -1 if rows else 1, :: -1 if columns else 1]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def windows(path: str | Path, count: int, rate: Fraction, prepare: Callable) -> Iterator[np.ndarray]:
    """The window of each step, (count, …): `count` frames, 1 / `rate` seconds apart, around the middle of the step. The
    first and the last frame are repeated where a window goes beyond the ends of the clip.

    Step k is the second from k to k + 1; a clip has a step for each second whose middle it contains, and at least one.
    `prepare` makes arrays of the frames of windows, which are turned as the file says; a frame is released as soon as
    its windows have it."""
    moments = [HALF + (2 * i + 1 - count) * HALF / rate for i in range(count)]  # from the beginning of a step
    unfinished: dict[int, list[np.ndarray]] = {}  # step → its frames so far
    steps, last = 0, None
    for until, frame in frames(path):
        picture = None
        while last is not None and steps + moments[0] < until:
            unfinished[steps] = []
            steps += 1
        for step, window in list(unfinished.items()):
            while len(window) < count and step + moments[len(window)] < until:
                picture = prepare(upright(path, last)) if picture is None else picture
                window.append(picture)
            if len(window) == count:
                yield np.stack(unfinished.pop(step))
        last = frame or last
    if steps == 0:  # the clip ends before the middle of its first second
        unfinished[0] = []
    for step, window in unfinished.items():
        if step == 0 or step + HALF < until:
            yield np.stack(window + [prepare(upright(path, last))] * (count - len(window)))


def parts(path: str | Path, grid: int, count: int, prepare: Callable) -> Iterator[np.ndarray]:
    """A still image as 1 + `grid`² windows, (count, …) each: the whole, then its grid × grid parts row by row, each
    repeated `count` times. VideoError for a video, and for an image that has fewer pixels than parts."""
    (_, whole), (_, second) = itertools.islice(frames(path), 2)
    if second is not None:
        raise VideoError("is a video; --grid is for still images, extract videos without it")
    image = upright(path, whole).to_ndarray(format="rgb24")
    if min(image.shape[:2]) < grid:
        raise VideoError(f"has {image.shape[1]} × {image.shape[0]} pixels, too few for --grid {grid}")
    height, width = image.shape[:2]
    rows, columns = ([slice(n * i // grid, n * (i + 1) // grid) for i in range(grid)] for n in (height, width))
    for part in (image, *(image[row, column] for row in rows for column in columns)):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="rgb24")
        yield np.stack([prepare(frame)] * count)

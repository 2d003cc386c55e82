"""Video files in and out, with PyAV. Frames are picked by their timestamps, never by their number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from fvd.data.spec import VideoGeometry
from fvd.errors import DataError
from fvd.families import ClipPlan
from fvd.files import written_aside

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".flv", ".wmv", ".gif")

ROUNDING = Fraction(1, 1000)
"""Seconds by which a timestamp may be late: containers round to their time base, Matroska to milliseconds."""


@dataclass(frozen=True)
class VideoProbe:
    """What a file holds. Width and height as shown: rotated upright, with square pixels. Seconds of duration."""

    num_frames: int
    fps: float
    width: int
    height: int
    duration: Fraction

    def frames_at(self, fps: float) -> int:
        """How many frames the file gives when sampled at ``fps``: frame k is taken at k / fps < duration."""
        return math.ceil((self.duration - ROUNDING) * Fraction(fps))


def probe(path: Path) -> VideoProbe:
    """Read all packets (no decoding, so cheap) and the first frame. Raises DataError with the reason."""
    with _opened(path) as (container, stream):
        starts, ends = [], []
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise DataError("truncated: the file ends in the middle of a frame")
            start = packet.pts if packet.pts is not None else packet.dts
            if packet.size and start is not None:
                starts.append(start)
                ends.append(start + (packet.duration or _ticks_per_frame(stream)))
        if not starts:
            raise DataError("the file has no video frames")
        duration = (max(ends) - min(starts)) * _time_base(stream)
        _check_complete(stream, duration)
        container.seek(0)
        first = next(container.decode(stream))
        width, height = _shown_size(first, stream)
    return VideoProbe(len(starts), len(starts) / float(duration), width, height, duration)


def read_clip(path: Path, plan: ClipPlan) -> Tensor:
    """The head of a video, [3, T, H, W] in [0, 1], float32, T = ``plan.geometry.num_frames``.

    Frame k is the last frame of the file that is shown at or before k / ``plan.fps`` seconds after its first one; each is
    resized (bicubic, antialiased) to cover the target and cropped in the centre. Raises DataError with the reason when
    the file cannot be decoded that far.
    """
    geometry = plan.geometry
    step = 1 / Fraction(plan.fps)
    frames: list[Tensor] = []
    with _opened(path) as (container, stream):
        origin = shown = end = Fraction(0)
        held: VideoFrame | None = None
        for frame in container.decode(stream):
            shown = _timestamp(frame) * _time_base(stream)
            end = shown + (frame.duration or _ticks_per_frame(stream)) * _time_base(stream)
            if held is None:
                origin = shown
            else:
                _take_until(frames, held, stream, geometry, limit=shown - origin - ROUNDING, step=step)
            held = frame
            if len(frames) == geometry.num_frames:
                break
        if held is not None:
            _take_until(frames, held, stream, geometry, limit=end - origin - ROUNDING, step=step)
    if len(frames) < geometry.num_frames:
        raise DataError(f"decoding ended after {len(frames)} of {geometry.num_frames} frames")
    return torch.stack(frames, dim=1)


def write_video(path: Path, video: Tensor, fps: float) -> None:
    """Write [3, T, H, W] in [0, 1] as H.264, yuv420p, mp4. H.264 wants even sizes: an odd edge is repeated once.

    The file appears whole or not at all; raises FvdError when it cannot be written.
    """
    height, width = video.shape[2:]
    padded = F.pad(video.float(), (0, width % 2, 0, height % 2), mode="replicate")
    pixels = (padded.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
    with written_aside(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "17"})
        stream.width, stream.height, stream.pix_fmt = pixels.shape[2], pixels.shape[1], "yuv420p"
        for image in pixels:
            container.mux(stream.encode(VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its first video stream; FFmpeg's errors become DataError."""
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(f"cannot be opened: {_reason(error)}") from error
    with container:
        if not container.streams.video:
            raise DataError("the file has no video stream")
        try:
            yield container, container.streams.video[0]
        except av.error.FFmpegError as error:
            raise DataError(f"cannot be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, (av.error.InvalidDataError, av.error.EOFError)):
        return "truncated, or not a video"
    return error.strerror if isinstance(error, (av.error.FFmpegError, OSError)) and error.strerror else str(error)


def _time_base(stream: VideoStream) -> Fraction:
    if stream.time_base is None:
        raise DataError("the video stream has no time base")
    return stream.time_base


def _timestamp(frame: VideoFrame) -> int:
    ticks = frame.pts if frame.pts is not None else frame.dts
    if ticks is None:
        raise DataError("a frame has no timestamp")
    return ticks


def _ticks_per_frame(stream: VideoStream) -> int:
    """For containers that do not say how long a frame is shown."""
    rate = stream.average_rate or stream.base_rate or Fraction(25)
    return round(1 / (rate * _time_base(stream)))


def _check_complete(stream: VideoStream, duration: Fraction) -> None:
    """Some truncated files end exactly between two packets; then only the header knows."""
    if stream.duration is None:
        return
    announced = stream.duration * _time_base(stream)
    if duration < announced - max(Fraction(1, 4), announced / 20):
        raise DataError(f"truncated: ends after {float(duration):.2f} s of {float(announced):.2f} s")


def _shown_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """(width, height) with square pixels and upright."""
    width = round(frame.width * (stream.sample_aspect_ratio or 1))
    return (frame.height, width) if frame.rotation % 180 else (width, frame.height)


def _take_until(
    frames: list[Tensor], held: VideoFrame, stream: VideoStream, geometry: VideoGeometry, *, limit: Fraction, step: Fraction
) -> None:
    """Append ``held`` for every target time before ``limit``; converted once, however often it repeats."""
    picture: Tensor | None = None
    while len(frames) < geometry.num_frames and len(frames) * step < limit:
        if picture is None:
            picture = fit(_to_tensor(held), _shown_size(held, stream), geometry)
        frames.append(picture)


def _to_tensor(frame: VideoFrame) -> Tensor:
    """[3, h, w] in [0, 1], upright."""
    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24"))
    # FFmpeg's rotation is counter-clockwise, as is rot90 from rows to columns
    upright = torch.rot90(pixels, k=frame.rotation // 90, dims=(0, 1))
    return upright.permute(2, 0, 1).float() / 255


def fit(picture: Tensor, shown_size: tuple[int, int], geometry: VideoGeometry) -> Tensor:
    """Resize [3, h, w], shown as ``shown_size`` (width, height), to cover the target, and crop the centre."""
    width, height = shown_size
    scale = max(geometry.width / width, geometry.height / height)
    size = (max(geometry.height, round(height * scale)), max(geometry.width, round(width * scale)))
    if size != tuple(picture.shape[1:]):
        picture = F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    top, left = (size[0] - geometry.height) // 2, (size[1] - geometry.width) // 2
    return picture[:, top : top + geometry.height, left : left + geometry.width].contiguous()


def read_frames(path: Path) -> tuple[np.ndarray, float]:
    """Every frame of a file, [T, H, W, 3] uint8, and its frames a second. Raises DataError with the reason."""
    with _opened(path) as (container, stream):
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), float(stream.average_rate or 0)

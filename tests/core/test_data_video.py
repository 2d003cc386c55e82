"""Real files through PyAV: which frames are picked, how they are cut, and what damage is reported."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from fvd.data.spec import VideoGeometry
from fvd.data.video import fit, probe, read_clip, write_video
from fvd.errors import DataError, FvdError
from fvd.families import ClipPlan


def plan(fps: float, frames: int, height: int = 32, width: int = 48) -> ClipPlan:
    return ClipPlan(fps=fps, geometry=VideoGeometry(num_frames=frames, height=height, width=width))


def grey_file(path: Path, times: Sequence[Fraction], *, rate: Fraction | int = 16) -> Path:
    """Frame i is shown at ``times[i]`` and is grey with value 10 i; the last one for 1 / ``rate``."""
    time_base = Fraction(1, 90_000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = time_base
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(torch.full((32, 48, 3), 10 * index, dtype=torch.uint8).numpy(), format="rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def regular(fps: Fraction | int, frames: int) -> list[Fraction]:
    return [Fraction(index) / fps for index in range(frames)]


def picked(video: Tensor) -> list[int]:
    """Which grey frames these are."""
    return [round(float(value) * 25.5) for value in video.mean(dim=(0, 2, 3))]


# --- which frames -----------------------------------------------------------------------------------------------------
def reference_pick(times: Sequence[Fraction], fps: Fraction, count: int) -> list[int]:
    """By definition: the last frame at or before k / fps."""
    relative = [time - times[0] for time in times]
    return [max(i for i, time in enumerate(relative) if time <= k / fps + Fraction(1, 1000)) for k in range(count)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(
    ("source_fps", "target_fps"),
    [(16, 16), (24, 16), (Fraction(24000, 1001), 16), (30, 16), (8, 16), (25, 10)],
)
def test_frames_are_picked_by_time(tmp_path: Path, suffix: str, source_fps: Fraction, target_fps: int) -> None:
    times = regular(source_fps, 20)
    path = grey_file(tmp_path / f"a.{suffix}", times, rate=source_fps)
    count = probe(path).frames_at(target_fps)
    assert abs(count - 20 * target_fps / source_fps) < 1
    assert picked(read_clip(path, plan(target_fps, count))) == reference_pick(times, Fraction(target_fps), count)


def test_a_native_rate_takes_every_frame_once(tmp_path: Path) -> None:
    """Matroska rounds 62.5 ms to whole milliseconds; frames must neither repeat nor fall out."""
    path = grey_file(tmp_path / "a.mkv", regular(16, 25))
    assert probe(path).frames_at(16) == 25
    assert picked(read_clip(path, plan(16, 25))) == list(range(25))


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [Fraction(tick, 100) for tick in (0, 5, 10, 60, 65, 100, 150, 155, 200)]
    path = grey_file(tmp_path / "a.mp4", times)
    assert picked(read_clip(path, plan(10, 20))) == reference_pick(times, Fraction(10), 20)


def test_time_is_counted_from_the_first_frame(tmp_path: Path) -> None:
    times = [Fraction(3) + time for time in regular(16, 9)]
    assert picked(read_clip(grey_file(tmp_path / "a.mkv", times), plan(16, 9))) == list(range(9))


def test_an_avi_file_with_coarse_ticks(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for index in range(20):
            image = torch.full((32, 48, 3), 10 * index, dtype=torch.uint8).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert probe(path).frames_at(8) == 10
    assert picked(read_clip(path, plan(8, 10))) == list(range(0, 20, 2))


def test_probe(tmp_path: Path) -> None:
    found = probe(noise_file(tmp_path / "a.mp4"))
    assert (found.num_frames, found.width, found.height, found.duration) == (40, 48, 32, Fraction(40, 16))
    assert found.fps == pytest.approx(16)
    assert [found.frames_at(fps) for fps in (16, 8, 24, 1)] == [40, 20, 60, 3]


# --- how they are cut -------------------------------------------------------------------------------------------------
def test_fit_covers_and_crops_the_centre() -> None:
    """A ramp across the width: the crop keeps its middle, and the ramp stays linear."""
    ramp = torch.linspace(0, 1, 100).expand(3, 20, 100)
    cut = fit(ramp, (100, 20), VideoGeometry(num_frames=1, height=20, width=40))
    assert torch.equal(cut, ramp[:, :, 30:70])
    half = fit(ramp, (100, 20), VideoGeometry(num_frames=1, height=10, width=30))
    expected = torch.linspace(0, 1, 100).reshape(50, 2).mean(1)[10:40]
    torch.testing.assert_close(half[0, 5], expected, atol=2e-3, rtol=0)


def test_fit_filters_before_it_shrinks() -> None:
    """A checkerboard finer than the target becomes grey; without antialiasing it would alias to black or white."""
    board = ((torch.arange(48)[:, None] + torch.arange(48)[None]) % 2).float().expand(3, 48, 48)
    cut = fit(board, (48, 48), VideoGeometry(num_frames=1, height=16, width=16))
    torch.testing.assert_close(cut, torch.full((3, 16, 16), 0.5), atol=0.02, rtol=0)


def test_fit_stays_in_range() -> None:
    edge = torch.zeros(3, 16, 16)
    edge[:, :, 8:] = 1
    cut = fit(edge, (16, 16), VideoGeometry(num_frames=1, height=48, width=48))
    assert cut.min() >= 0
    assert cut.max() <= 1


def test_fit_makes_pixels_square() -> None:
    """Stored 40 wide, shown 80 wide: a target of twice the width takes it whole."""
    ramp = torch.linspace(0, 1, 40).expand(3, 20, 40)
    cut = fit(ramp, (80, 20), VideoGeometry(num_frames=1, height=20, width=80))
    assert cut.shape == (3, 20, 80)
    assert cut[0, 0, 0] < 0.01
    assert cut[0, 0, -1] > 0.99


def rotate_quarter_clockwise(path: Path) -> None:
    """Set the display matrix in the track header, as a phone held upright does."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data)


def test_a_phone_video_is_turned_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video = torch.zeros(3, 4, 32, 48)
    video[0, :, :16, :24] = 1  # red, top left
    write_video(path, video, 16)
    rotate_quarter_clockwise(path)
    assert (probe(path).width, probe(path).height) == (32, 48)
    upright = read_clip(path, plan(16, 4, height=48, width=32))
    assert upright[0, 0, 12, 24] > 0.9
    assert upright[0, 0, 12, 8] < 0.1
    assert upright[0, 0, 36, 8] < 0.1
    assert upright[0, 0, 36, 24] < 0.1


# --- writing ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_a_written_video_reads_back(tmp_path: Path, height: int, width: int) -> None:
    row, column = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)[None]
    picture = torch.stack([row.expand(height, width), column.expand(height, width), 1 - row.expand(height, width)])
    video = torch.stack([picture * scale for scale in (0.2, 0.4, 0.6, 0.8, 1.0)], dim=1)
    path = tmp_path / "deep" / "a.mp4"
    write_video(path, video, 12.5)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.mp4"]
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width % 2, context.height % 2) == (0, 0)
    found = probe(path)
    assert (found.num_frames, found.fps) == (5, pytest.approx(12.5))
    back = read_clip(path, plan(12.5, 5, height=found.height, width=found.width))[:, :, :height, :width]
    assert (back - video).abs().mean() < 0.02


def test_writing_the_same_video_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    video = torch.rand(3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "a.mp4", video, 16)
    write_video(tmp_path / "b.mp4", video, 16)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, torch.zeros(3, 2, 32, 32), 16)
    before = path.read_bytes()

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(FvdError, match="No space left on device"):
        write_video(path, torch.ones(3, 2, 32, 32), 16)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


# --- damage -----------------------------------------------------------------------------------------------------------
def cut_short(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def noise_file(path: Path, options: dict[str, str] | None = None) -> Path:
    generator = torch.Generator().manual_seed(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(40):
            image = torch.randint(0, 255, (32, 48, 3), dtype=torch.uint8, generator=generator).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}], ids=["index last", "index first"])
def test_a_truncated_file_is_found_without_decoding(tmp_path: Path, share: float, options: dict[str, str]) -> None:
    path = cut_short(noise_file(tmp_path / "a.mp4", options), share)
    with pytest.raises(DataError, match="truncated"):
        probe(path)


def test_a_file_cut_between_two_frames_is_found(tmp_path: Path) -> None:
    path = noise_file(tmp_path / "a.mp4", {"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: ends[15]])
    with pytest.raises(DataError, match=r"truncated: ends after 1\.\d\d s of 2\.50 s"):
        probe(path)


def test_damage_in_the_middle_does_not_pass_as_a_picture(tmp_path: Path) -> None:
    path = noise_file(tmp_path / "a.mp4", {"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 6000] = bytes(6000)
    path.write_bytes(data)
    with pytest.raises(DataError):
        read_clip(path, plan(16, 40))


def test_a_clip_longer_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ended after 9 of 17 frames"):
        read_clip(grey_file(tmp_path / "a.mp4", regular(16, 9)), plan(16, 17))


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_not_a_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    for read in (lambda: probe(path), lambda: read_clip(path, plan(16, 1))):
        with pytest.raises(DataError, match="cannot be opened: truncated, or not a video"):
            read()


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(torch.zeros(1, 4096).numpy(), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match="no video stream"):
        probe(path)

"""TensorBoard event files under ``logs/tensorboard``. Videos appear as animated images, which need no extra package."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from fvd.data.video import read_frames
from fvd.trackers.base import Tracker, TrackerContext


def build_tensorboard(context: TrackerContext) -> Tracker:
    return TensorBoardTracker(context.log_dir, start_step=context.start_step)


class TensorBoardTracker(Tracker):
    def __init__(self, log_dir: Path, *, start_step: int) -> None:
        # Events after the step that is resumed from are hidden by TensorBoard: they are logged again.
        self._writer = SummaryWriter(str(log_dir), purge_step=start_step + 1 if start_step else None)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_video(self, name: str, path: Path, step: int, caption: str) -> None:
        frames, fps = read_frames(path)
        image = Summary.Image(
            height=frames.shape[1], width=frames.shape[2], colorspace=3, encoded_image_string=_encode_gif(frames, fps)
        )
        file_writer = self._writer._get_file_writer()
        file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self._writer.add_text(f"{name}/prompt", caption, step)

    def log_file(self, path: Path) -> None:
        self._writer.add_text(path.name, f"```yaml\n{path.read_text(encoding='utf-8')}\n```")

    def finish(self) -> None:
        self._writer.close()


def _encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """[T, H, W, 3] uint8 numpy frames -> an endless animated GIF."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()

"""The whole path on a CPU, in a few minutes: makes a few clips, then runs the `fvd` commands a user would run.

python examples/tiny/demo.py [FOLDER]        default: ./demo
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

HERE = Path(__file__).parent
CLIPS = {
    "red_left": ("a red ball rolling left", (220, 40, 40), -1),
    "red_right": ("a red ball rolling right", (220, 40, 40), 1),
    "blue_left": ("a blue ball rolling left", (50, 80, 230), -1),
    "green_right": ("a green ball rolling right", (40, 180, 70), 1),
}
PROMPTS = ("a red ball rolling left", "a blue ball rolling right")
COMMANDS = """
fvd plugins list
fvd wan tiny models/wan-tiny
fvd data prepare clips --family wan --model models/wan-tiny --out data/clips
fvd check finetune.yaml
fvd run finetune.yaml
fvd export outputs/finetune --role student --to diffusers --out exported-finetune
fvd check dmd2.yaml
fvd run dmd2.yaml
fvd sample outputs/dmd2 --prompt "a red ball rolling left" --out sample.mp4
fvd export outputs/dmd2 --role student --to diffusers --out exported
"""


def ball_frames(color: tuple[int, int, int], direction: int, frames: int = 24, size: int = 96) -> Iterator[np.ndarray]:
    """[H, W, 3] uint8 frames of a ball that rolls across a grey floor."""
    y, x = np.mgrid[:size, :size]
    for index in range(frames):
        image = np.full((size, size, 3), 200, dtype=np.uint8)
        image[y > 0.75 * size] = (120, 110, 100)
        progress = index / (frames - 1)
        center_x = size * (0.2 + 0.6 * (progress if direction > 0 else 1 - progress))
        image[(x - center_x) ** 2 + (y - 0.62 * size) ** 2 < (0.14 * size) ** 2] = color
        yield image


def write_clip(path: Path, frames: Iterator[np.ndarray], fps: int = 16) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = 96
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_inputs(folder: Path) -> None:
    clips = folder / "clips"
    clips.mkdir(parents=True)
    for name, (caption, color, direction) in CLIPS.items():
        write_clip(clips / f"{name}.mp4", ball_frames(color, direction))
        (clips / f"{name}.txt").write_text(caption + "\n", encoding="utf-8")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    for run_file in ("finetune.yaml", "dmd2.yaml"):
        shutil.copy(HERE / run_file, folder / run_file)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo").absolute()
    if folder.exists():
        sys.exit(f"{folder} exists; remove it or name another folder")
    started = time.monotonic()
    make_inputs(folder)
    for command in COMMANDS.strip().splitlines():
        print(f"\n$ {command}", flush=True)
        fvd, *arguments = shlex.split(command)
        subprocess.run([str(Path(sys.executable).with_name(fvd)), *arguments], cwd=folder, check=True)
    print(f"\nDone in {time.monotonic() - started:.0f} s. The videos:")
    for video in sorted([*folder.glob("outputs/*/validation/*/*.mp4"), folder / "sample.mp4"]):
        print(f"  {video}")
    print(f"The 4-step student, for diffusers.WanPipeline.from_pretrained: {folder / 'exported'}")


if __name__ == "__main__":
    main()

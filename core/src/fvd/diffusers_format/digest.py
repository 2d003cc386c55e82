"""What identifies the encodings that a folder's VAE and text encoder make."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

_WHOLE_FILE_LIMIT = 64 * 2**20
_SAMPLES, _SAMPLE_SIZE = 64, 64 * 2**10


def digest_folders(folders: Sequence[Path], *settings: object) -> str:
    """Configurations, weights and tokenizer files in ``folders``, with ``settings``.

    Files above 64 MiB count by their first bytes (a safetensors header), size, and samples from all over: reading 22 GB
    would take longer than encoding a small data set.
    """
    digest = hashlib.blake2b("".join(f"{setting}\n" for setting in settings).encode(), digest_size=16)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".model"):
                digest.update(f"{folder.name}/{path.name} {path.stat().st_size}\n".encode())
                _add_content(digest, path)
    return digest.hexdigest()


def _add_content(digest: hashlib.blake2b, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE_LIMIT:
            digest.update(file.read())
            return
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_SIZE) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_SIZE))

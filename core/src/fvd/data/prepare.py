"""`fvd data prepare`: clips and captions in, parquet out. Verdicts first, then one clip at a time through the encoders.

Every row is named by its content (file, caption, plan, encoders), and is safe on the disk before the next is begun: a
second run, also after a kill, encodes only what is not there yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fvd.console import note, progress, table
from fvd.data.captions import LAYOUTS, TEXT_LAYOUTS, list_clips, list_prompts
from fvd.data.clips import TABLE_HEADERS, Judge, Verdict, drop_undecodable, write_clips_csv
from fvd.data.encoded import CheckedEncoders
from fvd.data.parquet_schema import T2V_SCHEMA, TEXT_ONLY_SCHEMA, pack_tensor
from fvd.data.parquet_writer import ParquetClipWriter
from fvd.data.prepared import CLIPS_CSV, Manifest, PreparedFolder, Settings
from fvd.data.video import read_clip
from fvd.errors import DataError
from fvd.families import ClipPlan, Encoders


@dataclass(frozen=True, kw_only=True)
class PrepareRequest:
    """What the user asked for. plan: None for prompts alone. strict: any dropped clip is an error, before encoding."""

    clips: Path
    out: Path
    family: str
    model: str
    plan: ClipPlan | None
    strict: bool = False
    overwrite: bool = False
    rows_per_file: int = 64

    @property
    def source(self) -> str:
        """``clips`` under the one name that does not depend on the working directory."""
        return str(self.clips.expanduser().resolve())

    def settings(self, encoders: Encoders) -> Settings:
        if self.plan is None:
            return Settings(schema="text_only", family=self.family, model=self.model, digest=encoders.digest)
        geometry = self.plan.geometry
        return Settings(
            schema="t2v",
            family=self.family,
            model=self.model,
            digest=encoders.digest,
            fps=self.plan.fps,
            num_frames=geometry.num_frames,
            height=geometry.height,
            width=geometry.width,
        )


def prepare(request: PrepareRequest, encoders: Encoders) -> list[Verdict]:
    """Prepare a data set and return the verdict on every clip. Raises DataError when no clip can be kept; then nothing
    is left behind."""
    if request.plan is not None:
        encoders.check_geometry(request.plan.geometry)
    settings = request.settings(encoders)
    folder = PreparedFolder(request.out)
    folder.check(settings, overwrite=request.overwrite)  # somebody else's folder does not even get a lock
    with folder.locked():
        before = folder.check(settings, overwrite=request.overwrite)
        verdicts = judge_clips(request, encoders.digest)
        _require_clips(verdicts, request)
        manifest = Manifest(request.source, settings)
        encoded, removed = _fill(folder, before, manifest, verdicts, request, encoders)
    _require_clips(verdicts, request)  # some damage shows only in decoding
    counts = _counts(verdicts)
    table(TABLE_HEADERS, [verdict.table_row() for verdict in verdicts])
    note(f"{counts['kept']} kept, {counts['dropped']} dropped; {encoded} encoded now, {removed} old rows removed")
    note(f"data: {request.out}   table: {request.out / CLIPS_CSV}")
    return verdicts


def _fill(
    folder: PreparedFolder,
    before: Manifest | None,
    manifest: Manifest,
    verdicts: Sequence[Verdict],
    request: PrepareRequest,
    encoders: Encoders,
) -> tuple[int, int]:
    """Bring the folder to what the verdicts say. The numbers of rows encoded and removed."""
    if before is None:
        folder.clear()
    schema = T2V_SCHEMA if request.plan is not None else TEXT_ONLY_SCHEMA
    writer = ParquetClipWriter(request.out, schema, rows_per_file=request.rows_per_file)
    wanted = {verdict.row_id for verdict in verdicts if verdict.kept}
    lost = writer.names_outside(wanted)
    if before is not None:
        before.check_source(request.out, request.source, lost)
    folder.begin(manifest)
    write_clips_csv(request.out / CLIPS_CSV, verdicts)  # now already, for whoever interrupts the encoding
    _say_what_is_removed(lost, verdicts, request)
    writer.keep_only(wanted)
    encoded = _encode_missing(verdicts, writer, request.plan, CheckedEncoders(encoders, request.family))
    if not writer.ids:
        folder.clear()
        return encoded, len(lost)
    writer.close()
    write_clips_csv(request.out / CLIPS_CSV, verdicts)
    folder.finish(manifest, _counts(verdicts))
    return encoded, len(lost)


def _say_what_is_removed(lost: Sequence[str], verdicts: Sequence[Verdict], request: PrepareRequest) -> None:
    """A row goes by its file's name, or, of prompts alone, by the prompt."""
    now = {verdict.clip.caption if request.plan is None else verdict.clip.name: verdict for verdict in verdicts}
    for name in lost:
        if name not in now:
            why = f"no longer in {request.clips}"
        elif now[name].kept:
            why = "changed since"
        else:
            why = f"dropped now: {now[name].reason}"
        note(f"old row removed: {name} ({why})")


def judge_clips(request: PrepareRequest, encoders_digest: str) -> list[Verdict]:
    """List the clips and give the verdicts that need no encoder."""
    listing = list_prompts(request.clips) if request.plan is None else list_clips(request.clips)
    note(f"layout: {listing.layout}; {len(listing.clips)} {'prompts' if request.plan is None else 'clips'}")
    judge = Judge(request.plan, encoders_digest)
    verdicts = []
    with progress("checking", len(listing.clips)) as bar:
        for clip in listing.clips:
            verdicts.append(judge.judge(clip))
            bar.advance()
    return verdicts


def _require_clips(verdicts: Sequence[Verdict], request: PrepareRequest) -> None:
    """Raise, with the table of what was found, when nothing is kept, or something is dropped under --strict."""
    counts = _counts(verdicts)
    if counts["kept"] and not (request.strict and counts["dropped"]):
        return
    table(TABLE_HEADERS, [verdict.table_row() for verdict in verdicts])
    if counts["kept"]:
        raise DataError(
            f"{counts['dropped']} of {len(verdicts)} clips would be dropped, and --strict allows none",
            cure="Mend or remove the clips marked `dropped` above, or leave out --strict.",
        )
    layouts = LAYOUTS if request.plan is not None else f"{LAYOUTS}\n{TEXT_LAYOUTS}"
    raise DataError(f"none of the {len(verdicts)} clips in {request.clips} can be used; see the reasons above", cure=layouts)


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    kept = sum(verdict.kept for verdict in verdicts)
    return {"kept": kept, "dropped": len(verdicts) - kept}


def _encode_missing(
    verdicts: Sequence[Verdict], writer: ParquetClipWriter, plan: ClipPlan | None, encoders: CheckedEncoders
) -> int:
    """Encode what the folder does not have yet; a clip that turns out to be damaged is dropped. The number encoded."""
    kept = [verdict for verdict in verdicts if verdict.kept]
    present = writer.ids
    missing = [verdict for verdict in kept if verdict.row_id not in present]
    encoded = 0
    with progress("encoding", len(kept), initial=len(kept) - len(missing)) as bar:
        for verdict in missing:
            try:
                row = _encode_clip(verdict, plan, encoders) if plan is not None else _encode_prompt(verdict, encoders)
            except UnusableClip as error:
                drop_undecodable(verdict, error)
            else:
                writer.append(row)
                encoded += 1
            bar.advance()
    return encoded


class UnusableClip(DataError):
    """A clip that passed the first look and cannot be encoded."""


def _encode_clip(verdict: Verdict, plan: ClipPlan, encoders: CheckedEncoders) -> dict[str, object]:
    """One row of `T2V_SCHEMA`."""
    assert verdict.clip.path is not None
    try:
        video = read_clip(verdict.clip.path, plan)
    except DataError as error:
        raise UnusableClip(error.message) from error
    latent = encoders.latent(video)
    _require_finite(latent, "its latents hold NaN or infinite values")
    geometry = plan.geometry
    return {
        **_encode_prompt(verdict, encoders),
        **pack_tensor("vae_latent", latent),
        "file_name": verdict.clip.name,
        "media_type": "video",
        "width": geometry.width,
        "height": geometry.height,
        "num_frames": latent.shape[1],
        "duration_sec": geometry.num_frames / plan.fps,
        "fps": plan.fps,
    }


def _encode_prompt(verdict: Verdict, encoders: CheckedEncoders) -> dict[str, object]:
    """One row of `TEXT_ONLY_SCHEMA`."""
    embedding = encoders.embedding(verdict.caption)
    _require_finite(embedding, "its text embedding holds NaN or infinite values")
    return {"id": verdict.row_id, **pack_tensor("text_embedding", embedding), "caption": verdict.caption}


def _require_finite(tensor: Tensor, complaint: str) -> None:
    if not torch.isfinite(tensor).all():
        raise UnusableClip(f"cannot be used: {complaint}")

"""`fvd data prepare`: clips and captions in, parquet out. Verdicts first, then one clip at a time through the encoders.

Every row is named by its content (file, caption, plan, encoders), and is safe on the disk before the next is begun: a
second run, also after a kill, encodes only what is not there yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import torch
from torch import Tensor

from fvd.console import note, progress, table
from fvd.data.captions import LAYOUTS, TEXT_LAYOUTS, Listing, list_clips, list_prompts
from fvd.data.clips import TABLE_HEADERS, Judge, Verdict, drop_undecodable, write_clips_csv
from fvd.data.encoded import CheckedEncoders
from fvd.data.parquet_schema import T2V_SCHEMA, TEXT_ONLY_SCHEMA, pack_tensor
from fvd.data.parquet_writer import ParquetClipWriter
from fvd.data.prepared import CLIPS_CSV, Manifest, PreparedFolder, Settings
from fvd.data.video import read_clip
from fvd.errors import DataError
from fvd.families import ClipPlan, Encoders


@dataclass(frozen=True, kw_only=True)
class FillRequest:
    """What is to be in a folder. source: the clips or captions that the user named. digest: of what makes the rows, besides
    clip and caption. plan: None where no videos are read. strict: any dropped clip is an error, before a row is made."""

    source: Path
    out: Path
    settings: Settings
    digest: str
    plan: ClipPlan | None = None
    strict: bool = False
    overwrite: bool = False
    rows_per_file: int = 64

    @property
    def absolute_source(self) -> str:
        """``source`` under the one name that does not depend on the working directory."""
        return str(self.source.expanduser().resolve())


class RowMaker(Protocol):
    """Makes the rows of a folder. doing, done: what becomes of a clip, in messages. noun: what the rows are made of."""

    schema: pa.Schema
    doing: str
    done: str
    noun: str

    def listing(self) -> Listing:
        """What there is to make rows of."""
        ...

    def begin(self, missing: Sequence[Verdict]) -> None:
        """`row` will be asked for these, in this order."""
        ...

    def row(self, verdict: Verdict) -> dict[str, object]:
        """Raises UnusableClip for a clip that turns out to be damaged."""
        ...


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
    checked = CheckedEncoders(encoders, request.family)
    maker = PromptRows(request.clips, checked) if request.plan is None else ClipRows(request.clips, request.plan, checked)
    wanted = FillRequest(
        source=request.clips,
        out=request.out,
        settings=request.settings(encoders),
        digest=encoders.digest,
        plan=request.plan,
        strict=request.strict,
        overwrite=request.overwrite,
        rows_per_file=request.rows_per_file,
    )
    return fill(wanted, maker)


def fill(request: FillRequest, maker: RowMaker) -> list[Verdict]:
    """Bring a folder to what is asked for: make the rows that it does not have, remove those that nothing asks for any more.
    Returns the verdict on every clip. Raises DataError when no clip can be kept; then nothing is left behind."""
    folder = PreparedFolder(request.out)
    folder.check(request.settings, overwrite=request.overwrite)  # somebody else's folder does not even get a lock
    with folder.locked():
        before = folder.check(request.settings, overwrite=request.overwrite)
        verdicts = judge_clips(request, maker)
        _require_clips(verdicts, request)
        manifest = Manifest(request.absolute_source, request.settings)
        made, removed = _fill(folder, before, manifest, verdicts, request, maker)
    _require_clips(verdicts, request)  # some damage shows only in decoding
    counts = _counts(verdicts)
    table(TABLE_HEADERS, [verdict.table_row() for verdict in verdicts])
    note(f"{counts['kept']} kept, {counts['dropped']} dropped; {made} {maker.done} now, {removed} old rows removed")
    note(f"data: {request.out}   table: {request.out / CLIPS_CSV}")
    return verdicts


def _fill(
    folder: PreparedFolder,
    before: Manifest | None,
    manifest: Manifest,
    verdicts: Sequence[Verdict],
    request: FillRequest,
    maker: RowMaker,
) -> tuple[int, int]:
    """Bring the folder to what the verdicts say. The numbers of rows made and removed."""
    if before is None:
        folder.clear()
    writer = ParquetClipWriter(request.out, maker.schema, rows_per_file=request.rows_per_file)
    wanted = {verdict.row_id for verdict in verdicts if verdict.kept}
    lost = writer.names_outside(wanted)
    if before is not None:
        before.check_source(request.out, request.absolute_source, lost)
    folder.begin(manifest)
    write_clips_csv(request.out / CLIPS_CSV, verdicts)  # now already, for whoever interrupts the encoding
    _say_what_is_removed(lost, verdicts, request, by_name=writer.name_column == "file_name")
    writer.keep_only(wanted)
    made = _make_missing(verdicts, writer, maker)
    if not writer.ids:
        folder.clear()
        return made, len(lost)
    writer.close()
    write_clips_csv(request.out / CLIPS_CSV, verdicts)
    folder.finish(manifest, _counts(verdicts))
    return made, len(lost)


def _say_what_is_removed(lost: Sequence[str], verdicts: Sequence[Verdict], request: FillRequest, *, by_name: bool) -> None:
    """A row goes by its file's name, or, of prompts alone, by the prompt."""
    now = {verdict.clip.name if by_name else verdict.clip.caption: verdict for verdict in verdicts}
    for name in lost:
        if name not in now:
            why = f"no longer in {request.source}"
        elif now[name].kept:
            why = "changed since"
        else:
            why = f"dropped now: {now[name].reason}"
        note(f"old row removed: {name} ({why})")


def judge_clips(request: FillRequest, maker: RowMaker) -> list[Verdict]:
    """List the clips and give the verdicts that need no encoder."""
    listing = maker.listing()
    note(f"layout: {listing.layout}; {len(listing.clips)} {maker.noun}")
    judge = Judge(request.plan, request.digest)
    verdicts = []
    with progress("checking", len(listing.clips)) as bar:
        for clip in listing.clips:
            verdicts.append(judge.judge(clip))
            bar.advance()
    return verdicts


def _require_clips(verdicts: Sequence[Verdict], request: FillRequest) -> None:
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
    raise DataError(f"none of the {len(verdicts)} clips in {request.source} can be used; see the reasons above", cure=layouts)


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    kept = sum(verdict.kept for verdict in verdicts)
    return {"kept": kept, "dropped": len(verdicts) - kept}


def _make_missing(verdicts: Sequence[Verdict], writer: ParquetClipWriter, maker: RowMaker) -> int:
    """Make what the folder does not have yet; a clip that turns out to be damaged is dropped. The number made."""
    kept = [verdict for verdict in verdicts if verdict.kept]
    present = writer.ids
    missing = [verdict for verdict in kept if verdict.row_id not in present]
    maker.begin(missing)
    made = 0
    with progress(maker.doing, len(kept), initial=len(kept) - len(missing)) as bar:
        for verdict in missing:
            try:
                row = maker.row(verdict)
            except UnusableClip as error:
                drop_undecodable(verdict, error)
            else:
                writer.append(row)
                made += 1
            bar.advance()
    return made


class UnusableClip(DataError):
    """A clip that passed the first look and cannot be encoded."""


class PromptRows:
    """Rows of `TEXT_ONLY_SCHEMA`."""

    schema = TEXT_ONLY_SCHEMA
    doing, done, noun = "encoding", "encoded", "prompts"

    def __init__(self, source: Path, encoders: CheckedEncoders) -> None:
        self._source = source
        self._encoders = encoders

    def listing(self) -> Listing:
        return list_prompts(self._source)

    def begin(self, missing: Sequence[Verdict]) -> None:
        """One at a time: nothing to make ready."""

    def row(self, verdict: Verdict) -> dict[str, object]:
        embedding = self._encoders.embedding(verdict.caption)
        require_finite(embedding, "its text embedding holds NaN or infinite values")
        return {"id": verdict.row_id, **pack_tensor("text_embedding", embedding), "caption": verdict.caption}


class ClipRows(PromptRows):
    """Rows of `T2V_SCHEMA`."""

    schema = T2V_SCHEMA
    noun = "clips"

    def __init__(self, source: Path, plan: ClipPlan, encoders: CheckedEncoders) -> None:
        super().__init__(source, encoders)
        self._plan = plan

    def listing(self) -> Listing:
        return list_clips(self._source)

    def row(self, verdict: Verdict) -> dict[str, object]:
        assert verdict.clip.path is not None
        plan, geometry = self._plan, self._plan.geometry
        try:
            video = read_clip(verdict.clip.path, plan)
        except DataError as error:
            raise UnusableClip(error.message) from error
        latent = self._encoders.latent(video)
        require_finite(latent, "its latents hold NaN or infinite values")
        return {
            **super().row(verdict),
            **pack_tensor("vae_latent", latent),
            "file_name": verdict.clip.name,
            "media_type": "video",
            "width": geometry.width,
            "height": geometry.height,
            "num_frames": latent.shape[1],
            "duration_sec": geometry.num_frames / plan.fps,
            "fps": plan.fps,
        }


def require_finite(tensor: Tensor, complaint: str) -> None:
    """Raises UnusableClip."""
    if not torch.isfinite(tensor).all():
        raise UnusableClip(f"cannot be used: {complaint}")

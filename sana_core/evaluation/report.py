"""What an evaluation found: one JSON file, and a table for people."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ..training.data.edits import EDITS
from .held_out import GLOBAL_EDITS, SampleScores
from .long_run import LongRunScores
from .metrics import MAX_PSNR

DEFINITIONS = {
    "psnr": "10 log10(255^2 / MSE) in dB; MSE over all pixels, channels and frames of a clip of uint8 frames, output "
    f"against the true edit; averages are of the clips' dB; equal clips count as {MAX_PSNR:g}",
    "source_psnr": "the same for a do-nothing output, the source itself",
    "psnr_inside": "over the pixels that a masked edit may change; psnr_outside over the others",
    "confusion": "asked edit -> nearest truth by MSE among those of all whole-picture edits on the clip -> clips",
    "warping_error": "root mean square, in grey levels of 255, of a pixel to its place in the next frame along the known "
    "motion, where it is seen in both; truth_warping_error is the true edit's own",
    "boundary_jump": "mean squared difference of consecutive frames across chunk boundaries over that inside chunks, "
    "divided by the same ratio of the truth; averages are of the clips' values",
    "seam_jump": "the same, but only the boundaries of latent frames inside chunks are compared with: the VAE makes all "
    "frames of a latent frame together, so every latent frame begins with a step, and a seam is what chunks add to it",
    "vae_round_trip": "psnr of the source encoded and decoded as a stream by the VAE alone",
    "long_run": "psnr over the first and the last period frames of a looped clip in a live stream, of the same source "
    "pictures; difference is end less start",
}
AVERAGED = (
    "psnr",
    "source_psnr",
    "psnr_inside",
    "psnr_outside",
    "source_psnr_inside",
    "source_psnr_outside",
    "warping_error",
    "truth_warping_error",
    "boundary_jump",
    "seam_jump",
)


@dataclass
class Report:
    """Collects scores. ``settings`` say what was run on what and come first in the JSON."""

    settings: dict[str, Any]
    samples: list[SampleScores] = field(default_factory=list)
    round_trip: dict[str, float] = field(default_factory=dict)
    long_run: LongRunScores | None = None
    complete: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; an average of nothing is None."""
        return {
            "complete": self.complete,
            **self.settings,
            "clips": list(self.round_trip),
            "overall": self.overall(),
            "edits": self.by_edit(),
            "confusion": self.confusion(),
            "vae_round_trip": {"mean": _mean(self.round_trip.values()), "by_clip": self.round_trip},
            "long_run": self.long_run and dataclasses.asdict(self.long_run),
            "definitions": DEFINITIONS,
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
        }

    def overall(self) -> dict[str, Any]:
        """Averages over all samples; without those of the source, which is perfect where nothing may change."""
        return {name: value for name, value in self._averages(self.samples).items() if not name.startswith("source")}

    def by_edit(self) -> dict[str, dict[str, Any]]:
        """Averages over the clips of each edit, in the order of the edits."""
        found = {name: [sample for sample in self.samples if sample.edit == name] for name in EDITS}
        return {name: self._averages(samples) for name, samples in found.items() if samples}

    def confusion(self) -> dict[str, dict[str, int]]:
        """Asked whole-picture edit -> edit with the nearest truth -> number of clips; rows of edits that were run."""
        rows: dict[str, dict[str, int]] = {}
        for sample in self.samples:
            if sample.nearest is not None:
                rows.setdefault(sample.edit, dict.fromkeys(GLOBAL_EDITS, 0))[sample.nearest] += 1
        return rows

    def write(self, path: Path) -> None:
        """Replaces ``path`` by the JSON only when that is whole."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=2, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def _averages(samples: list[SampleScores]) -> dict[str, Any]:
        judged = [sample for sample in samples if sample.nearest is not None]
        return {
            "samples": len(samples),
            **{name: _mean(getattr(sample, name) for sample in samples) for name in AVERAGED},
            "nearest_own": sum(sample.nearest == sample.edit for sample in judged) if judged else None,
            "nearest_of": len(judged) or None,
        }

    def table(self) -> str:
        """What was found, for people: a row per edit, then the VAE, the long run and each confusion."""
        heads = (
            "edit",
            "clips",
            "PSNR",
            "source",
            "inside",
            "source",
            "outside",
            "warping",
            "truth",
            "jump",
            "seam",
            "nearest",
        )
        rows = [heads, *(_row(name, values) for name, values in self.by_edit().items())]
        if self.samples:
            rows.append(_row("all", self.overall()))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        if self.round_trip:
            worst = min(self.round_trip, key=lambda name: self.round_trip[name])
            lines.append(
                f"VAE round trip  {fmean(self.round_trip.values()):.2f} dB; worst {self.round_trip[worst]:.2f} ({worst})"
            )
        if run := self.long_run:
            lines.append(
                f"long run        {run.frames} frames, {run.edit}: {run.psnr_start:.2f} dB at the start, "
                f"{run.psnr_end:.2f} at the end ({run.difference:+.2f}); boundary jump {_number(run.boundary_jump)}, "
                f"seam {_number(run.seam_jump)}"
            )
        taken = [
            f"{asked} for {nearest} ({count})"
            for asked, row in self.confusion().items()
            for nearest, count in row.items()
            if count and nearest != asked
        ]
        lines.append(f"taken           {', '.join(taken) or 'no edit for another'}")
        return "\n".join(lines)


def _row(name: str, values: dict[str, Any]) -> tuple[str, ...]:
    columns = (
        "psnr",
        "source_psnr",
        "psnr_inside",
        "source_psnr_inside",
        "psnr_outside",
        "warping_error",
        "truth_warping_error",
        "boundary_jump",
        "seam_jump",
    )
    judged = values["nearest_of"]
    nearest = "-" if judged is None else f"{values['nearest_own']}/{judged}"
    return name, str(values["samples"]), *(_number(values.get(column)) for column in columns), nearest


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mean(values: Iterable[float | None]) -> float | None:
    """Of the values that are there; None where there are none."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None

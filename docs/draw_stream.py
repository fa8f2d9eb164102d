"""Draws docs/images/stream.png: which frames a chunk takes in and what it reads of the chunks before it."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT, GDN, SINK, WINDOW, NOW = "#1f2933", "#8a94a3", "#2f7d6d", "#b7791f", "#4c6fb1", "#c2453d"
CHUNKS = [(0, 5), (5, 8), (8, 11), (11, 14), (14, 17)]
CURRENT = 4


def box(axes, x, y, width, height, text, face, edge=None, color="white", size=10):
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", fc=face, ec=edge or face, lw=1.5
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=color, fontsize=size)


def arrow(axes, start, end, color, bend=0.0, style="-|>"):
    line = FancyArrowPatch(
        start, end, connectionstyle=f"arc3,rad={bend}", arrowstyle=style, mutation_scale=14, color=color, lw=1.8
    )
    axes.add_patch(line)


def chunk_face(index):
    if index == CURRENT:
        return NOW
    return SINK if index == 0 else WINDOW if index == CURRENT - 1 else SOFT


def main():
    figure, axes = plt.subplots(figsize=(12, 5.2), dpi=130)
    axes.set_xlim(-0.3, 20.6)
    axes.set_ylim(-0.4, 8.1)
    axes.axis("off")
    for index, (start, stop) in enumerate(CHUNKS):
        pixels = "33 frames" if index == 0 else "24 frames"
        box(axes, start + 0.06, 6.6, stop - start - 0.12, 0.85, pixels, "white", SOFT, INK)
        label = f"chunk {index}" + (" (sink)" if index == 0 else "")
        box(axes, start + 0.06, 3.9, stop - start - 0.12, 0.95, label, chunk_face(index))
        arrow(axes, ((start + stop) / 2, 6.55), ((start + stop) / 2, 4.92), SOFT)
        box(axes, start + 0.06, 0.1, stop - start - 0.12, 0.85, "edited", "white", chunk_face(index), INK)
        if index != CURRENT:
            arrow(axes, ((start + stop) / 2, 3.85), ((start + stop) / 2, 1.0), SOFT)
        if index:
            arrow(axes, (start - 0.35, 3.86), (start + 0.35, 3.86), GDN, bend=0.9)
    middle = sum(CHUNKS[CURRENT]) / 2
    arrow(axes, (2.5, 4.9), (middle - 0.2, 4.9), SINK, bend=-0.16)
    arrow(axes, (12.5, 4.9), (middle - 0.5, 4.9), WINDOW, bend=-0.42)
    arrow(axes, (middle, 3.85), (middle, 1.0), NOW)
    axes.text(-0.25, 7.75, "source video, as it comes", fontsize=11, color=INK, weight="bold")
    for y, text in ((6.1, "causal VAE encode, caches carried"), (2.2, "causal VAE decode, caches carried")):
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(8, y, text, fontsize=9, color=SOFT, style="italic", ha="center", bbox=ground, zorder=3)
    notes = [
        (6.75, NOW, "4 denoising passes,\nthen one at t = 0 that\nwrites the state"),
        (5.15, SINK, "softmax blocks read the\nkeys and values of the sink"),
        (4.1, WINDOW, "and of the last chunk"),
        (2.7, GDN, "GDN blocks carry one\nmatrix per head, and every\nblock its last frame"),
        (0.25, INK, "memory does not grow\nwith the length"),
    ]
    for y, color, text in notes:
        axes.text(17.25, y, text, fontsize=9.5, color=color, va="bottom")
    target = Path(__file__).parent / "images" / "stream.png"
    figure.savefig(target, bbox_inches="tight", facecolor="white")
    print(target)


if __name__ == "__main__":
    main()

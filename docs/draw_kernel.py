"""Draws the figures of the CPU kernel: rows in one pass (kernel_rows.png), bands in a vector (kernel_lanes.png)."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROWS = 30
LOADED = 24
"""Rows read so far."""
RADIUS = 5
STAGES = (
    # title, first and last row that this stage holds or has finished, colour, what happens there
    ("x, y  ->  ring of u, v", LOADED - 11, LOADED - 1, "#4c72b0", "11 rows around the row of moments"),
    (
        "moments, SSIM",
        LOADED - 1 - RADIUS,
        LOADED - 1 - RADIUS,
        "#dd8452",
        "one row: filter along columns,\nalong the row",
    ),
    (
        "ring of partials",
        LOADED - 11 - RADIUS,
        LOADED - 1 - RADIUS,
        "#937860",
        "11 rows around the next row\nof the gradient",
    ),
    ("gradient", 0, LOADED - 1 - 2 * RADIUS, "#55a868", "finished, 10 rows behind the loads"),
)


FIGURES = Path(__file__).parent / "figures"
LANES = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


def rows() -> None:
    figure = Figure(figsize=(9.2, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for column, (title, first, last, colour, note) in enumerate(STAGES):
        left = 1.5 * column
        for row in range(ROWS):
            filled = first <= row <= last
            face = colour if filled else "#f4f4f4"
            axes.add_patch(Rectangle((left, row), 1, 0.9, facecolor=face, edgecolor="white"))
        axes.text(left + 0.5, -0.7, title, ha="center", va="bottom", fontsize=9)
        axes.text(left + 0.5, ROWS + 0.5, note, ha="center", va="top", fontsize=7.5, color="#444444")
    axes.annotate(
        "",
        (-0.25, ROWS),
        (-0.25, 0),
        arrowprops={"arrowstyle": "->", "color": "#444444"},
    )
    axes.text(
        -0.4, ROWS / 2, "rows of the map, in the order of the march", rotation=90, ha="right", va="center", fontsize=8
    )
    axes.set_xlim(-0.8, 1.5 * len(STAGES))
    axes.set_ylim(ROWS + 3, -2)
    axes.set_axis_off()
    figure.savefig(FIGURES / "kernel_rows.png", dpi=110)


def lanes() -> None:
    """Four maps of two bands each: eight lanes, whose n-th pixels make the n-th vector."""
    figure = Figure(figsize=(9.2, 3.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    side, band_rows, at = 8, 4, (2, 5)
    for plane in range(4):
        left = plane * (side + 1.5)
        for row in range(side):
            for column in range(side):
                lane = 2 * plane + row // band_rows
                chosen = (row % band_rows, column) == at
                face, edge = (LANES[lane], "black") if chosen else (LANES[lane] + "55", "white")
                axes.add_patch(Rectangle((left + column, row), 0.92, 0.92, facecolor=face, edgecolor=edge))
        axes.text(left + side / 2, -0.5, f"map {plane}", ha="center", va="bottom", fontsize=9)
    middle = (4 * (side + 1.5) - 1.5) / 2
    for lane, colour in enumerate(LANES):
        left = middle + 1.6 * (lane - len(LANES) / 2)
        axes.add_patch(Rectangle((left, side + 1.8), 1.5, 1.5, facecolor=colour, edgecolor="black"))
    axes.text(middle, side + 3.6, "one vector: the same pixel of every band", ha="center", va="top", fontsize=9)
    axes.set_xlim(-0.5, 4 * (side + 1.5) - 1)
    axes.set_ylim(side + 5, -2)
    axes.set_aspect("equal")
    axes.set_axis_off()
    figure.savefig(FIGURES / "kernel_lanes.png", dpi=110)


if __name__ == "__main__":
    rows()
    lanes()

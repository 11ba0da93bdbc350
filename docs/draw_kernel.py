"""Draws figures/kernel_rows.png: where the rows of a map are in one pass of the CPU kernel."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROWS = 30
LOADED = 24
"""Rows read so far."""
RADIUS = 5
STAGES = (
    # title, first and last row that this stage holds or has finished, colour, what happens there
    ("x, y  ->  ring of u, v", LOADED - 11, LOADED - 1, "#4c72b0", "11 rows around the next row of moments"),
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


def main() -> None:
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
    figure.savefig(Path(__file__).parent / "figures" / "kernel_rows.png", dpi=110)


if __name__ == "__main__":
    main()

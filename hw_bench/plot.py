"""Pictures of what was measured, as SVG that stands alone."""

from collections.abc import Sequence

LABELS_MAX = 13


def curve(title: str, values: Sequence[float], per_x: int) -> bytes:
    """A curve of `values`, of which `per_x` make one unit of the x axis."""
    import pygal  # for those who want a picture

    units = max(1, len(values) // per_x)
    step = max(1, units // (LABELS_MAX - 1))
    chart = pygal.XY(
        title=title, width=1200, height=400, show_legend=False, show_dots=False, fill=True, js=(), no_prefix=True,
        xrange=(0, units),
    )  # fmt: skip
    chart.x_labels = list(range(0, units + 1, step))
    chart.add("", [(number / per_x, value) for number, value in enumerate(values)])
    return bytes(chart.render())

"""The plots of a run's report, as SVG whose colors the page decides."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from boli.evaluation.units import size

Figures = Mapping[str, Any]

WIDTHS = {"wide": 720, "narrow": 340}  # pixels; the page shows the one that fits
PLOTS = ("curve", "loss", "norm", "direction", "bytes", "timeline")
STRIP, BAR, TEXT = 48, 10, 12  # pixels: a site's strip in a plot, a bar in it, letters
KINDS = (("idle", 0.6, 2), ("evaluate", 0.45, 12), ("train", 1.0, 12))  # opacity, pixels
UNITS = ((1, "seconds"), (60, "minutes"), (3600, "hours"), (86400, "days"))
MARKERS = "os^DvP"
NUM_COLORS = 10
COLORS = ("ink", "muted", "grid", "paper", *(f"series{k}" for k in range(NUM_COLORS)))


def plots(figures: Figures, colors: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return plot to width to SVG; none for a plot that would be empty."""
    import matplotlib

    curve = {
        code: [(version, value) for version, _, value in points if value is not None]
        for code, points in figures["curve"].items()
    }
    loss = {
        code: [
            (step["version"], step["loss"][code])
            for step in figures["rounds"]
            if step["loss"].get(code) is not None
        ]
        for code in colors
    }
    names = {name: f"series{k % NUM_COLORS}" for k, name in enumerate(figures["sites"])}
    norm, direction = (
        {
            name: [(each[0], each[column]) for each in rounds if each[column] is not None]
            for name, rounds in _comparisons(figures).items()
        }
        for column in (1, 3)
    )
    norm = {name: [(x, y) for x, y in points if y > 0] for name, points in norm.items()}
    found: dict[str, dict[str, str]] = {plot: {} for plot in PLOTS}
    for name, width in WIDTHS.items():
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # not what a matplotlibrc on this machine says
            matplotlib.rcParams |= {"svg.fonttype": "none", "path.simplify": False}
            drawn = {
                "curve": _lines(curve, colors, width),
                "loss": _lines(loss, colors, width),
                "norm": _lines(norm, names, width, logarithmic=True),
                "direction": _lines(direction, names, width),
                "bytes": _bars(figures["sites"], colors, width),
                "timeline": _timeline(figures, colors, width),
            }
            for plot, figure in drawn.items():
                if figure is not None:
                    matplotlib.rcParams["svg.hashsalt"] = f"{plot} {name}"  # ids differ on a page
                    found[plot][name] = _svg(figure)
    return found


def _comparisons(figures: Figures) -> dict[str, Any]:
    return {name: site["comparison"]["rounds"] for name, site in figures["sites"].items()}


def _sentinel(color: str) -> str:
    """Return the color that stands in a figure for one of the page's own."""
    return f"#0a1b{COLORS.index(color):02x}"


def _axes(width: int, height: int, left: int, right: int, bottom: int) -> tuple[Any, Any]:
    """Return a figure and its axes; lengths are pixels, and an inch has 72 of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    spans = ((width - left - right) / width, (height - 8 - bottom) / height)
    axes = figure.add_axes((left / width, bottom / height, *spans))
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=6, labelsize=TEXT, labelcolor=_sentinel("muted"))
    return figure, axes


def _svg(figure: Any) -> str:
    """Return a figure as inline SVG; its colors become the page's CSS variables."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return re.sub(r"#0a1b(\w\w)", lambda found: f"var(--{COLORS[int(found[1], 16)]})", svg)


def _lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    colors: Mapping[str, str],
    width: int,
    *,
    logarithmic: bool = False,
) -> Any:
    """Draw one line a language or site over versions, its name at its end."""
    from matplotlib.ticker import MaxNLocator

    series = {code: points for code, points in series.items() if points}
    if max(map(len, series.values()), default=0) < 2:
        return None  # a point is no line
    height = 140 + width // 5
    right = min(width // 3, 23 + 7 * max(map(len, series)))
    figure, axes = _axes(width, height, 38, right, 42)
    few = max(map(len, series.values())) <= width // 24
    for number, (code, points) in enumerate(series.items()):
        marker = MARKERS[number % len(MARKERS)] if few else ""
        x, y = zip(*points, strict=True)
        axes.plot(x, y, f"{marker}-", color=_sentinel(colors[code]), lw=2, ms=6)
    axes.margins(x=0.02, y=0.08)
    axes.grid(axis="y", color=_sentinel("grid"), lw=1)
    axes.xaxis.set_major_locator(MaxNLocator(width // 60, integer=True, min_n_ticks=1))
    if logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.tick_params(which="minor", length=0)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("round", fontsize=TEXT, color=_sentinel("muted"))
    axes.get_ylim()  # settles the limits, on which the next line depends
    ends = sorted(
        (axes.transData.transform(points[-1])[1], code) for code, points in series.items()
    )
    places = _apart([end for end, _ in ends], TEXT + 1)
    for place, (_, code) in zip(places, ends, strict=True):
        style = {"color": _sentinel(colors[code]), "fontsize": TEXT, "va": "center"}
        figure.text((width - right + 8) / width, place / height, code, weight="bold", **style)
    return figure


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Move ascending positions at least `gap` apart, and as little as that takes."""
    groups: list[list[float]] = []  # of what each would be without the gaps below it
    for index, position in enumerate(wanted):
        groups.append([position - gap * index])
        while len(groups) > 1 and fmean(groups[-2]) > fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    level = [fmean(group) for group in groups for _ in group]
    return [position + gap * index for index, position in enumerate(level)]


def _strips(sites: Figures, colors: Mapping[str, str], width: int, bottom: int) -> Any:
    """Return a figure and axes with a named strip for each site; y is in pixels, downward."""
    height = STRIP * len(sites)
    figure, axes = _axes(width, height + 8 + bottom, 5, 12, bottom)
    axes.set_ylim(height, 0)
    axes.set_yticks([])
    for number, (name, site) in enumerate(sites.items()):
        place = (0, STRIP * number + TEXT / 2)
        label = axes.annotate(name, place, xycoords=("axes fraction", "data"), fontsize=TEXT)
        label.set(va="center", color=_sentinel(colors[site["language"]]), weight="bold")
    return figure, axes


def _bars(sites: Figures, colors: Mapping[str, str], width: int) -> Any:
    """Draw the bytes that went up (full color) and down (pale) at each site."""
    most = max(max(site["bytes_up"], site["bytes_down"]) for site in sites.values())
    if not most:
        return None
    figure, axes = _strips(sites, colors, width, 0)
    axes.set_xlim(0, most * (width - 17) / (width - 17 - 76))  # leaves 76 pixels for the figure
    axes.set_xticks([])
    for number, site in enumerate(sites.values()):
        for half, (key, alpha) in enumerate((("bytes_up", 1.0), ("bytes_down", 0.45))):
            y = STRIP * number + TEXT + 10 + half * (BAR + 3)
            color = _sentinel(colors[site["language"]])
            axes.barh(y, site[key], BAR, color=color, alpha=alpha, lw=0)
            place = {"xytext": (5, -0.5), "textcoords": "offset pixels", "va": "center"}
            note = axes.annotate(size(site[key]), (site[key], y), fontsize=TEXT - 1, **place)
            note.set_color(_sentinel("ink"))
    return figure


def _timeline(figures: Figures, colors: Mapping[str, str], width: int) -> Any:
    """Draw who did what when; the time in which the run was stopped is cut out."""
    from matplotlib.ticker import MaxNLocator

    sites, stops = figures["sites"], figures["interruptions"]
    gaps = [(stop["stopped"], stop["resumed"]) for stop in stops if stop["resumed"] is not None]
    if not any(figures["timeline"].values()):
        return None
    length, name = max(
        (length, name) for length, name in UNITS if length == 1 or figures["seconds"] > 5 * length
    )

    def at(seconds: float) -> float:
        cut: float = sum(max(0.0, min(seconds, resumed) - stopped) for stopped, resumed in gaps)
        return (seconds - cut) / length

    figure, axes = _strips(sites, colors, width, 42)
    ends = [at(span["end"]) for lane in figures["timeline"].values() for span in lane]
    axes.set_xlim(0, max(ends) or 1)
    axes.grid(axis="x", color=_sentinel("grid"), lw=1)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(width // 60))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(name, fontsize=TEXT, color=_sentinel("muted"))
    for number, (site, lane) in enumerate(figures["timeline"].items()):
        color, y = _sentinel(colors[sites[site]["language"]]), STRIP * number + TEXT + 15
        for kind, alpha, thickness in KINDS:
            spans = [(at(s["start"]), at(s["end"])) for s in lane if s["kind"] == kind]
            paint = color if kind != "idle" else _sentinel("muted")
            _dashes(axes, spans, y, color=paint, alpha=alpha, lw=thickness)
    for stopped, _ in gaps:
        axes.axvline(at(stopped), color=_sentinel("ink"), lw=1.5, ls=(0, (3, 3)))
    return figure


def _dashes(axes: Any, ends: Sequence[tuple[float, float]], y: float, **style: Any) -> None:
    """Draw any number of spans as one path, so that a long run stays a small page."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    if ends:
        corners = [(x, y) for pair in ends for x in pair]
        codes = [Outline.MOVETO, Outline.LINETO] * len(ends)
        axes.add_patch(PathPatch(Outline(corners, codes), fill=False, capstyle="butt", **style))

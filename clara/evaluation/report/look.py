"""What pictures look like: colours for light and dark pages, markers, and the upright axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clara.evaluation.report.records import Entry, rate_apart
from clara.reports.drawing import LOOK

DPI = 200
WIDTH = 7.2
"""Of a picture in inches, each of which is 100 CSS pixels on the page."""


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: of the ground, of what is written on it, and of what is drawn.

    Attributes:
        colours: Okabe and Ito's, which colour-blind readers can tell apart; on a dark ground the
            dark ones are lighter.
    """

    ground: str
    ink: str
    soft: str
    colours: tuple[str, ...]

    @property
    def settings(self) -> dict[Any, Any]:
        """The settings of matplotlib."""
        names = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
        grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        return {
            **LOOK,
            "font.size": 10.5,
            "axes.titlesize": 10.5,
            "axes.labelsize": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": self.soft,
            "grid.color": self.soft,
            **dict.fromkeys(names, self.ink),
            **dict.fromkeys(grounds, self.ground),
        }


LIGHT = Theme(
    "#ffffff",
    "#1f2328",
    "#7d8590",
    ("#0072B2", "#C77700", "#007F5F", "#B0568C", "#3A9BD1", "#C24E00", "#7A5B28", "#57606a"),
)
DARK = Theme(
    "#14181d",
    "#e6e9ec",
    "#7d8590",
    ("#5AB4F0", "#F0B040", "#3DC79D", "#E3A0C8", "#9AD4F5", "#FF8A4C", "#C9A86A", "#a3adb8"),
)

_WHOLE = {"clip_on": False, "zorder": 3.0}  # a marker at 0 is drawn whole, over the axis

_SYSTEMS = (
    "clara",
    "text",
    "text-tuned",
    "lead",
    "sentences",
    "llmlingua2",
    "prefix-cache",
    "closed-book",
)
_LINES = ("-", "--", ":", "-.")
_RANKERS = ("clara", "bm25", "minilm", "contrastive", "", "", "gold", "random")
_MARKERS = {
    "clara": "D",
    "bm25": "o",
    "minilm": "s",
    "contrastive": "v",
    "gold": "^",
    "random": "P",
}


def entry_style(entry: Entry, theme: Theme) -> dict[str, Any]:
    """Colour by system, marker by ranker, hollow if the answers do not come from memory.

    Controls are grey and dashed.
    """
    system = entry.system.partition("+")[0]
    place = _SYSTEMS.index(system) if system in _SYSTEMS else 3
    colour = theme.soft if entry.control is not None else theme.colours[place]
    hollow = entry.mark or entry.control is not None
    return {
        "color": colour,
        "marker": _MARKERS.get(entry.ranker_kind or "", "o"),
        "markersize": 6.5,
        "markerfacecolor": theme.ground if hollow else colour,
        **_WHOLE,
        "linestyle": "--" if entry.control is not None else "-",
    }


def ranker_style(name: str, theme: Theme, before: int = 0) -> dict[str, Any]:
    """Colour and marker of a ranker, and the line.

    Args:
        before: how many rankers of the picture have the same name but for the rate.
    """
    kind, _ = rate_apart(name)
    place = _RANKERS.index(kind) if kind in _RANKERS else 4
    return {
        "color": theme.colours[place],
        "marker": _MARKERS.get(kind, "o"),
        "linestyle": _LINES[before % len(_LINES)],
        "markersize": 6.5,
        **_WHOLE,
    }


def share_axis(axis: Any, highest: float, label: str) -> None:
    """Upright, in per cent, from 0 to what is needed, which is at least a tenth."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    top = min(1.02, max(0.1, 1.12 * highest))
    axis.set_ylim(0, top)
    axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axis.set_ylabel(label)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)

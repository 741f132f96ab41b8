"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei"),
    *(
        "WenQuanYi Zen Hei",
        "Microsoft YaHei",
        "SimHei",
        "PingFang SC",
        "Hiragino Sans GB",
        "Heiti SC",
        "AR PL UMing CN",
    ),
)
MAX_NUMBERS = 25
"""With more classes the cells have colours only."""


def has_matplotlib() -> bool:
    """Called before a long run, not after it."""
    return find_spec("matplotlib") is not None


def draw(counts: Mapping[str, Mapping[str, int]], file: Path) -> list[str]:
    """Draws rows of expected classes and columns of chosen ones, coloured by their share of the row.

    Without a font for Chinese the classes are numbered; the sentences that are returned say which is which.
    """
    import matplotlib as mpl  # takes a second, and only this needs it
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    chosen = list(next(iter(counts.values())))
    names = {name: name for name in chosen}
    known = {font.name for font in font_manager.fontManager.ttflist}
    font = next((name for name in CHINESE_FONTS if name in known), None)
    notes = []
    if font is None and not all(name.isascii() for name in chosen):
        names = {name: str(index) for index, name in enumerate(chosen, start=1)}
        notes = ["no font for Chinese was found: the classes in the picture are numbered"]
        notes += [f"  {index}: {name}" for name, index in names.items()]
    size = max(4.0, 1.5 + 0.45 * len(chosen))
    with mpl.rc_context({"font.family": [font, "DejaVu Sans"] if font else ["DejaVu Sans"]}):
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        axes = figure.subplots()
        shares = [[row[name] / max(sum(row.values()), 1) for name in chosen] for row in counts.values()]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(chosen)), names.values(), rotation=90)
        axes.set_yticks(range(len(counts)), [names[name] for name in counts])
        axes.set(xlabel="answer of the model", ylabel="right answer")
        for index, row in enumerate(counts.values() if len(chosen) <= MAX_NUMBERS else ()):
            for place, name in enumerate(chosen):
                colour = "white" if shares[index][place] > 0.5 else "black"
                axes.text(place, index, str(row[name]), ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, label="share of the row")
        figure.savefig(file, format="png", dpi=120)
    return notes

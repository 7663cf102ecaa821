"""The look that all figures have.

Imports nothing of the library; the other modules of `plots` import it.
"""

from __future__ import annotations

import plotly.graph_objects as go

# Okabe and Ito's colours without the yellow, which is lost on white; told apart by colour-blind readers.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY = PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#767676",
)
HEIGHT = 420  # pixels


def styled(
    figure: go.Figure, title: str | None, *, x: str | None, y: str | None, height: int | None = None
) -> go.Figure:
    """Give a figure the look that all have; None keeps a title, or the height, that is there."""
    figure.update_layout(
        template="plotly_white",
        colorway=list(PALETTE),
        font={"size": 13},
        height=height or figure.layout.height or HEIGHT,
        margin={"l": 75, "r": 25, "t": 60, "b": 60},
        hoverlabel={"namelength": -1},
    )
    figure.update_layout(
        title={"x": 0.01, "xanchor": "left", "y": None, "yanchor": None, "yref": None, "font": {"size": 17}}
    )
    if title is not None:
        figure.update_layout(title_text=title)
    if x is not None:
        figure.update_xaxes(title_text=x)
    if y is not None:
        figure.update_yaxes(title_text=y)
    return figure


def sentence(title: str, sentence: str) -> go.Figure:
    """Figure that says why there is nothing to see."""
    figure = go.Figure()
    figure.add_annotation(
        text=sentence,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        showarrow=False,
        font={"size": 15, "color": GREY},
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return styled(figure, title, x=None, y=None, height=220)

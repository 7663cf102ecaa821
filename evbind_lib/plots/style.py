"""The look that all figures have."""

import plotly.graph_objects as go
import plotly.io

# Okabe and Ito's colours without the yellow, which is lost on white; they differ for colour-blind readers, and each can be
# read on white and on the black of a dark template.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#767676"
PALETTE = [BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY]
SCALE = [ORANGE, "#8FA08C", BLUE]  # from low to high
INK = "#222222"  # of text on a ground of its own, which is light in a dark template too


def marker(position: int, size: int = 8) -> dict[str, object]:
    """Colour and symbol of a fold or a model by its position."""
    return {"color": PALETTE[position % len(PALETTE)], "symbol": position % 8, "size": size}


def whole_steps(most: int) -> int | None:
    """``dtick`` of an axis that counts so far: 1, or plotly's own choice where that would be too many."""
    return 1 if most <= 15 else None


def styled(figure: go.Figure, title: str, caption: str, *, x: str = "", y: str = "", height: int = 420) -> go.Figure:
    """Give a figure its title, the caption beneath it, names of the axes, height in pixels and the look that all have."""
    chosen = plotly.io.templates.default  # "plotly" unless the user chose another one
    figure.update_layout(template="plotly_white" if chosen == "plotly" else chosen, colorway=PALETTE, font_size=13)
    figure.update_layout(title_text=title, title_x=0.01, title_xanchor="left", title_font_size=17, height=height)
    subtitle = {"text": caption, "font": {"size": 13, "color": GREY}}
    margin = {"l": 75, "r": 25, "t": 85 if caption else 60, "b": 60}
    figure.update_layout(title_subtitle=subtitle, hoverlabel_namelength=-1, margin=margin)
    figure.update_xaxes({"title_text": x} if x else {})
    figure.update_yaxes({"title_text": y} if y else {})
    return figure


def sentence(title: str, text: str) -> go.Figure:
    """Figure that says why there is nothing to see."""
    figure = go.Figure(layout={"xaxis_visible": False, "yaxis_visible": False})
    font = {"size": 15, "color": GREY}
    figure.add_annotation(text=text, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font=font)
    return styled(figure, title, "", height=220)

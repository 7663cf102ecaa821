"""Figure of a search with several objectives: what one of them costs in another.

Imports `objectives` and its neighbours `axes` and `style`; `plots` gives its function on.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
import plotly.graph_objects as go

from evbind_lib.hpo.objectives import complete_trials, is_feasible, names_of, pareto_front
from evbind_lib.plots.axes import objective_label
from evbind_lib.plots.style import BLUE, GREY, VERMILION, sentence, styled


def pareto(study: optuna.Study, names: Sequence[str] | None = None) -> go.Figure:
    """Two objectives of each complete trial, and the Pareto front: the trials that no other one beats in all objectives.

    Parameters
    ----------
    study : optuna.Study
        With two objectives or more.
    names : sequence of str, optional
        The objectives to show, first the one upwards; by default the first two. The front is always that of all.

    Returns
    -------
    plotly.graph_objects.Figure
        A trial outside ``hpo.constraints`` is drawn open and is never on the front.

    Raises
    ------
    ValueError
        When the study has no objective of that name.
    """
    title = "Pareto front"
    known = names_of(study)
    up, across = names or known[:2] if len(known) > 1 else (known[0], known[0])
    for name in (up, across):
        if name not in known:
            raise ValueError(f"the study has no objective {name}; known are {', '.join(known)}")
    if len(known) < 2:
        return sentence(title, "A Pareto front needs a search with several objectives.")
    trials = complete_trials(study)
    if not trials:
        return sentence(title, "No trial is complete yet.")
    x, y = known.index(across), known.index(up)
    front = sorted(pareto_front(study), key=lambda trial: (trial.values[x], trial.number))
    on_front = {trial.number for trial in front}
    others = [trial for trial in trials if trial.number not in on_front]
    groups = {
        "outside the bounds": [trial for trial in others if not is_feasible(trial)],
        "complete": [trial for trial in others if is_feasible(trial)],
        "Pareto front": front,
    }
    looks = {
        "outside the bounds": {"color": GREY, "size": 8, "symbol": "circle-open"},
        "complete": {"color": BLUE, "size": 8},
        "Pareto front": {"color": VERMILION, "size": 11},
    }
    figure = go.Figure()
    for group, members in groups.items():
        if not members:
            continue
        told = [
            "<br>".join([f"trial {trial.number}", *(f"{n} {v:.4g}" for n, v in zip(known, trial.values, strict=True))])
            for trial in members
        ]
        figure.add_scatter(
            x=[trial.values[x] for trial in members],
            y=[trial.values[y] for trial in members],
            mode="lines+markers" if group == "Pareto front" and len(known) == 2 else "markers",
            line={"color": VERMILION, "width": 1.5, "dash": "dot"},
            marker=looks[group],
            name=group,
            meta=[trial.number for trial in members],
            text=told,
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_layout(showlegend=True)
    labels = (objective_label(study, across), objective_label(study, up))
    return styled(figure, f"Pareto front of {up} and {across}", x=labels[0], y=labels[1])

"""Post-processing in words and in numbers, for whoever reads a night."""

from __future__ import annotations

from kronos_model.postprocess import PostProcess, Spread

__all__ = ["figures", "in_words", "steps_in_words"]


def in_words(postprocess: PostProcess) -> str:
    """What serving does to the paths of a network, in one sentence."""
    parts = [
        f"drawn at temperature {postprocess.temperature:g}, top-k {postprocess.top_k}, top-p {postprocess.top_p:g}",
        f"the median's move kept by {_range(list(postprocess.location))}",
        "pooled with weights "
        + ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in postprocess.pool.items()),
        _spread_in_words(postprocess.spread),
    ]
    return f"{'; '.join(parts)}; fitted on {postprocess.origins} validation origins"


def steps_in_words(postprocess: PostProcess) -> list[str]:
    """What was tried on held-out validation origins, what was kept, and why."""
    return [
        f"{one.name} {'is kept' if one.kept else 'is left out'}: {one.reason}" for one in postprocess.steps
    ]


def figures(postprocess: PostProcess) -> dict[str, float]:
    """Numbers to be followed over nights, such as postprocess/weight/network."""
    found = {f"weight/{name}": weight for name, weight in postprocess.pool.items()}
    found |= {f"location/{at}": share for at, share in enumerate(postprocess.location, start=1)}
    found |= {"temperature": postprocess.temperature, "top_p": postprocess.top_p}
    if postprocess.spread is not None:
        for level, factors in zip(postprocess.spread.levels, postprocess.spread.factors, strict=True):
            found[f"spread/{100 * level:.0f}"] = sum(factors) / len(factors)
    for step in postprocess.steps:
        name = step.name.replace(" ", "_")
        found[f"kept/{name}"] = float(step.kept)
        if step.before is not None and step.after is not None:
            found |= {f"before_bps/{name}": step.before, f"after_bps/{name}": step.after}
    return {f"postprocess/{name}": value for name, value in found.items()}


def _spread_in_words(spread: Spread | None) -> str:
    if spread is None:
        return "its spread as it is"
    return f"its spread scaled by {_range([one for row in spread.factors for one in row])}"


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"

"""Post-processing in words and in numbers, for whoever reads a night."""

from __future__ import annotations

from kronos_model.postprocess import PostProcess

__all__ = ["figures", "steps_in_words"]


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

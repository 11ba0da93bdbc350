"""The ways to train a student that a comparison holds against each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kd.losses import LOSSES

#: Weights that the rivals' authors use on the FPN of RetinaNet (PKD's in mmrazor's configurations). The paper's losses
#: take the configuration's weight.
RIVAL_WEIGHTS = {"pkd": 10.0, "cwd": 10.0}
#: Losses on features rescaled by psi, which share its options.
RESCALED = ("ssim", "l1", "l2")
PSI_OPTIONS = ("normalize", "detach_range")
TITLES = {"none": "student alone", "ssim": "SSIM", "l1": "L1", "l2": "L2", "pkd": "PKD", "cwd": "CWD"}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train the student."""

    name: str
    """Key in folder names and tables."""
    title: str
    """Name for people."""
    loss: str
    """Loss of :func:`kd.distill`."""
    weight: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the loss."""
    adapters: Literal["auto", "always", "never"] = "auto"

    def model_section(self) -> dict[str, Any]:
        """What this method sets in the ``model`` section of a configuration."""
        if self.loss == "none":
            # Nothing of the distillation is left, so that changing it does not concern the student alone.
            return {
                "loss": "none", "teacher": None, "weight": 0.0, "loss_options": None, "adapters": "auto",
                "level_map": None, "mask_padding": False,
            }  # fmt: skip
        return {
            "loss": self.loss,
            "weight": self.weight,
            "loss_options": dict(self.options),
            "adapters": self.adapters,
        }


def named_methods(names: Sequence[str], model: Mapping[str, Any], weights: Mapping[str, float]) -> list[Method]:
    """The methods ``names`` ("none" or a loss) as the ``model`` section of a configuration sets them.

    The section's own loss keeps its options and weight. Of the other losses, those on rescaled features share psi and
    the weight with it, PKD and CWD take :data:`RIVAL_WEIGHTS`; ``weights`` (loss -> lambda) goes before both.

    Raises:
        ValueError: an unknown name, a name given twice, or a weight of a loss that is not compared.
    """
    known = ("none", *LOSSES)
    for name in names:
        if name not in known:
            raise ValueError(f"--methods: got {name!r}, expected some of {', '.join(known)}")
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"--methods: got {','.join(names)!r}, expected at least one method, each once")
    if stray := set(weights) - (set(names) - {"none"}):
        raise ValueError(f"--weights: {', '.join(sorted(stray))} is not among the methods that distil")
    return [_method(name, model, weights) for name in names]


def _method(name: str, model: Mapping[str, Any], weights: Mapping[str, float]) -> Method:
    if name == "none":
        return Method(name="none", title=TITLES["none"], loss="none")
    own, given = model.get("loss"), dict(model.get("loss_options") or {})
    if name == own:
        options = given
    elif name in RESCALED and own in RESCALED:
        options = {key: given[key] for key in PSI_OPTIONS if key in given}
    else:
        options = {}
    weight = RIVAL_WEIGHTS.get(name, model["weight"]) if name != own else model["weight"]
    return Method(
        name=name,
        title=f"student + {TITLES[name]}",
        loss=name,
        weight=float(weights.get(name, weight)),
        options=options,
        adapters=model.get("adapters", "auto"),
    )


Sweep = Literal["exponents", "window", "weight", "psi", "adapters"]
WINDOWS = (3, 5, 7, 9, 11)
WEIGHTS = (0.5, 1.0, 2.0, 4.0, 8.0)
AXES = ("tensor", "sample", "channel", None)


def swept_methods(sweeps: Iterable[Sweep], model: Mapping[str, Any]) -> list[Method]:
    """The paper's ablations of the SSIM loss: the student alone, SSIM as configured, and what each sweep changes in it.

    * exponents: (alpha, beta, gamma), each 0 or 1, not all 0
    * window: 3, 5, 7, 9, 11 pixels; weight: .5, 1, 2, 4, 8
    * psi: minimum and maximum of the tensor, of the sample, of the channel, or no rescaling
    * adapters: on every level, or none

    A setting that several sweeps reach is trained once.

    Raises:
        ValueError: the configuration's loss is not "ssim".
    """
    if model.get("loss") != "ssim":
        raise ValueError(f"model.loss: got {model.get('loss')!r}; the ablations change parts of 'ssim'")
    base = _method("ssim", model, {})
    made = [_method("none", model, {}), base]
    for sweep in sweeps:
        made += [method for method in _sweep(sweep, base) if not any(_same(method, other) for other in made)]
    return made


def _sweep(sweep: Sweep, base: Method) -> list[Method]:
    if sweep == "exponents":
        choices = [c for c in itertools.product((1, 0), repeat=3) if any(c)]
        parts = "lcs"
        return [
            _changed(base, f"exponents-{''.join(map(str, c))}",
                     "SSIM of " + "*".join(p for p, e in zip(parts, c, strict=True) if e),
                     exponents=tuple(map(float, c)))
            for c in choices
        ]  # fmt: skip
    if sweep == "window":
        return [_changed(base, f"window-{w}", f"SSIM, window {w}", window_size=w) for w in WINDOWS]
    if sweep == "weight":
        return [replace(base, name=f"ssim-weight-{w:g}", title=f"SSIM, weight {w:g}", weight=w) for w in WEIGHTS]
    if sweep == "psi":
        return [
            _changed(base, f"psi-{a or 'off'}", f"SSIM, psi {f'per {a}' if a else 'off'}", normalize=a) for a in AXES
        ]
    return [
        replace(base, name="ssim-adapters-on", title="SSIM, adapters on", adapters="always"),
        replace(base, name="ssim-adapters-off", title="SSIM, adapters off", adapters="never"),
    ]


def _changed(base: Method, name: str, title: str, **options: Any) -> Method:
    return replace(base, name=f"ssim-{name}", title=title, options={**base.options, **options})


#: What the loss does where an option is not given.
_DEFAULTS = {"exponents": (1.0, 1.0, 1.0), "window_size": 11, "normalize": "channel"}


def _same(one: Method, other: Method) -> bool:
    def setting(method: Method) -> tuple[Any, ...]:
        options = {**_DEFAULTS, **method.options}
        options["exponents"] = tuple(map(float, options["exponents"]))
        return method.loss, method.weight, options, method.adapters

    return setting(one) == setting(other)

"""How often a joint is found: PCKh@0.5 and PCK@0.2, a joint and in the mean, over all and over upright people.

A joint counts as found where the predicted point is no further from the true one than a share of a length of that
person: half of the head (PCKh, Andriluka et al. 2014), or a fifth of the torso from left shoulder to right hip (Yang
and Ramanan 2013, as used on Leeds Sports Pose). Joints that are not visible, and people whose length is unknown, do
not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.pose.people import People, lengths

TORSO = ("left_shoulder", "right_hip")
TORSO_SHARE = 0.2
HEAD_SHARE = 0.5


@dataclass(frozen=True)
class Pck:
    """Percentages of joints found.

    Attributes
    ----------
    names : the joints; `found` and `counted` int64 [K] count people for each.
    unmeasured : joints that `mean` leaves out.
    """

    names: tuple[str, ...]
    found: NDArray[np.int64]
    counted: NDArray[np.int64]
    unmeasured: tuple[str, ...] = ()

    @property
    def per_joint(self) -> dict[str, float]:
        """Per cent of each joint's people; NaN where nobody counts."""
        pairs = zip(self.names, self.found.tolist(), self.counted.tolist(), strict=True)
        return {name: 100 * found / counted if counted else float("nan") for name, found, counted in pairs}

    @property
    def mean(self) -> float:
        """Per cent of all joints of all people; NaN where nothing counts."""
        measured = np.array([name not in self.unmeasured for name in self.names])
        counted = int(self.counted[measured].sum())
        return 100 * int(self.found[measured].sum()) / counted if counted else float("nan")


def pck(
    predicted: NDArray[np.floating],
    joints: NDArray[np.floating],
    visible: NDArray[np.bool_],
    length_px: NDArray[np.floating],
    share: float,
    names: Sequence[str],
    unmeasured: Sequence[str] = (),
) -> Pck:
    """Count the joints within `share` of each person's `length_px`.

    Parameters
    ----------
    predicted, joints : [N, K, 2] in one and the same pixels.
    visible : bool [N, K].
    length_px : [N]; people with NaN or 0 do not count.
    """
    known = np.nan_to_num(length_px) > 0
    counted = visible & known[:, None]
    distance = np.linalg.norm(np.asarray(predicted, float) - joints, axis=-1)
    with np.errstate(invalid="ignore"):
        found = counted & (distance <= share * length_px[:, None])
    return Pck(tuple(names), found.sum(axis=0), counted.sum(axis=0), tuple(unmeasured))


@dataclass(frozen=True)
class PoseScores:
    """All figures of one measurement, in per cent; `ap` (of OKS) where the data set has it.

    `pck` is PCK@0.2 of the torso, `pckh` PCKh@0.5; the dictionaries have the keys `all` and `upright`.
    """

    people: int
    pck: dict[str, Pck]
    pckh: dict[str, Pck]
    ap: dict[str, float] | None = None

    def values(self) -> dict[str, float]:
        """Name -> per cent, those that are known: `pck`, `pck_upright`, `pckh`, `pckh_upright`, `ap`, `ap50`, ..."""
        found = {}
        for name, by_group in (("pck", self.pck), ("pckh", self.pckh)):
            for group, value in by_group.items():
                found[name if group == "all" else f"{name}_{group}"] = value.mean
        for name, percent in (self.ap or {}).items():
            found[name] = percent
        return {name: value for name, value in found.items() if value == value}

    def table(self) -> str:
        """A line a joint: PCK and PCKh over all and over upright people."""
        columns = [
            (f"{title} {group}", by_group[group])
            for title, by_group in (("PCK@0.2", self.pck), ("PCKh@0.5", self.pckh))
            for group in by_group
            if by_group[group].counted.any()
        ]
        names = columns[0][1].names if columns else ()
        width = max((len(name) for name in (*names, "mean")), default=0)
        lines = [" " * width + "".join(f"  {title:>16}" for title, _ in columns)]
        rows = [[column.per_joint for _, column in columns]]
        lines += [f"{name:<{width}}" + "".join(f"  {cell[name]:>16.1f}" for cell in rows[0]) for name in names]
        lines.append(f"{'mean':<{width}}" + "".join(f"  {column.mean:>16.1f}" for _, column in columns))
        return "\n".join(lines)

    def __str__(self) -> str:
        titles = {"pck": "PCK@0.2", "pckh": "PCKh@0.5", "ap": "OKS-AP", "ar": "OKS-AR"}
        parts = []
        for name, value in self.values().items():
            kind, _, group = name.partition("_")
            if kind in titles:
                parts.append(f"{titles[kind]}{' ' + group if group else ''} {value:.2f} %")
        return "  ".join([*parts, f"n = {self.people}"])


def score(
    predicted: NDArray[np.floating],
    people: People,
    unmeasured: Sequence[str] = (),
    ap: dict[str, float] | None = None,
) -> PoseScores:
    """Measure predicted points [N, K, 2], in pixels of the people's pictures."""
    torso = lengths(people.joints, people.visible, people.keypoints, TORSO)
    groups = {"all": np.ones(len(people), bool), "upright": people.upright}

    def measure(length_px: NDArray[np.float64], share: float, left_out: Sequence[str]) -> dict[str, Pck]:
        return {
            name: pck(
                predicted[chosen],
                people.joints[chosen],
                people.visible[chosen],
                length_px[chosen],
                share,
                people.keypoints.names,
                left_out,
            )
            for name, chosen in groups.items()
        }

    return PoseScores(len(people), measure(torso, TORSO_SHARE, ()), measure(people.head_px, HEAD_SHARE, unmeasured), ap)

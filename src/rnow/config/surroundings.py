"""What a chat template or a tool could read of the world: the same for a run, for its resumption
and for its evaluations, whenever and wherever these are.

The day is a constant, and not the one on which a run begins: two runs of one project are the same
to the bit, also where one begins tomorrow. It is kept with the run all the same, since a later
version of rnow may have another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

TODAY = date(2025, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Surroundings(today=date(2025, 1, 1), environ={"TZ": "UTC", "LC_ALL": "C.UTF-8", …})"""

    today: date = TODAY  # of chat templates
    # Of tools.py and rewards.py, over whatever else would name these; {}: as the project says now.
    environ: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {"today": self.today.isoformat(), "environ": dict(self.environ)}

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> "Surroundings":
        return cls(today=date.fromisoformat(kept["today"]), environ=kept["environ"])

    def line(self) -> str:
        """Say what tools read."""
        named = ", ".join(f"{name}={value}" for name, value in self.environ.items())
        return f"tools run with {named}: in this run, its resumption and its evaluations"

    def changes(self, now: "Surroundings") -> tuple[str, ...]:
        """Return a line for each thing that is another one now, and stays as it was."""
        was, is_ = self._flat(), now._flat()
        return tuple(
            f"{name} stays {was[name]!r}, as the run began; now it would be {is_.get(name)!r}"
            for name in was
            if was[name] != is_.get(name)
        )

    def _flat(self) -> dict[str, str]:
        return {"the day in prompts": self.today.isoformat(), **self.environ}

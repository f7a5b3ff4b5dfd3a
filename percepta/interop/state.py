"""Foreign weights by name, each taken once, with errors that say what was expected."""

import re

from torch import Tensor

WRAPPERS = ("", "ema.", "model.", "state_dict.", "model_state_dict.", "module.", "ema.module.", "model.module.")


class State:
    """A state dict whose tensors are taken one by one; what is left at the end was not understood.

    Checkpoints wrap their weights in other dictionaries; the wrapper is found by `anchor`, a name that the network must have. Averaged
    weights ("ema.") are preferred.
    """

    def __init__(self, weights: dict[str, Tensor], anchor: str, what: str) -> None:
        found = [wrapper for wrapper in WRAPPERS if wrapper + anchor in weights]
        if not found:
            shown = ", ".join(list(weights)[:4]) or "nothing"
            raise ValueError(f"these are not the weights of {what}: no {anchor!r}; they begin with {shown}")
        prefix = next((w for w in found if w.startswith("ema")), found[0])
        self._weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if prefix == "":
            self._weights = {n: v for n, v in self._weights.items() if not re.match(r"(ema|opt|optimizer)\.", n)}
        self._taken: set[str] = set()
        self.what = what

    def has(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._weights:
            raise ValueError(f"these are not the weights of {self.what}: {name!r} is missing")
        return self._weights[name]

    def take(self, name: str) -> Tensor:
        """The tensor in float32, noted as understood."""
        value = self[name].float()
        self._taken.add(name)
        return value

    def count(self, group: str) -> int:
        """How many numbered members `group.0`, `group.1` ... there are."""
        return len({name.split(".")[1] for name in self._weights if name.startswith(f"{group}.")})

    def finish(self) -> None:
        """ValueError if some weights were not understood: the network does something that this reader does not know."""
        left = sorted(set(self._weights) - self._taken)
        if left:
            raise ValueError(f"{len(left)} weights are not part of {self.what} as known here: {', '.join(left[:4])}")

"""Adaptive Dormand-Prince on the probability-flow ODE, through torchdiffeq (extra `ode`).

The ODE is solved in the frame of `runge_kutta`, down to the path's t_min; from there one Euler step leads to t = 0, where the slope
is 0/0. The step sizes follow the hardest sample of a batch, so that here, and only here, an image depends on its batch, within rtol
and atol.
"""

import torch
from torch import Tensor

from percepta.samplers.runge_kutta import frame_of
from percepta.samplers.step import Bound, State, Step


def adaptive(rtol: float = 1e-5, atol: float = 1e-5) -> Step:
    """Dormand-Prince 5(4) with error control between the times of the grid; one step from t_max to 0 is a good grid."""
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ValueError("the adaptive sampler needs torchdiffeq: pip install 'percepta[ode]'; or use 'heun' or 'rk4'") from error
    if rtol <= 0 or atol <= 0:
        raise ValueError(f"rtol and atol must be positive, got {rtol} and {atol}")

    def advance(denoise: Bound, state: State, t: float, s: float, noise: Tensor | None) -> State:
        frame = frame_of(denoise.path)
        x, end = state.x, max(s, denoise.path.t_min)
        if end < t:
            clock = torch.tensor([frame.clock(t), frame.clock(end)], dtype=torch.float64)

            def slope(c: Tensor, y: Tensor) -> Tensor:
                u = min(max(frame.time(c.item()), end), t)  # the ends themselves, whatever the round-off of the clock
                x_u = y * frame.scale(u)
                return frame.slope(x_u, denoise(x_u, u), u)

            y = odeint(slope, x / frame.scale(t), clock.to(x.device), rtol=rtol, atol=atol, method="dopri5")
            assert isinstance(y, Tensor)
            x = y[-1] * frame.scale(end)
        return State(x if s >= end else frame.straight(x, denoise(x, min(end, t)), min(end, t), s))

    return Step("adaptive", advance, None, None, order=5)

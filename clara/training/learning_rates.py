"""Learning rates of their own for adapters, embedding rows and the backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clara.training.objectives import Objective
from clara.training.settings import SettingsError


def check_groups(rates: Mapping[str, float], objective: Objective) -> None:
    """Refuse a learning rate for what the stage does not train.

    Raises:
        SettingsError: names the group, and those that train.
    """
    trained = [name for name, _ in objective.groups()]
    for name in rates:
        if name not in trained:
            raise SettingsError(
                f"learning_rates: {name} does not train in this stage; "
                f"what trains is {', '.join(trained)}"
            )


def split_parameter_groups(
    optimizer: Any, rates: Mapping[str, float], objective: Objective
) -> None:
    """Give parameters their own learning rate; weight decay and all else stay as they are.

    Each parameter group of a new optimizer becomes one group for each rate. Parameters without a
    rate of their own come first: the first group's rate is logged as `learning_rate`.

    Args:
        optimizer: before its first step and without a schedule.

    Raises:
        SettingsError: the optimizer does not hold the parameters in groups.
    """
    named = {id(parameter): name for name, group in objective.groups() for parameter in group}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if held != named.keys():
        raise SettingsError(
            f"learning_rates cannot be used with optim {type(optimizer).__name__}, which does not "
            "take parameters in groups"
        )
    split: list[dict[str, Any]] = []
    for wanted in (None, *rates):
        for group in optimizer.param_groups:
            own = [
                parameter
                for parameter in group["params"]
                if (named[id(parameter)] if named[id(parameter)] in rates else None) == wanted
            ]
            if own:
                rate = {} if wanted is None else {"lr": rates[wanted], "name": wanted}
                split.append({**group, "params": own, **rate})
    optimizer.param_groups[:] = split


def current_rates(optimizer: Any) -> dict[str, float]:
    """Where the schedule has brought the rates of `split_parameter_groups`, as they are logged."""
    groups = (group for group in optimizer.param_groups if "name" in group)
    return {f"learning_rate_{group['name']}": float(group["lr"]) for group in groups}

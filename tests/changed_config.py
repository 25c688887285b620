"""Trainers with other hyper-parameters than their own."""

from dataclasses import replace


def with_config(trainer_class: type, **changes) -> type:
    """Return a subclass of a trainer whose ``config`` has the given changes."""
    return type("Changed", (trainer_class,), {"config": replace(trainer_class.config, **changes)})

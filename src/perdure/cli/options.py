"""Options that several commands have, and ages such as 30d."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, get_args

import click

from perdure.providers.contract import Status

Command = Callable[..., None]

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
AGE_MAX = timedelta(days=36_500)


def age_option(name: str, help: str) -> Callable[[Command], Command]:
    """An option that takes a whole number and a unit: 90s, 15m, 12h, 30d, 4w."""
    return click.option(name, callback=_age, metavar="AGE", help=help)


def _age(ctx: click.Context, param: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    age = timedelta(**{UNITS[found[2]]: int(found[1])}) if found else AGE_MAX
    if age >= AGE_MAX:
        raise click.BadParameter(
            f"{text!r} is not a number with a unit below a century, such as 90s, 15m, 12h, 30d, 4w"
        )
    return age


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options that say which instances are meant."""

    status: Status | None
    name: str | None
    id_prefix: str | None
    parent: str | None
    blocked: bool | None
    finished_before: timedelta | None

    @property
    def is_filter(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))


def filter_options(command: Command) -> Command:
    """Give a command the options of `Wanted`, which it gets as its parameter `wanted`."""

    def collect(**options: Any) -> None:
        wanted = Wanted(**{field.name: options.pop(field.name) for field in fields(Wanted)})
        command(wanted=wanted, **options)

    collected: Command = functools.update_wrapper(collect, command)
    for option in reversed(_FILTERS):
        collected = option(collected)
    return collected


_FILTERS = (
    click.option("--status", type=click.Choice(get_args(Status)), help="Only with this status."),
    click.option("--name", metavar="NAME", help="Only of this orchestration."),
    click.option("--id-prefix", metavar="TEXT", help="Only ids that begin so."),
    click.option("--parent", metavar="ID", help="Only sub-orchestrations of this instance."),
    click.option(
        "--blocked/--not-blocked", default=None, help="Only those that something keeps from going."
    ),
    age_option("--finished-before", "Only if finished so long ago: 30d."),
)

store_option = click.option(
    "--store",
    metavar="URL",
    help="The store, such as sqlite:///jobs.db. Default: PERDURE_STORE, then [tool.perdure] store "
    "in pyproject.toml.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
data_option = click.option(
    "--data", metavar="JSON", default="null", help="What comes with it. Default: null."
)
all_option = click.option("--all", "everything", is_flag=True, help="All instances of the store.")

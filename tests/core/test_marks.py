"""Marking functions: what a mark keeps, what it refuses, and what a call means where it is made."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator
from typing import Any

import pytest
from driver import World

import perdure
from perdure import NotInOrchestration, RegistrationError, activity, orchestration
from perdure import OrchestrationContext as Context
from perdure.errors import InvalidName
from perdure.marks import Activity, Orchestration
from perdure.registry import Registry


@activity
async def charge(order: str, amount: int = 1) -> str:
    """Charges."""
    return f"{order} {amount}"


@activity(name="send-mail", raises=[ValueError])
def send_mail(address: str) -> str:
    return address


@orchestration
async def shop(ctx: Context, order: str) -> str:
    return await charge(order, amount=2)


@orchestration(name="shop", version="1.10")
async def shop_later(order: str) -> str:
    return order


@orchestration(name="shop", version="1.9")
async def shop_before(order: str) -> str:
    return order


class Mailer:
    def __init__(self, sender: str) -> None:
        self.sender = sender

    @activity
    async def send(self, address: str) -> str:
        return f"{self.sender} to {address}"

    @orchestration
    async def newsletter(self, ctx: Context, address: str) -> str:
        return f"{self.sender}: {await self.send(address)}"


def test_a_mark_keeps_the_function_and_its_name() -> None:
    assert (charge.name, charge.__doc__) == ("charge", "Charges.")
    assert (send_mail.name, send_mail.raises) == ("send-mail", (ValueError,))
    assert (charge.is_async, send_mail.is_async) == (True, False)
    assert (shop.name, shop.version, shop.takes_context) == ("shop", "1", True)
    assert (shop_later.version, shop_later.takes_context) == ("1.10", False)
    assert "charge" in repr(charge)
    assert "shop version 1.10" in repr(shop_later)


def test_an_activity_called_elsewhere_just_runs() -> None:
    async def elsewhere() -> list[str]:
        return [await charge("o"), await send_mail("a@b"), await Mailer("me").send("you")]

    assert asyncio.run(elsewhere()) == ["o 1", "a@b", "me to you"]


def test_an_orchestration_called_elsewhere_says_what_to_use() -> None:
    with pytest.raises(NotInOrchestration, match=r"start_orchestration.*perdure\.run.*\.function"):
        shop("o")
    with pytest.raises(NotInOrchestration, match="activity_context"):
        perdure.context()


def test_a_call_inside_is_a_durable_call() -> None:
    world = World(shop, "o-1")
    world.start()
    world.complete(2, "paid")

    assert world.output == "paid"
    assert world.input_of(2) == {"order": "o-1", "amount": 2}


def test_a_method_is_bound_to_its_object() -> None:
    mailer = Mailer("me")
    world = World(mailer.newsletter, "you")
    world.start()

    assert mailer.newsletter.takes_context
    assert world.input_of(2) == "you"
    world.complete(2, "sent")
    assert world.output == "me: sent"


def test_the_context_is_known_by_whatever_name_it_was_imported() -> None:
    from perdure import OrchestrationContext as Local

    @orchestration
    async def local(ctx: Local, n: int) -> None: ...

    @orchestration
    async def quoted(ctx: perdure.OrchestrationContext, n: int) -> None: ...

    @orchestration
    async def second(n: int, ctx: Context) -> None: ...

    assert [local.takes_context, quoted.takes_context] == [True, True]
    assert second.takes_context is False


async def generator() -> AsyncIterator[int]:
    yield 1


def plain() -> None: ...


async def variadic(*args: int) -> None: ...


@pytest.mark.parametrize(
    ("mark", "function", "says"),
    [
        (activity, generator, "generator"),
        (orchestration, generator, "generator"),
        (orchestration, plain, "async def"),
        (activity, variadic, "args"),
        (activity, 5, "functions"),
        (activity, object(), "functions"),
    ],
)
def test_what_cannot_be_hosted_is_refused_where_it_is_marked(
    mark: Any, function: Any, says: str
) -> None:
    with pytest.raises(RegistrationError, match=says):
        mark(function)


@pytest.mark.parametrize(
    "options", [{"name": "x" * 201}, {"version": "one"}, {"version": "1."}, {"name": "a\nb"}]
)
def test_a_bad_name_or_version_is_refused_where_it_is_marked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidName):
        orchestration(**options)(shop.function)


# What a runtime lists.


def test_the_latest_version_is_the_highest_number() -> None:
    registry = Registry([shop_later, shop, shop_before])

    assert registry.orchestration("shop", None) is shop_later
    assert registry.orchestration("shop", "1.9") is shop_before
    assert registry.orchestration("shop", "2") is None
    assert registry.orchestration("other", None) is None
    assert registry.capabilities == {("shop", "1"), ("shop", "1.9"), ("shop", "1.10")}


def test_a_module_stands_for_what_is_marked_in_it() -> None:
    module = types.ModuleType("shop")
    vars(module).update(pay=charge, again=charge, shop=shop, other=plain)
    registry = Registry([module, charge])

    assert list(registry.activities) == ["charge"]
    assert list(registry.orchestrations) == [("shop", "1")]


def test_the_same_method_of_the_same_object_may_be_listed_twice() -> None:
    mailer = Mailer("me")
    registry = Registry([mailer.send, mailer.newsletter, mailer.send, mailer.newsletter])

    assert registry.activities["send"].function == mailer.send.function


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ([charge, activity(name="charge")(plain)], "listed twice"),
        ([shop, orchestration(name="shop")(shop_later.function)], "listed twice"),
        ([Mailer("a").send, Mailer("b").send], "listed twice"),
        ([plain], "mark it with"),
        ([charge.function], "mark it with"),
    ],
)
def test_what_cannot_be_told_apart_or_is_not_marked_is_refused(
    listed: list[Any], says: str
) -> None:
    with pytest.raises(RegistrationError, match=says):
        Registry(listed)


def test_an_annotation_that_cannot_be_resolved_is_refused_with_its_parameter() -> None:
    async def unknown(order: Any) -> None: ...

    unknown.__annotations__["order"] = "Nowhere"

    with pytest.raises(RegistrationError, match=r"'order'.*Nowhere"):
        Registry([activity(unknown)])


def test_the_classes_are_those_that_the_decorators_give() -> None:
    assert isinstance(charge, Activity)
    assert isinstance(shop, Orchestration)

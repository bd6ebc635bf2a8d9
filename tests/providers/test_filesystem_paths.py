"""Any instance id is the name of a folder of its own, on any file system."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perdure.providers.filesystem.paths import NAME_BYTES_MAX, folder_name, is_folder_name

HARD = [
    "a",
    "A",
    "ä",
    "Ä",
    "a\u0308",
    "ß",
    "ss",
    "\u017f",
    "\u212a",
    "k",
    ".",
    "..",
    "/",
    "\\",
    "%",
    "%41",
    "~",
    " ",
    "",
]
pieces = st.sampled_from([*HARD, "con", "nul", "-", "x" * 40, "é" * 60])
ids = st.lists(pieces, max_size=8).map("".join) | st.text(max_size=255)


def seen(name: str) -> set[str]:
    """The name as file systems may see it."""
    forms = {name, name.casefold(), name.upper().casefold(), name.rstrip(". ")}
    return forms | {unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC", "NFKD")}


@given(ids, ids)
@example("a", "A")
@example("\u00e4", "a\u0308")
@example("con", "%63on")
@example("x" * 255 + "a", "x" * 255 + "b")
def test_no_two_ids_share_a_folder_whatever_the_file_system_makes_of_names(
    first: str, second: str
) -> None:
    if first != second:
        assert not seen(folder_name(first)) & seen(folder_name(second))


@given(ids)
@example("é" * 127)
@example("-" * 255)
def test_a_name_is_the_same_however_it_is_seen_and_stays_in_its_folder(instance_id: str) -> None:
    name = folder_name(instance_id)

    assert seen(name) == {name}
    assert re.fullmatch(r"[a-z0-9_%~-]+", name)
    assert not name.startswith("-")
    assert len(name.encode()) <= NAME_BYTES_MAX
    assert is_folder_name(name)


@pytest.mark.parametrize(
    ("instance_id", "name"),
    [
        ("order-17", "order-17"),
        ("Order 17", "%4frder%2017"),
        ("a::sub::3", "a%3a%3asub%3a%3a3"),
        ("..", "%2e%2e"),
        (".perdure", "%2eperdure"),
        ("../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
        ("con", "%63on"),
        ("com1", "%63om1"),
        ("CON", "%43%4f%4e"),
        ("console", "console"),
        ("-rf", "%2drf"),
        ("ends. ", "ends%2e%20"),
        ("ä", "%c3%a4"),
        ("", "%"),
    ],
)
def test_names_of_ids(instance_id: str, name: str) -> None:
    assert folder_name(instance_id) == name


def test_a_name_that_would_be_too_long_ends_in_a_hash_and_not_in_half_an_escape() -> None:
    names = [folder_name("x" * lead + "é" * 127) for lead in range(6)]

    assert len(set(names)) == 6
    for name in names:
        assert re.fullmatch(r"x*(%c3%a9)*(%c3)?~[0-9a-f]{64}", name)
    assert folder_name("x" * 255) == "x" * 255


@pytest.mark.parametrize("name", ["", ".", ".perdure", "README.md", "Ab", "a~", "%4", "%4F", "a b"])
def test_other_names_are_not_taken_for_ids(name: str) -> None:
    assert not is_folder_name(name)

"""Configuration files of another author that stand for more than a machine can hold."""

from pathlib import Path

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.overrides.yaml_text import parse
from hpc_dynamo.errors import ConfigError

LEVELS = range(1, 30)
DEEP, MANY, REFERENCES = "inside of each other", "values, each alias", "stand for too much"

BOMBS = {
    "aliases of lists": ("a0: &a0 [x, x]\n", "a{n}: &a{n} [*a{m}, *a{m}]\n", MANY),
    "aliases of mappings": ("a0: &a0 {b: 1, c: 2}\n", "a{n}: &a{n} {b: *a{m}, c: *a{m}}\n", MANY),
    "merged mappings": ("a0: &a0 {b: 1}\n", "a{n}: &a{n} {<<: [*a{m}, *a{m}]}\n", MANY),
    "a chain of aliases": ("a0: &a0 [x]\n", "a{n}: &a{n} [[[*a{m}]]]\n", DEEP),
}


@pytest.mark.parametrize("name", BOMBS)
def test_aliases_that_stand_for_too_much_are_refused(name: str) -> None:
    first, line, message = BOMBS[name]
    text = first + "".join(line.replace("{n}", f"{n}").replace("{m}", f"{n - 1}") for n in LEVELS)
    with pytest.raises(ConfigError, match=rf"file\.yaml:\d+: more than \d+ .*{message}"):
        parse(text, "file.yaml")


@pytest.mark.parametrize("text", ["[" * 20_000, "{a: " * 20_000, "a: &a [*a]", "a: &a {b: *a}"])
def test_values_nested_too_deep_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"file\.yaml:\d+: .*{DEEP}"):
        parse(f"deep: {text}" if text[0] in "[{" else text, "file.yaml")


def test_list_of_lists_by_indentation_is_refused() -> None:
    with pytest.raises(ConfigError, match=DEEP):
        parse("a: \n" + "- " * 20_000 + "x", "file.yaml")


def test_aliases_may_be_used() -> None:
    text = "a: &a {b: 1}\nc: [*a, *a]\nd: {<<: *a, e: x}\n"
    found = parse(text, "file.yaml").content
    assert found == {"a": {"b": b"1"}, "c": [{"b": b"1"}] * 2, "d": {"b": b"1", "e": "x"}}


def compose_recipe(folder: Path, text: str) -> object:
    (folder / "recipe").mkdir()
    (folder / "recipe/bomb.yaml").write_text(text)
    return compose(["recipe=bomb"], config_dir=folder)


def arguments(*lines: str) -> str:
    """Return a recipe whose engine arguments are these lines."""
    return "# @package _global_\nengine:\n  args:\n" + "".join(f"    {x}\n" for x in lines)


PAIRS = {
    "texts": "${engine.args.a{m}}${engine.args.a{m}}",
    "lists": "['${..a{m}}', '${..a{m}}']",
    "mappings": "{x: '${..a{m}}', y: '${engine.args.a{m}}'}",
}


@pytest.mark.parametrize("kind", PAIRS)
def test_references_that_stand_for_too_much_are_refused(tmp_path: Path, kind: str) -> None:
    pairs = [f"a{n}: {PAIRS[kind]}".replace("{m}", f"{n - 1}") for n in LEVELS]
    with pytest.raises(ConfigError, match=REFERENCES):
        compose_recipe(tmp_path, arguments("a0: x", *pairs))


def test_many_references_to_a_long_text_are_refused(tmp_path: Path) -> None:
    lines = ["a: " + "x" * 100_000, "b: ${.a}" + "${.a}" * 10_000]
    with pytest.raises(ConfigError, match=REFERENCES):
        compose_recipe(tmp_path, arguments(*lines))


def test_reference_in_the_name_of_a_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has another"):
        compose_recipe(tmp_path, arguments("a: b", "b: c", "c: ${engine.args.${.a}}"))


def test_references_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?i)recursi|circular|interpolation"):
        compose_recipe(tmp_path, arguments("a: ${.b}", "b: ${.a}"))


def test_large_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than 262144 bytes"):
        compose_recipe(tmp_path, "#" * 300_000)

"""Documentation of the configuration: every field, the commented YAML, the reference page."""

from dataclasses import is_dataclass
from functools import reduce
from typing import Any

import msgspec
import pytest
import yaml

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.overrides.commented import commented
from hpc_dynamo.config import Config, schema_fields
from hpc_dynamo.config.schema.describe import default_text
from hpc_dynamo.config.schema.setting import SchemaField
from hpc_dynamo.config.validation.bounds import check_bounds
from hpc_dynamo.errors import ConfigError
from tools.reference_configuration import page

FIELDS = [field for field in schema_fields(Config) if "*" not in field.name]
UNITS = {
    "_s": "s",
    "_mb": "MB",
    "_gb": "GB",
    "_gb_per_node": "GB",
    "_tokens": "tokens",
    "_blocks": "blocks",
    "_hours": "node hours",
    "_workers": "workers",
    "_requests": "requests",
    "_nodes": "nodes",
    "_intervals": "intervals",
    "_us_per_token": "µs",
}


NUMBERS = [field for field in FIELDS if field.type in (int, float, int | None, float | None)]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_field_has_help_of_one_sentence_or_more(field: SchemaField) -> None:
    assert field.info.help[0].isupper() or field.info.help.startswith(("off;", "mode="))
    assert field.info.help.endswith(".")


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_number_has_bounds_and_the_unit_of_its_name(field: SchemaField) -> None:
    assert field.info.bounds
    endings = [unit for ending, unit in UNITS.items() if field.name.endswith(ending)]
    assert not endings or field.info.unit in endings
    assert field.default is None or field.info.contains(field.default)


def test_section_of_schema_has_docstring() -> None:
    sections = {field.type for field in FIELDS if is_dataclass(field.type)}
    assert not [section for section in sections if not section.__doc__]


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_value_below_bound_is_refused(field: SchemaField) -> None:
    low = -1 if field.info.gt is None and field.info.ge != 1 else 0
    tree: Any = msgspec.to_builtins(Config())
    *above, last = field.name.split(".")
    reduce(lambda section, key: section[key], above, tree)[last] = low
    with pytest.raises(ConfigError) as refused:
        check_bounds(msgspec.convert(tree, Config))
    assert refused.value.message.startswith(f"{field.name}={low}")
    assert refused.value.hint.startswith(f"{field.name}=")


def test_commented_yaml_has_help_unit_bounds_and_default() -> None:
    text = commented(compose(["batch.max_retries=5", "serve.queue_timeout_s=7"]))
    assert "# Number of times that a failed request is retried. (at least 0; default 3)" in text
    assert "(s, above 0; default 60)\n  queue_timeout_s: 7.0\n" in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert yaml.safe_load(text)["batch"]["max_retries"] == 5


def test_commented_yaml_has_every_field() -> None:
    tree: Any = yaml.safe_load(commented(Config()))
    for field in FIELDS:
        found = tree
        for key in field.name.split("."):
            found = found[key]


def test_reference_page_has_every_field_and_default() -> None:
    lines = page().splitlines()
    for field in FIELDS:
        if is_dataclass(field.type) or field.name in ("models", "cluster.hardware"):
            continue
        name = field.name.rpartition(".")[2]
        default = default_text(field.default)
        assert any(f"| `{name}` |" in line and default in line for line in lines), field.name

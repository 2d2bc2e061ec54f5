"""The text of a value: from an override or a file to its field without a change."""

import os
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.overrides import values
from hpc_dynamo.cli.overrides.commented import commented
from hpc_dynamo.config import Config, check_folder, walltime_minutes
from hpc_dynamo.config.paths import PATHS, is_path
from hpc_dynamo.errors import ConfigError

ODD = [
    *("12_345", "1e5", "1.10", "4.50", "2024_11_01", "0123", "0x1F", "1_000", ".5", "1e400"),
    *("true", "False", "null", "None", "on", "~", "nan", "12:00:00", "2024-01-01"),
    *("tcp,self,sm", "a=b", "intel&gpu", "a#b", "a #b", "n[01-04]", "a (1)", "(", "]", "{", "a: b"),
    *('{"method":"ngram"}', "${oc.env:HOME}", "${", "\\${x}", "'x'", '"x"', "it's", "C:\\dir\\"),
    *(
        "",
        " ",
        " x ",
        "été",
        "数据",
        "🙂",
        "a\nb",
        "*",
        "!x",
        "@x",
        "%j",
        "`x`",
        "- x",
        "[x]",
        "???",
    ),
]

TEXTS: list[tuple[str, Callable[[Config], str | None]]] = [
    ("name", lambda c: c.name),
    ("model.name", lambda c: c.model.name),
    ("cluster.interface", lambda c: c.cluster.interface),
    ("cluster.slurm.account", lambda c: c.cluster.slurm.account),
    ("cluster.slurm.constraint", lambda c: c.cluster.slurm.constraint),
    ("engine.env.A", lambda c: c.engine.env["A"]),
    ("engine.decode.env.A_B", lambda c: c.engine.decode.env["A_B"]),
    ("cluster.slurm.extra.mail-type", lambda c: c.cluster.slurm.extra["mail-type"]),
    ("cluster.hardware.h100.partition", lambda c: c.cluster.hardware["h100"].partition),
    ("cluster.hardware.h100.extra.begin", lambda c: c.cluster.hardware["h100"].extra["begin"]),
]

MAY_BE_UNSET = [field for field, of in TEXTS if of(compose([f"{field}=null"])) is None]


@pytest.mark.parametrize("text", ODD)
def test_text_of_an_override_reaches_every_text_field_unchanged(text: str) -> None:
    config = compose([f"{field}={text}" for field, _ in TEXTS])
    for field, of in TEXTS:
        unset = text == "null" and field in MAY_BE_UNSET
        assert of(config) == (None if unset else text)


@settings(deadline=None, max_examples=10)
@given(texts=st.dictionaries(st.sampled_from(["A", "b", "C_1"]), st.text(), min_size=1))
def test_random_text_reaches_a_mapping_unchanged(texts: dict[str, str]) -> None:
    words = [f"engine.env.{name}={text}" for name, text in texts.items()]
    assert compose(words).engine.env == texts


@settings(deadline=None)
@given(st.text())
def test_an_engine_option_is_printed_as_it_was_written(text: str) -> None:
    value = values.engine_option(text)
    if not isinstance(value, bool | dict | None):
        assert str(value) == text


AS_WRITTEN = [
    *('["*"]', '{"a":1.10}', '{"a":"é"}', "[1.10,2]", '{"a" : [ 1 ]}', '["${x}"]', "[]", "{}"),
    *(
        "12_34",
        "1e10",
        "3.10",
        "1.10",
        "0123",
        "-0",
        "1e400",
        "nan",
        "a,b",
        "+1",
        "1.",
        "{x",
        "'1'",
    ),
    *(
        "[gpu]x",
        "{level}",
        "{a:1, b}",
        "{a:}",
        "[a, b]",
        "{{ bos_token }}",
        "{% if a: b %}",
        "0.1e1",
        "T",
        "1" * 5000,
    ),
]


def test_an_engine_option_that_would_print_differently_stays_text() -> None:
    words = [f"engine.args.{at}={text}" for at, text in enumerate(AS_WRITTEN)]
    args = compose(words).engine.args
    assert {name: str(value) for name, value in args.items()} == {
        str(at): text for at, text in enumerate(AS_WRITTEN)
    }


@pytest.mark.parametrize("section", ["engine", "engine.decode"])
def test_an_engine_option_has_the_type_that_its_flag_needs(section: str) -> None:
    typed = {
        "8192": 8192,
        "0.85": 0.85,
        "-1": -1,
        "true": True,
        "False": False,
        "null": None,
        '{"method":"ngram"}': '{"method":"ngram"}',
        "[1,2]": "[1,2]",
        "{level: 3, a: {b: 1.10, c: 12_3}}": {"level": 3, "a": {"b": 1.1, "c": "12_3"}},
        "{method:ngram,k:3,b:{c:[1,2]}}": {"method": "ngram", "k": 3, "b": {"c": [1, 2]}},
        "{url:http://h:80/x,n-m:true}": {"url": "http://h:80/x", "n-m": True},
    }
    config = compose([f"{section}.args.{at}={text}" for at, text in enumerate(typed)])
    own = config.engine if section == "engine" else config.engine.decode
    assert list(own.args.values()) == list(typed.values())


def test_an_object_in_json_adds_to_the_content_of_an_option(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "mine.yaml").write_text("args: {x: {a: 1, b: 1}}\n")
    args = compose(["engine=mine", 'engine.args.x={"b":2}'], tmp_path).engine.args
    assert args == {"x": {"a": 1, "b": 2}}
    args = compose(['engine.args.x={"b":2}', "engine.args.x.c=3"]).engine.args
    assert args == {"x": {"b": 2, "c": 3}}


def test_a_value_in_a_batchs_body_or_inside_an_option_is_json_or_text() -> None:
    typed = {
        "0.70": 0.7,
        "1e-3": 0.001,
        '["a","b"]': ["a", "b"],
        '"1.10"': "1.10",
        "a,b": "a,b",
        "12_34": "12_34",
        "NaN": "NaN",
        "1e999": "1e999",
        '"\\ud83d"': '"\\ud83d"',
    }
    defaults = [f"batch.body_defaults.{at}={text}" for at, text in enumerate(typed)]
    inside = [f"engine.args.extra.y.{at}={text}" for at, text in enumerate(typed)]
    config = compose([*defaults, *inside])
    assert list(config.batch.body_defaults.values()) == list(typed.values())
    assert list(config.engine.args["extra"]["y"].values()) == list(typed.values())


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("[a,b]", ["a", "b"]),
        ("[]", []),
        ("module load cuda", ["module load cuda"]),
        ("['module load cuda','export A=1,2']", ["module load cuda", "export A=1,2"]),
        ('["a\\"b", "c,d"]', ['a"b', "c,d"]),
        ("[--label, --nodelist=n[1,2]]", ["--label", "--nodelist=n[1,2]"]),
        ("[--a=b,1.10,on,12_3]", ["--a=b", "1.10", "on", "12_3"]),
        ("[export A='x,y',it's]", ["export A='x,y'", "it's"]),
    ],
)
def test_elements_of_a_list_are_texts(text: str, elements: list[str]) -> None:
    assert values.elements(text) == elements


def test_a_list_field_takes_such_a_list() -> None:
    slurm = compose(["cluster.slurm.setup=[a b,'c,d']", "cluster.slurm.srun_args=--label"]).cluster
    assert slurm.slurm.setup == ("a b", "c,d")
    assert slurm.slurm.srun_args == ("--label",)


@settings(deadline=None)
@given(st.lists(st.text()))
def test_a_list_in_json_is_that_list(texts: list[str]) -> None:
    assert values.elements(msgspec.json.encode(texts).decode()) == texts


@settings(deadline=None)
@given(st.text())
def test_no_list_is_too_odd_to_be_read(text: str) -> None:
    assert all(isinstance(each, str) for each in values.elements(f"[{text}]"))


def site(folder: Path, text: str) -> Config:
    (folder / "cluster").mkdir(exist_ok=True)
    (folder / "cluster" / "site.yaml").write_text(text)
    return compose(["cluster=site"], folder)


@pytest.mark.parametrize(("text", "min"), [("12:00:00", 720), ("2:30:00", 150), ("90", 90)])
def test_a_time_of_a_file_is_slurms(tmp_path: Path, text: str, min: int) -> None:
    assert walltime_minutes(site(tmp_path, f"slurm: {{time: {text}}}").cluster.slurm.time) == min


PLAIN = [
    *(
        "0123",
        "0010",
        "2024_05",
        "1e3",
        "1.10",
        "on",
        "no",
        "Yes",
        "16:00",
        "0x1F",
        "0b11",
        "=",
        ".inf",
    ),
    *("2024-01-01", "true", "+1", "1_000.5", "190:20:30.15", "12e03", "été", "a,b", "a&b"),
]


def test_text_of_a_file_reaches_text_fields_unchanged(tmp_path: Path) -> None:
    extra = "".join(f"    k{at}: {text}\n" for at, text in enumerate(PLAIN))
    listed = "".join(f"  - {text}\n" for text in PLAIN)
    lines = f"slurm:\n  account: 0123\n  partition: on\n  extra:\n{extra}  setup:\n{listed}"
    slurm = site(tmp_path, lines).cluster.slurm
    assert (slurm.account, slurm.partition) == ("0123", "on")
    assert list(slurm.extra.values()) == list(slurm.setup) == PLAIN


def test_names_of_a_file_are_texts(tmp_path: Path) -> None:
    extra = site(tmp_path, "slurm: {extra: {no: a, 0123: b, 1.10: c}}").cluster.slurm.extra
    assert extra == {"no": "a", "0123": "b", "1.10": "c"}


def test_other_fields_of_a_file_are_converted(tmp_path: Path) -> None:
    text = (
        "gpus_per_node: 4\nmemory_gb_per_node: 1e3\npreflight: no\nslurm: {qos: ~, exclusive: on}"
    )
    cluster = site(tmp_path, text).cluster
    assert (cluster.gpus_per_node, cluster.memory_gb_per_node) == (4, 1000.0)
    assert (cluster.preflight, cluster.slurm.qos, cluster.slurm.exclusive) == (False, None, True)


def test_free_values_of_a_file_are_those_of_an_override(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    lines = "args: {a: 1.10, b: 8192, c: true, d: 'true', e: [1, 1.10], f: {g: 1.10}, h: on, i: ~}"
    (tmp_path / "engine" / "mine.yaml").write_text(lines)
    assert compose(["engine=mine"], tmp_path).engine.args == {
        "a": "1.10",
        "b": 8192,
        "c": True,
        "d": "true",
        "e": [1, "1.10"],
        "f": {"g": 1.1},
        "h": "on",
        "i": None,
    }


@settings(deadline=None, max_examples=10)
@given(st.text(), st.text())
@example("\x85", "a\u2028 b\x1c\n c")
def test_a_shown_configuration_is_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, text: str, other: str
) -> None:
    config = compose([f"engine.env.A={text}", f"model.name={other}", f"engine.args.x={text}"])
    folder = tmp_path_factory.mktemp("conf")
    (folder / "batch").mkdir()
    body = "# @package _global_\n" + commented(config)
    (folder / "batch" / "saved.yaml").write_text(body, encoding="utf-8")
    assert compose(["batch=saved"], folder) == config


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("slurm:\n  acount: g42\n", ["cluster.slurm.acount is not", "site.yaml:2", "account"]),
        ("gpus_per_node: many\n", ["cluster.gpus_per_node=many: must be a whole", "site.yaml:1"]),
        ("slurm:\n  extra: 3\n", ["cluster.slurm.extra=3: must be a mapping", "site.yaml:2"]),
        ("slurm:\n  account: {a: b}\n", ["cluster.slurm.account=", "must be a text", "yaml:2"]),
        (
            "slurm:\n  extra: {contiguous: }\n",
            ["extra.contiguous has no value", "yaml:2", "`contiguous: true` for a flag"],
        ),
        (
            "slurm:\n  licenses: 0010\n",
            ["slurm.licenses is not a field", "`extra:` in that file: `extra: {licenses: 0010}`"],
        ),
        ("slurm: {contiguous: }\n", ["in that file: `extra: {contiguous: true}`"]),
        ("slurm: {gres: 'gpu:4'}\n", ["remove it from that file, and: cluster.gpus_per_node=4"]),
        ("slurm: {ntasks: 4}\n", ["try: leave it out: each node runs one task"]),
        ("slurm: {time: null}\n", ["cluster.slurm.time=null: must be a text", "site.yaml:1"]),
        ("slurm: [\n", ["site.yaml:2: not YAML"]),
        ("slurm: {a: b\n", ["site.yaml:2: not YAML"]),
        ("launcher: slurm\nlauncher: local\n", ["site.yaml:2: launcher is there twice"]),
        ("- a\n", ["site.yaml:1: must be a mapping"]),
        ("slurm: {account: '${no.field}'}\n", ["no.field"]),
        ("preflight: '${'\n", ["${"]),
    ],
)
def test_an_error_of_a_file_names_its_line(tmp_path: Path, lines: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        site(tmp_path, lines)
    for part in parts:
        assert part in str(refused.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config-dir .*/typo: no such folder"):
        compose([], tmp_path / "typo")


def test_a_file_of_ones_own_replaces_its_namesake(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "slurm.yaml").write_text("launcher: slurm\nslurm: {account: g42}\n")
    assert compose(["cluster=slurm"], tmp_path).cluster.slurm.account == "g42"


def test_interpolation_applies_only_to_files(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    lines = "env: {OMP_NUM_THREADS: '${engine.cpus}', MODEL: '${model.path}/x', B: '\\${B}'}\n"
    (tmp_path / "engine" / "mine.yaml").write_text(lines)
    words = ["engine=mine", "engine.cpus=7", "model.path=/m/${A}", "engine.env.C=${C}"]
    env = compose(words, tmp_path).engine.env
    assert env == {"OMP_NUM_THREADS": "7", "MODEL": "/m/${A}/x", "B": "${B}", "C": "${C}"}
    assert compose(["input=p${SLURM_ARRAY_TASK_ID}.jsonl"]).input == "p${SLURM_ARRAY_TASK_ID}.jsonl"


def test_the_home_folder_is_expanded_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    fields = [path for path in PATHS if path not in ("engine.container.mounts", "model.lora")]
    fields.append("model.lora.x")

    def paths(text: str) -> set[str]:
        tree: Any = msgspec.to_builtins(compose([f"{field}={text}" for field in fields]))
        return {reduce(lambda found, key: found[key], field.split("."), tree) for field in fields}

    assert paths("~/a b,c") == {"/home/me/a b,c"}
    assert paths("~") == {"/home/me"}
    assert paths("~root/x") == {os.path.expanduser("~root/x")}
    assert paths("./~/x") == {"./~/x"}
    assert paths("'/a b'") == {"/a b"}, "quotes around a path: as older versions wanted it"
    assert paths("it's") == {"it's"}


def test_the_home_folder_is_expanded_in_lists_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = compose(["engine.container.mounts=[~/a:/a,/b]", "models.x.path=~/m"])
    assert config.engine.container.mounts == ("/home/me/a:/a", "/b")
    assert config.models["x"].path == "/home/me/m"
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("path: ~/llama\nlora: {a: ~/lora}\n")
    model = compose(["model=mine"], tmp_path).model
    assert (model.path, model.lora) == ("/home/me/llama", {"a": "/home/me/lora"})
    assert not is_path("engine.env.A")


def test_home_of_unknown_user_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runs_dir=~nobody-x/y: there is no user 'nobody-x'"):
        compose(["runs_dir=~nobody-x/y"])


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"input=caf\\udce9 is not UTF-8"):
        compose(["input=caf\udce9"])


@pytest.mark.parametrize(
    ("word", "value"),
    [("null", None), ("None", None), ("none", None), ("4", 4), ("+4", 4)],
)
def test_a_number_may_be_unset(word: str, value: int | None) -> None:
    assert compose([f"cluster.gpus_per_node={word}"]).cluster.gpus_per_node == value


def test_an_option_of_a_file_may_be_left_out(tmp_path: Path) -> None:
    assert "dtype" in compose(["engine=vllm-cpu"]).engine.args
    args = compose(["engine=vllm-cpu", "~engine.args.dtype", "++engine.args.x=1"]).engine.args
    assert args == {"enforce-eager": True, "max-model-len": 2048, "x": 1}
    assert (
        compose(["batch.max_retries=9", "~batch.max_retries"]).batch.max_retries
        == Config().batch.max_retries
    )


@pytest.mark.parametrize(
    ("runs", "name", "said"),
    [
        ("/r/%j", "x", "runs_dir=/r/%j: Slurm replaces %j"),
        ("/r", "a%4t", "name=a%4t: Slurm replaces %4t"),
        ("/r", "100%%", "name=100%%: Slurm replaces %%"),
    ],
)
def test_a_folder_that_slurm_would_call_otherwise_is_refused(
    runs: str, name: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_folder(runs, name)


def test_other_percent_signs_are_part_of_a_folder() -> None:
    check_folder("/scratch/50% done/5 %", "100%")

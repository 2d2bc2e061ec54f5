"""`--help` of the program and of its verbs, and the examples in it."""

from pathlib import Path

import pytest

from hpc_dynamo.cli.command_line import check_command_line
from hpc_dynamo.cli.commands import VERBS, load
from hpc_dynamo.errors import ConfigError, ExitCode
from tests.support.command_lines import shown_commands
from tests.support.terminal import Call, printed, refused

LONGEST = 35  # lines of the first screen


def test_top_level_help_lists_all_verbs_in_35_lines(call: Call) -> None:
    text = printed(call("--help"))
    assert len(text.splitlines()) <= LONGEST
    assert max(map(len, text.splitlines())) <= 100
    for verb, summary in VERBS.items():
        assert f"  {verb} " in text
        assert summary in text
    assert printed(call("help")) == text
    assert printed(call("-h")) == text


def test_verbs_are_listed_in_the_order_of_use() -> None:
    assert list(VERBS) == [
        *("plan", "simulate", "doctor", "batch", "serve", "profile", "route", "chat"),
        *("endpoint", "status", "report", "chaos", "logs", "stop", "completion", "help"),
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help_has_examples_and_exit_codes(verb: str, call: Call) -> None:
    text = printed(call(verb, "--help"))
    examples = load(verb).EXAMPLES
    assert examples in text
    assert f"hpc-dynamo {verb}" in examples
    assert "exit codes: 0 done" in text
    assert printed(call("help", verb)) == text


@pytest.mark.parametrize("verb", ["plan", "simulate", "doctor", "batch", "serve", "profile"])
def test_verbs_with_overrides_refer_to_their_list(verb: str, call: Call) -> None:
    assert "`hpc-dynamo help overrides`" in printed(call(verb, "--help"))


def test_help_of_overrides_names_what_a_job_can_be_made_of(call: Call) -> None:
    text = printed(call("help", "overrides"))
    for name in ("recipe=", "models.NAME.path=", "cluster.hardware.NAME.", "engine.decode.args."):
        assert name in text
    assert "topology.prefill.workers=2" in text


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_is_printed(option: str, call: Call) -> None:
    assert printed(call(option)).startswith("hpc-dynamo ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: VERB"),
        (["serv"], "unknown verb 'serv'\n  try: did you mean serve? known: plan, "),
        (["--bogus"], "VERB"),
    ],
)
def test_command_line_without_a_known_verb_is_a_usage_error(
    words: list[str], message: str, call: Call
) -> None:
    done = call(*words)
    assert done.returncode == ExitCode.usage
    assert message in done.stderr


def test_help_of_a_field_shows_type_default_and_meaning(call: Call) -> None:
    text = printed(call("help", "planner.mode"))
    assert text.startswith("planner.mode (choice, off, load, sla)\n  ")
    assert text.endswith("  default: off\n")
    refused(call("help", "serv"), "topic='serv' is not known", "did you mean 'serve'?")


EXAMPLES = [
    (verb, " ".join(words), words)
    for verb in VERBS
    for words in shown_commands(load(verb).EXAMPLES)
]


@pytest.mark.parametrize("words", [e[2] for e in EXAMPLES], ids=[e[1] for e in EXAMPLES])
def test_example_of_help_passes_all_checks(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines.key").write_text("key")
    check_command_line(words)
    assert [path.name for path in tmp_path.iterdir()] == ["engines.key"], "nothing is written"


def test_each_verb_has_an_example() -> None:
    assert {words[0] for _, _, words in EXAMPLES} == set(VERBS)


def test_check_of_a_command_line_includes_the_engines() -> None:
    layout = ("cluster.gpus_per_node=4", "topology.prefill.pipeline_parallel=6")
    with pytest.raises(ConfigError, match="pipeline_parallel"):
        check_command_line(["plan", *layout])

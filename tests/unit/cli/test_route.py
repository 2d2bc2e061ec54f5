"""Arguments of `hpc-dynamo route`, and those that it refuses before it starts anything."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Role, TopologyKind, resolve_route
from hpc_dynamo.topology import plan
from tests.support.terminal import Call, caller, printed, refused

A, B, C = "http://a:8000", "http://b:8000", "https://[::1]:8443"
GPUS = "http://gpu1:8000,http://gpu2:8000"
LIVE = "tcp://a:5557|tcp://a:5558"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    return caller(tmp_path, monkeypatch, capsys)


def test_workers_make_an_aggregated_topology() -> None:
    config = resolve_route(compose([f'route.workers=["{A}","{B}/v1/","{C}"]']))
    assert config.route.engines == tuple((Role.aggregated, url) for url in (A, B, C))
    assert config.topology.kind is TopologyKind.aggregated
    assert [w.role for w in plan(config).workers] == [Role.aggregated] * 3


def test_prefill_and_decode_make_a_disaggregated_topology() -> None:
    config = resolve_route(compose([f"route.prefill=[{A}]", f'route.decode=[{B},"{C}"]']))
    assert config.topology.kind is TopologyKind.disaggregated
    assert [w.role for w in plan(config).workers] == [role for role, _ in config.route.engines]
    assert [role for role, _ in config.route.engines] == [Role.prefill, Role.decode, Role.decode]


def test_model_name_is_that_of_the_engines() -> None:
    words = [f"route.workers=[{A}]", "model.path=/models/llama"]
    assert resolve_route(compose(words)).served_name == ""
    assert resolve_route(compose([*words, "model.name=my"])).served_name == "my"
    assert compose(words[1:]).served_name == "llama"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["no engine is named", "--workers http://"]),
        (["--workers", "a:8000"], ["route.workers: 'a:8000' is not a URL", "http://"]),
        (["--workers", "http://a:port"], ["is not a URL"]),
        (["--workers", "http://a:0"], ["is not a URL"]),
        (["--workers", "ftp://a:1"], ["is not a URL"]),
        (["--workers", "http://[::1"], ["is not a URL"]),
        (["--workers", f"{A}/v2"], [f"'{A}/v2' is not a base URL", f"{A}, only host"]),
        (["--workers", "http://u:p@a:1"], ["is not a base URL"]),
        (["--workers", f"{A},{A}/v1"], [f"{A} is named twice"]),
        (["--workers", A, "--decode", B], ["cannot be combined"]),
        (["--prefill", A], ["route.prefill without route.decode"]),
        (["route.decode=" + A], ["route.decode without route.prefill"]),
        ([A], ["neither an option nor FIELD=VALUE", f"--workers {A}"]),
        ([f"route.worker={A}"], ["route.worker is not a field", "workers"]),
        (["--workers", A, "--peers", "b"], ["route.peers: 'b' is not a URL"]),
        (["--workers", A, "--peers", B], ["route.peers need", "serve.api_key_file"]),
        (["--workers", f"{A},{B}", "--events", LIVE], ["names 1 engines, there are 2"]),
        (["--workers", A, "--events", "tcp://a:1"], ["is not live|replay", "tcp://"]),
        (["--workers", A, "--events", f"{A}|{A}"], ["is not live|replay"]),
        (
            ["--workers", A, "route.api_key_file=nowhere"],
            ["route.api_key_file=nowhere: no such file"],
        ),
        (["--workers", A, "engine.name=llama"], ["engine.name", "vllm"]),
        (["--workers", A, "serve.port=99999"], ["serve.port=99999"]),
    ],
)
def test_route_rejects_invalid_arguments(
    call: Call, words: Sequence[str], parts: list[str]
) -> None:
    refused(call("route", *words), *parts)
    assert not Path("runs").exists()


def test_route_rejects_an_empty_key_file(call: Call) -> None:
    Path("empty").touch()
    refused(
        call("route", "--workers", A, "route.api_key_file=empty"), "route.api_key_file=", "is empty"
    )


def test_serve_rejects_route_fields(call: Call) -> None:
    words = ("engine=simulator", "cluster.launcher=local", f"route.workers=[{A}]")
    refused(call("serve", *words), "route.*", "hpc-dynamo route")


def test_unknown_option_lists_the_options_of_route(call: Call) -> None:
    done = call("route", "--worker-urls", A)
    assert done.returncode == 2
    assert "--worker-urls" in done.stderr


def test_help_of_route_has_examples(call: Call) -> None:
    text = printed(call("route", "--help"))
    for part in (
        "--workers http://gpu1:8000,http://gpu2:8000",
        "--prefill",
        "Ctrl-C",
        "LIVE|REPLAY",
    ):
        assert part in text

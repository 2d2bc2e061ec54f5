"""The published OpenAPI document is compared with the endpoint by schemathesis."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.serving.served import Served

schemathesis = pytest.importorskip("schemathesis")

# Acceptance of bodies is not checked: the engine has more rules than the document.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


def test_openapi_document_matches_responses(aggregated: Served) -> None:
    """Responses to valid and invalid requests match the document."""
    document = aggregated.ask("GET", "/openapi.json", headers={}).json
    schema = schemathesis.openapi.from_dict(document)
    operations = [
        schema[path][method.upper()]
        for path, found in document["paths"].items()
        for method in found
    ]
    modes = list(schemathesis.GenerationMode)
    checks = schemathesis.checks.CHECKS.get_by_names(CHECKS)
    headers = {"Authorization": f"Bearer {aggregated.key}"}
    seen = set[int]()

    @settings(max_examples=100)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        operation, mode = data.draw(st.sampled_from(operations)), data.draw(st.sampled_from(modes))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if isinstance(case.body, dict):
            case.body.setdefault("max_tokens", 1)  # responses without a limit take seconds
        reply = case.call_and_validate(
            base_url=aggregated.url.removesuffix("/v1"), headers=headers, checks=checks
        )
        assert reply.headers["x-request-id"]
        seen.add(reply.status_code)

    run()
    assert {200, 400, 404} <= seen

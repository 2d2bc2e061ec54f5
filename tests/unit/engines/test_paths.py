"""Paths of an engine that clients may use: inference, never administration."""

import pytest

from hpc_dynamo.engines.http_paths import forwardable, is_inference, path_parameters

FORWARDED = """
POST /v1/rerank
POST /v2/rerank
POST /rerank
POST /score
POST /v1/score
POST /pooling
POST /classify
POST /v1/audio/transcriptions
POST /v1/audio/translations
POST /v1/audio/speech
POST /v1/images/generations
POST /v1/embeddings
POST /v2/embed
POST /v1/chat/completions
POST /v1/chat/completions/batch
POST /v1/chat/completions/render
POST /v1/completions
POST /v1/messages
POST /v1/messages/count_tokens
POST /v1/messages/render
POST /v1/completions/derender
POST /v1/responses
GET /v1/responses/{response_id}
DELETE /v1/responses/{response_id}
POST /v1/responses/{response_id}/cancel
POST /tokenize
POST /detokenize
POST /generate
POST /inference/v1/generate
POST /encode
POST /generative_scoring
GET /version
"""
KEPT_BACK = """
POST /sleep
POST /wake_up
GET /is_sleeping
POST /collective_rpc
POST /pause
POST /resume
GET /is_paused
POST /pause_generation
POST /continue_generation
POST /update_weights
POST /update_weights_from_disk
POST /update_weights_from_tensor
POST /init_weights_update_group
POST /init_weight_transfer_engine
POST /get_weights_by_name
GET /get_weights_by_name
POST /weights_checker
POST /flush_cache
GET /flush_cache
POST /reset_prefix_cache
POST /reset_mm_cache
POST /reset_encoder_cache
POST /start_profile
POST /stop_profile
POST /shutdown
POST /v1/load_lora_adapter
POST /v1/unload_lora_adapter
POST /load_lora_adapter
POST /abort_request
POST /abort_requests
POST /pd_role_switch
POST /invocations
POST /vertex_generate
POST /generate_from_file
GET /ping
GET /metrics
GET /docs
GET /redoc
GET /openapi.json
GET /docs/oauth2-redirect
GET /server_info
GET /get_server_info
GET /model_info
GET /health
GET /health_generate
GET /load
GET /v1/loads
POST /scale_elastic_ep
POST /is_scaling_elastic_ep
POST /release_memory_occupation
POST /resume_memory_occupation
POST /set_internal_state
GET /get_internal_state
POST /configure_logging
POST /freeze_gc
POST /slow_down
POST /open_session
POST /close_session
POST /set_trace_level
POST /start_expert_distribution_record
POST /dump_expert_distribution_record
PUT /hicache/storage-backend
POST /add_worker
GET /kv_cache_events
GET /perf_metrics
GET /prometheus/metrics
GET /steady_clock_offset
GET /v1/models
POST /v1/systemone
POST /adapters
DELETE /adapters/{adapter_name}
POST /inference/v1/abort_requests
POST /abort_requests
POST /fault_tolerance/apply
GET /fault_tolerance/status
POST /finish_weight_update
POST /start_draft_weight_update
POST /shutdown_weight_transfer_engine
POST /update_weight_version
POST /release_kv_cache_memory
POST /weight_checker
GET /weight_info
GET /get_world_size
GET /kv_event_sources
GET /tokenizer_info
POST /v1/../sleep
POST //sleep
POST v1/score
POST /v1/score?x=1
POST /v1/score%2f..%2fsleep
PATCH /v1/score
DELETE /v1/responses
TRACE /v1/score
POST /version
"""


def rows(table: str) -> list[tuple[str, str]]:
    return [(method, path) for method, path in map(str.split, table.strip().splitlines())]


@pytest.mark.parametrize(("method", "path"), rows(FORWARDED))
def test_inference_paths_are_forwarded(method: str, path: str) -> None:
    assert is_inference(path, method)


@pytest.mark.parametrize(("method", "path"), rows(KEPT_BACK))
def test_administration_paths_are_not_forwarded(method: str, path: str) -> None:
    assert not is_inference(path, method)


def test_forwardable_paths_are_sorted_and_filtered() -> None:
    operations = [
        ("post", "/v1/score"),
        ("post", "/sleep"),
        ("get", "/version"),
        ("head", "/score"),
    ]
    assert forwardable(operations) == ("GET /version", "POST /v1/score")


def test_templates_match_one_segment() -> None:
    assert path_parameters("/v1/responses/{response_id}", "/v1/responses/resp_1") == ("resp_1",)
    assert path_parameters("/v1/responses/{id}/cancel", "/v1/responses/a.b/cancel") == ("a.b",)
    assert not path_parameters("/v1/responses/{id}", "/v1/responses/a/cancel")
    assert not path_parameters("/v1/responses/{id}", "/v1/responses/")
    for id_ in ("..", "..%2F..%2Fsleep", "..%2F..%2Fsleep%3F", "a%0d%0ax:y", "a%00", "a\\..", "a#"):
        assert not path_parameters("/v1/responses/{id}/cancel", f"/v1/responses/{id_}/cancel")
    assert not path_parameters("/v1.{x}", "/v1/score")

"""What bad input gets, row by row, and which tests show it over a real socket.

A reference is the name of a case in `test_bad_inputs`, or `module::function`.
"""

from __future__ import annotations

import importlib

import pytest

from tests.app.test_bad_inputs import CASES

ROWS: dict[int, tuple[str, str, list[str]]] = {
    1: ("empty body", "400", ["empty body", "/v1/classify/batch: no body", "V2: empty body"]),
    2: ("multipart without the image field", "422", ["form without an image"]),
    3: ("zero-byte file", "422", ["image of no bytes", "V2: element of no bytes"]),
    4: ("text, HTML, SVG or PDF sent as image/jpeg", "415", ["text", "HTML", "SVG", "PDF"]),
    5: ("EPS, FITS, PSD, ICNS: formats outside JPEG, PNG, WebP", "415", ["EPS", "FITS", "PSD", "ICNS", "GIF", "TIFF"]),
    6: (
        "truncated JPEG; PNG with a wrong checksum",
        "422",
        [
            "JPEG cut in the middle",
            "PNG cut in the middle",
            "PNG without its end chunk",
            "PNG with a wrong checksum",
            "WebP cut in the middle",
        ],
    ),
    7: ("JPEG magic, then noise", "422", ["JPEG magic, then noise", "PNG magic, then noise", "WebP magic, then noise"]),
    8: (
        "PNG of 50,000 x 50,000 pixels in a few kB",
        "413, before decoding",
        ["50,000 x 50,000 pixels", "9,000 x 9,000 pixels", "65,500 x 65,500 JPEG", "16,383 x 16,383 WebP"],
    ),
    9: (
        "PNG with a zTXt or iCCP decompression bomb",
        "422, memory flat",
        [
            "comment that inflates to 200 MB",
            "colour profile that inflates to 200 MB",
            "international text that inflates to 200 MB",
            "test_bad_inputs::test_memory_is_flat_over_all_cases",
        ],
    ),
    10: ("animated or multi-frame file", "first frame", ["test_bad_inputs::test_an_animation_is_its_first_frame"]),
    11: ("1 x 1; 1 x 65,500", "200", ["test_bad_inputs::test_odd_shapes_are_answered_in_flat_memory"]),
    12: (
        "CMYK, 16-bit, palette, alpha, grey",
        "200, the right colours",
        ["test_bad_inputs::test_colours_are_right_in_every_kind_of_file"],
    ),
    13: (
        "EXIF orientation 2 to 8",
        "200, answers in the upright image's frame",
        ["test_service::test_sizes_are_those_of_the_upright_picture"],
    ),
    14: (
        "Content-Length above the limit",
        "413 without reading the body",
        [
            "body above the limit",
            "test_bad_inputs::test_a_declared_length_above_the_limit_is_refused_unread",
            "test_bad_inputs::test_expect_continue_is_not_encouraged_beyond_the_limit",
        ],
    ),
    15: (
        "chunked body above the limit",
        "413, connection closed",
        ["test_bad_inputs::test_a_chunked_body_above_the_limit_is_cut_off"],
    ),
    16: (
        "gzip bomb; unknown Content-Encoding",
        "413; 415",
        [
            "gzip that inflates to 200 MB",
            "V2: gzip that inflates to 200 MB",
            "unknown encoding",
            "V2: unknown encoding",
        ],
    ),
    17: (
        "body shorter than declared",
        "400 or 408",
        [
            "test_bad_inputs::test_a_body_that_ends_early_gets_400",
            "test_bad_inputs::test_a_body_that_stops_arriving_gets_408",
        ],
    ),
    18: ("multipart without boundary", "400", ["form without a boundary", "/v1/classify/batch: no boundary"]),
    19: ("1,000 parts; two image fields", "400", ["1,000 parts", "two images", "part with 1,000 headers"]),
    20: ("file name with ../ or NUL", "200, name unused", ["test_bad_inputs::test_file_names_are_not_used"]),
    21: (
        "V2: tensor bytes that do not fit the shape",
        "400",
        ["V2: bytes too few", "V2: bytes too many", "V2: no bytes", "V2: size that is a lie"],
    ),
    22: (
        "V2: negative or 2^60 dimension",
        "400",
        ["V2: negative dimension", "V2: dimension of 2^60", "V2: dimensions whose product wraps around"],
    ),
    23: (
        'V2: Inference-Header-Content-Length -1, "abc", past the body',
        "400",
        ["V2: header length of -1", "V2: header length of abc", "V2: header length past the body"],
    ),
    24: (
        "V2: unknown, missing or doubled tensor name; unknown datatype",
        "400",
        ["V2: unknown tensor", "V2: no tensor", "V2: tensor twice", "V2: unknown datatype", "V2: unknown output"],
    ),
    25: (
        "V2: NaN, Infinity, 1e999 in JSON data",
        "400",
        ["V2: data of NaN", "V2: data of Infinity", "V2: data of -Infinity", "V2: data of 1e999"],
    ),
    26: (
        "JSON malformed, 100,000 deep, or not UTF-8",
        "400",
        [
            "V2: malformed JSON",
            "V2: JSON 100,000 deep",
            "V2: JSON 201 deep",
            "V2: JSON that is not UTF-8",
            "test_bad_inputs::test_json_as_deep_as_is_accepted",
        ],
    ),
    27: (
        "unknown model or version",
        "404",
        ["unknown model", "unknown version", "V2: infer of an unknown model", "V2: infer of an unknown version"],
    ),
    28: (
        "model name of `..%2f`, `%00`, 10,000 characters",
        "404",
        ["model of dots", "model of NUL", "model of 10,000 characters", "card of dots", "V2: infer of NUL"],
    ),
    29: (
        "model failed",
        "503 + Retry-After",
        ["test_bad_inputs::test_a_model_that_failed_is_told_with_503_and_when_to_ask_again"],
    ),
    30: ('top_k -1, 1e9, "abc"', "422", ["top_k of -1", "top_k of 1e9", "top_k of a thousand million", "top_k of abc"]),
    31: (
        "empty batch; batch above the maximum",
        "422; 413",
        [
            "/v1/classify/batch: no pictures",
            "/v1/classify/batch: 33 pictures",
            "V2: empty batch of pixels",
            "V2: batch above the maximum",
        ],
    ),
    32: (
        "boxes outside the image, zero or negative size, NaN, 10,000 of them",
        "422 or 413",
        [
            "boxes: right of the picture",
            "boxes: above the picture",
            "boxes: width of zero",
            "boxes: negative height",
            "boxes: NaN",
            "boxes: 10,000 in a part",
            "boxes: 33 of them",
        ],
    ),
    33: (
        "a URL instead of an image",
        "422, nothing fetched",
        ["URL as the image", "URL as the body", "URL in JSON", "file URL", "V2: URL in JSON"],
    ),
    34: ("wrong method; unknown path", "405 + Allow; 404", ["wrong method", "V2: wrong method", "unknown path"]),
    35: ("queue full", "429 + Retry-After", ["test_limits::test_a_full_queue_answers_429_at_once"]),
    36: (
        "deadline passed in the queue",
        "504, not computed",
        ["test_limits::test_a_deadline_that_passed_in_the_queue_answers_504_uncomputed"],
    ),
    37: (
        "client gone while queued",
        "not computed, counted",
        ["test_limits::test_a_client_that_left_costs_nothing_more"],
    ),
    38: (
        "slow headers or slow body",
        "408 or closed, others unharmed",
        [
            "test_bad_inputs::test_headers_that_stop_arriving_get_408_and_harm_nobody",
            "test_bad_inputs::test_a_body_that_stops_arriving_gets_408",
            "test_bad_inputs::test_a_connection_without_a_request_is_closed_in_silence",
        ],
    ),
    39: (
        "header block or URI far too long",
        "431",
        ["test_bad_inputs::test_a_head_beyond_its_limit_gets_431"],
    ),
    40: (
        "both Content-Length and Transfer-Encoding",
        "400",
        ["test_bad_inputs::test_what_is_not_sound_http_gets_400"],
    ),
    41: (
        "wrong API key; load without the admin key",
        "401; 403",
        [
            "test_keys::test_without_a_valid_key_the_answer_is_401",
            "test_keys::test_loading_takes_an_admin_key",
        ],
    ),
    42: (
        "request while draining",
        "503 + Connection: close",
        ["test_limits::test_while_draining_new_requests_get_503_and_accepted_ones_their_answer"],
    ),
    43: (
        "SIGTERM under load",
        "every accepted request answered, exit 0",
        ["test_limits::test_a_signal_under_load_leaves_no_accepted_request_unanswered"],
    ),
    44: (
        "load of a corrupt, truncated, oversized, or version-99 packed file",
        "4xx naming the field; the old version keeps serving",
        ["test_reload::test_what_is_broken_names_its_field_and_the_old_version_serves"],
    ),
    45: (
        "packed file whose graph loops, names a missing tensor, or asks for terabytes",
        "the same",
        ["test_reload::test_what_is_broken_names_its_field_and_the_old_version_serves"],
    ),
    46: (
        "model folder that is a symlink out of the repository",
        "refused",
        ["test_reload::test_links_out_of_the_repository_are_refused"],
    ),
    47: (
        "reload under load",
        "no failed request, no answer from a mixed version",
        ["test_reload::test_loading_under_load_fails_no_request_and_mixes_no_versions"],
    ),
    48: (
        "kill -9 of a worker mid-request",
        "one failed request at most a worker, restarted",
        [
            "test_workers::test_a_worker_killed_mid_request_costs_each_client_one_request_at_most",
            "test_workers::test_counts_are_those_of_all_workers_and_outlive_a_killed_one",
        ],
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_its_tests(row: int) -> None:
    _, _, references = ROWS[row]
    cases = {name for case in CASES for name in (case.name, case.name.removeprefix("/v1/classify: "))}
    for reference in references:
        module, _, function = reference.partition("::")
        if function:
            assert callable(getattr(importlib.import_module(f"tests.app.{module}"), function)), reference
        else:
            assert reference in cases, reference


def test_no_row_is_forgotten() -> None:
    assert set(ROWS) == set(range(1, 49))

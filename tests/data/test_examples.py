from sdft_jax.data.examples import Example


def location_of(source):
    return Example("Two?", "It is 2.", None, 2, source).location


def test_location_is_a_line_from_1_in_jsonl_and_a_row_from_0_elsewhere():
    assert location_of("rows.jsonl") == "rows.jsonl, line 3"
    assert location_of("tfds:toy") == "tfds:toy, row 2"

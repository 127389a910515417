"""The model FLOPs of the forward and backward passes, and their comparison with a large product."""

from sdft_jax.studies.bench import train


def test_model_flops_do_not_depend_on_rematerialization(monkeypatch):
    monkeypatch.setitem(train.WIDTHS, "cpu", 64)
    case = train.Case("0.2M", 2, 4, 6, 3)
    measurements = train.measure(case, "float32", "full", 1)
    assert measurements["flops"] == train.measure(case, "float32", "none", 1)["flops"]
    layers, width, mlp, heads = 2, 64, 128, 2
    weights = layers * (width * 32 * (heads + 2 * 2) + heads * 32 * width + 3 * width * mlp)
    student, teacher, scored = 2 * (4 + 3), 2 * (6 + 3), 2 * 3
    products = 6 * weights * student + 2 * weights * teacher
    head = (4 + 2 + 2) * 2048 * width * scored
    assert products + head < measurements["flops"] < 1.1 * (products + head)  # attention is the rest


def test_row_is_relative_to_a_large_product():
    measurements = {
        "seconds": {"step": [2.0], "product": [1.0]},
        "flops": 1e12,
        "flops of the product": 2e12,
        "peak": 4e12,
    }
    row, bars = train.compare(train.Case("1M", 2, 4, 6, 3), measurements)
    assert (row["of it"], row["of the maker's peak"]) == ("25 %", "12 %")
    assert bars[0].value == 0.25

"""The description of the hardware."""

import jax

from sdft_jax.reporting.hardware import describe_hardware


def test_description_is_one_line_with_devices_and_version():
    line = describe_hardware()
    assert "\n" not in line
    assert line.startswith(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    assert jax.__version__ in line

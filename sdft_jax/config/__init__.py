"""Settings: declared, read, merged and documented."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.config.config import Config, describe, from_dict, keys, load_config, to_dict
    from sdft_jax.config.devices import sharding_from
    from sdft_jax.config.methods import Method, MethodName, Phase, method_named
    from sdft_jax.config.overrides import flatten, merge, parse_override, read_yaml
    from sdft_jax.config.presets import PRESETS

__all__ = [
    "PRESETS",
    "Config",
    "Method",
    "MethodName",
    "Phase",
    "describe",
    "flatten",
    "from_dict",
    "keys",
    "load_config",
    "merge",
    "method_named",
    "parse_override",
    "read_yaml",
    "sharding_from",
    "to_dict",
]

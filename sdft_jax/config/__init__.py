"""Settings: declared, read, merged and documented."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.config.config import Config, describe, from_dict, keys, load_config, to_dict
    from sdft_jax.config.devices import sharding_from
    from sdft_jax.config.methods import METHODS, Method, MethodName
    from sdft_jax.config.overrides import flatten, merge, parse_override, read_yaml
    from sdft_jax.config.presets import PRESETS

__all__ = [
    "METHODS",
    "PRESETS",
    "Config",
    "Method",
    "MethodName",
    "describe",
    "flatten",
    "from_dict",
    "keys",
    "load_config",
    "merge",
    "parse_override",
    "read_yaml",
    "sharding_from",
    "to_dict",
]

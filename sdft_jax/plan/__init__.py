"""The memory, communication and time of an update on hardware that is not present."""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.plan.estimate import Estimate
    from sdft_jax.plan.planner import plan_update

__all__ = ["Estimate", "plan_update"]

"""Self-Distillation Fine-Tuning in JAX (arXiv 2601.19897).

Each name is imported when it is first used, so that `import sdft_jax` is fast. The groups, in the order of a
run:

* configuration: `Config`, `load_config`, `SamplingConfig`, `DivergenceConfig`, `LoraConfig`
* devices: `Rules`, `Sharding`, `make_mesh`, `sharding_from`
* models: `Model`, `Speaker`, `load_model`, `load_speaker`, `load_tokenizer`, `save_pretrained`
* data: `Example`, `load_examples`, `make_format`, `PromptFormat`, `encode_all`, `Encoded`, `make_batches`,
  `Sequences`, `TokenBatch`
* algorithm: `Learner`, `make_learner`, `TrainState`, `init_state`, `student_params`, `make_update`,
  `Metrics`, `student_rollout`, `divergence`, `FactoredLogits`
* sampling: `generate`, `Rollout`, `StopTokens`, `make_key`
* evaluation: `EvalSet`, `load_eval_set`, `evaluate`, `Evaluation`, `answer`
* runs: `load_inputs`, `Inputs`, `train`, `Run`, `Interrupted`, `export`, `HubNames`,
  `push_to_hub`
* rollouts of a run: `read_rollouts`, `RolloutRow`, `color_rollouts`
* plans: `plan_update`, `collectives`, `plot_placement`
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from sdft_jax.algorithm.chunked_loss import FactoredLogits
    from sdft_jax.algorithm.divergence import divergence
    from sdft_jax.algorithm.learner import Learner, make_learner
    from sdft_jax.algorithm.rollout import student_rollout
    from sdft_jax.algorithm.state import init_state, student_params
    from sdft_jax.algorithm.update import make_update
    from sdft_jax.config.config import Config, load_config
    from sdft_jax.config.devices import sharding_from
    from sdft_jax.config.settings import DivergenceConfig, LoraConfig, SamplingConfig
    from sdft_jax.data.batches import make_batches
    from sdft_jax.data.encoding import Encoded, PromptFormat, encode_all, make_format
    from sdft_jax.data.examples import Example
    from sdft_jax.data.sources import load_examples
    from sdft_jax.errors import SdftError
    from sdft_jax.evaluation.answers import answer
    from sdft_jax.evaluation.eval_set import EvalSet, load_eval_set
    from sdft_jax.evaluation.scoring import Evaluation, evaluate
    from sdft_jax.models.decoder import Model
    from sdft_jax.models.hf.push import push_to_hub
    from sdft_jax.models.hf.reading import load_model
    from sdft_jax.models.hf.tokenizer import load_tokenizer
    from sdft_jax.models.hf.writing import save_pretrained
    from sdft_jax.models.speaker import Speaker
    from sdft_jax.plan.hlo import collectives
    from sdft_jax.plan.planner import plan_update
    from sdft_jax.reporting.colored_text import color_rollouts
    from sdft_jax.reporting.placement_plot import plot_placement
    from sdft_jax.reporting.rollouts import RolloutRow, read_rollouts
    from sdft_jax.sampling.decode import generate
    from sdft_jax.sampling.keys import make_key
    from sdft_jax.sharding.mesh import make_mesh
    from sdft_jax.sharding.partitioning import Sharding
    from sdft_jax.sharding.rules import Rules
    from sdft_jax.training.export import HubNames, export, load_speaker
    from sdft_jax.training.inputs import Inputs, load_inputs
    from sdft_jax.training.loop import Run, train
    from sdft_jax.training.preemption import Interrupted
    from sdft_jax.types import Metrics, Rollout, Sequences, StopTokens, TokenBatch, TrainState

__all__ = [
    "Config",
    "DivergenceConfig",
    "Encoded",
    "EvalSet",
    "Evaluation",
    "Example",
    "FactoredLogits",
    "HubNames",
    "Inputs",
    "Interrupted",
    "Learner",
    "LoraConfig",
    "Metrics",
    "Model",
    "PromptFormat",
    "Rollout",
    "RolloutRow",
    "Rules",
    "Run",
    "SamplingConfig",
    "SdftError",
    "Sequences",
    "Sharding",
    "Speaker",
    "StopTokens",
    "TokenBatch",
    "TrainState",
    "answer",
    "collectives",
    "color_rollouts",
    "divergence",
    "encode_all",
    "evaluate",
    "export",
    "generate",
    "init_state",
    "load_config",
    "load_eval_set",
    "load_examples",
    "load_inputs",
    "load_model",
    "load_speaker",
    "load_tokenizer",
    "make_batches",
    "make_format",
    "make_key",
    "make_learner",
    "make_mesh",
    "make_update",
    "plan_update",
    "plot_placement",
    "push_to_hub",
    "read_rollouts",
    "save_pretrained",
    "sharding_from",
    "student_params",
    "student_rollout",
    "train",
]

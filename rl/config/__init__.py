"""Every choice of a run: frozen, printable, saved as `config.json`. Field docstrings are the `--help` of every recipe.

An option is declared once, with its bound, its unit and its help. `TrainConfig` inherits groups of options, so that a component
takes only the group that it needs.
"""

from rl.config.learning import (
    Aggregation,
    CorrectionConfig,
    LearningOptions,
    ObjectiveOptions,
    TeacherConfig,
    UpdateOptions,
)
from rl.config.policy import LearnerConfig, LoraConfig, OptimizerConfig, PolicyOptions
from rl.config.train import (
    AdvantageKind,
    BatchOptions,
    ColdStartConfig,
    EvalConfig,
    RewardOptions,
    RunOptions,
    SmallRecipe,
    TrainConfig,
    WandbMode,
    WatchdogConfig,
    check_config,
    config_dict,
    config_file,
    with_option,
)
from rollout.config import RolloutConfig

__all__ = [
    "AdvantageKind",
    "Aggregation",
    "BatchOptions",
    "ColdStartConfig",
    "CorrectionConfig",
    "EvalConfig",
    "LearnerConfig",
    "LearningOptions",
    "LoraConfig",
    "ObjectiveOptions",
    "OptimizerConfig",
    "PolicyOptions",
    "RewardOptions",
    "RolloutConfig",
    "RunOptions",
    "SmallRecipe",
    "TeacherConfig",
    "TrainConfig",
    "UpdateOptions",
    "WandbMode",
    "WatchdogConfig",
    "check_config",
    "config_dict",
    "config_file",
    "with_option",
]

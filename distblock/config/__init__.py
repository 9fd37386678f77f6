"""Everything that can be set, checked once, before any work.

One tree of frozen records is the YAML file, the typed flags (``--data.name cifar10``) and the argument of
`BlockTrainer`. Unknown keys are refused; a value out of range is named with what was expected.
"""

from distblock.config.files import FORMAT_VERSION, dump_config, explain, make_config, parse_values, read_values
from distblock.config.running import (
    SCORES,
    ChannelConfig,
    CheckpointsConfig,
    Codec,
    MetricsConfig,
    RecoveryConfig,
    ResourcesConfig,
)
from distblock.config.training import DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig, RegimeConfig
from distblock.config.whole import Config

__all__ = [
    "FORMAT_VERSION",
    "SCORES",
    "ChannelConfig",
    "CheckpointsConfig",
    "Codec",
    "Config",
    "DataConfig",
    "MetricsConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "RecoveryConfig",
    "RegimeConfig",
    "ResourcesConfig",
    "dump_config",
    "explain",
    "make_config",
    "parse_values",
    "read_values",
]

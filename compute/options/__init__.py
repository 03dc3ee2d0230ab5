"""The command lines of the neurons, as frozen typed objects. Importing this imports neither argv nor the SDK."""

from __future__ import annotations

from compute.options.miner import MinerOptions, RuntimeKind, parse_miner
from compute.options.option import Group, Option, OptionParser, Values, add_groups, read, resolve
from compute.options.shared import (
    AxonOptions,
    ListOptions,
    LoggingOptions,
    MetricsOptions,
    SubtensorOptions,
    WalletOptions,
)
from compute.options.validator import ValidatorOptions, parse_validator

__all__ = [
    "AxonOptions",
    "Group",
    "ListOptions",
    "LoggingOptions",
    "MetricsOptions",
    "MinerOptions",
    "Option",
    "OptionParser",
    "RuntimeKind",
    "SubtensorOptions",
    "ValidatorOptions",
    "Values",
    "WalletOptions",
    "add_groups",
    "parse_miner",
    "parse_validator",
    "read",
    "resolve",
]

"""``config.yaml`` → typed, validated objects. Parsed once, at the edge; every error names the key and the bad value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from compute.base.errors import ConfigError
from compute.proof.models import GpuModel, ProofSettings

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "config.yaml"
_MAX_FILE_BYTES = 1 << 20
_MAX_DEVIATION = 1e6


@dataclass(frozen=True)
class RoundSettings:
    """When machines are proven, and how failures are retried."""

    retry_limit: int
    retry_interval_seconds: float
    max_workers: int
    max_random_delay_seconds: float


@dataclass(frozen=True)
class Config:
    """Everything that ``config.yaml`` says. ``models`` and ``scores`` are by GPU name; a model without a score earns
    nothing, a score without a model is an error. ``aliases`` are other names of models."""

    models: Mapping[str, GpuModel]
    scores: Mapping[str, float]
    tolerance_pairs: tuple[tuple[str, str], ...]
    aliases: Mapping[str, str]
    proof: ProofSettings
    rounds: RoundSettings


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Positive = Field(gt=0, lt=_MAX_DEVIATION)
_Table = dict[str, float]


class _Performance(_Strict):
    GPU_TFLOPS_FP16: _Table
    GPU_TFLOPS_FP32: _Table = Field(default_factory=dict)
    GPU_AVRAM: _Table = Field(default_factory=dict)
    GPU_VRAM_GB: _Table
    GPU_BANDWIDTH_GBS: _Table = Field(default_factory=dict)
    gpu_tolerance_pairs: dict[str, str] = Field(default_factory=dict)
    gpu_aliases: dict[str, str] = Field(default_factory=dict)
    gpu_scores: _Table


class _Rounds(_Strict):
    pog_retry_limit: int = Field(22, ge=0, le=1000)
    pog_retry_interval: float = Field(60.0, ge=0, le=86_400)
    max_workers: int = Field(16, ge=1, le=256)
    max_random_delay: float = Field(1200.0, ge=0, le=86_400)


class _File(_Strict):
    gpu_performance: _Performance
    merkle_proof: dict[str, Any] = Field(default_factory=dict)


def load_config(path: Path | None = None) -> Config:
    """Read and check a configuration file; ``None`` is the repository's own ``config.yaml``.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or a key is unknown, missing, mistyped or out of bounds.
    """
    path = path or DEFAULT_CONFIG
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}. Name a file with --config.file") from error
    try:
        return parse_config(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(text: str) -> Config:
    """Check the text of a configuration file.

    Raises:
        ConfigError: as ``load_config``.
    """
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
        file = _File.model_validate(document)
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}") from error
    except ValidationError as error:
        raise _explained(error, "") from None
    table = file.gpu_performance
    _check_names(table)
    return Config(
        models={name: _model(name, table) for name in table.GPU_TFLOPS_FP16},
        scores=dict(table.gpu_scores),
        tolerance_pairs=tuple(table.gpu_tolerance_pairs.items()),
        aliases=dict(table.gpu_aliases),
        proof=_proof_settings(file.merkle_proof),
        rounds=_round_settings(file.merkle_proof),
    )


def _model(name: str, table: _Performance) -> GpuModel:
    return GpuModel(
        name=name,
        tflops16=table.GPU_TFLOPS_FP16[name],
        tflops32=table.GPU_TFLOPS_FP32.get(name),
        vram_gb=table.GPU_VRAM_GB[name],
        bandwidth_gbs=table.GPU_BANDWIDTH_GBS.get(name),
        score=table.gpu_scores.get(name, 0.0),
    )


def _check_names(table: _Performance) -> None:
    known = table.GPU_TFLOPS_FP16.keys()
    for name in known:
        if name not in table.GPU_VRAM_GB:
            raise ConfigError(f"gpu_performance.GPU_VRAM_GB has no {name!r}, which GPU_TFLOPS_FP16 lists")
    others: dict[str, Any] = {
        "GPU_TFLOPS_FP32": table.GPU_TFLOPS_FP32,
        "GPU_AVRAM": table.GPU_AVRAM,
        "GPU_VRAM_GB": table.GPU_VRAM_GB,
        "GPU_BANDWIDTH_GBS": table.GPU_BANDWIDTH_GBS,
        "gpu_scores": table.gpu_scores,
        "gpu_aliases": table.gpu_aliases.values(),
        "gpu_tolerance_pairs": [name for pair in table.gpu_tolerance_pairs.items() for name in pair],
    }
    for key, names in others.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"gpu_performance.{key}: {name!r} is not listed in GPU_TFLOPS_FP16")
    for name, score in table.gpu_scores.items():
        if not 0 < score <= 1000:
            raise ConfigError(f"gpu_performance.gpu_scores.{name}: {score!r} is not above 0 and at most 1000")


def _proof_settings(section: Mapping[str, Any]) -> ProofSettings:
    names = {field.name for field in fields(ProofSettings)}
    for key in section:
        if key not in names and key not in _Rounds.model_fields:
            known = ", ".join(sorted(names | _Rounds.model_fields.keys()))
            raise ConfigError(f"merkle_proof.{key} is unknown; known are: {known}")
    try:
        return TypeAdapter(ProofSettings).validate_python(
            {key: value for key, value in section.items() if key in names}
        )
    except ValidationError as error:
        raise _explained(error, "merkle_proof.") from None
    except ConfigError as error:
        raise ConfigError(f"merkle_proof.{error}") from error


def _round_settings(section: Mapping[str, Any]) -> RoundSettings:
    try:
        rounds = _Rounds.model_validate({key: section[key] for key in section.keys() & _Rounds.model_fields.keys()})
    except ValidationError as error:
        raise _explained(error, "merkle_proof.") from None
    return RoundSettings(
        retry_limit=rounds.pog_retry_limit,
        retry_interval_seconds=rounds.pog_retry_interval,
        max_workers=rounds.max_workers,
        max_random_delay_seconds=rounds.max_random_delay,
    )


def _explained(error: ValidationError, prefix: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = prefix + ".".join(str(part) for part in first["loc"])
    value = "" if first["type"] == "missing" else f" (it is {str(first['input'])[:80]!r})"
    return ConfigError(f"{key.rstrip('.') or 'the file'}: {first['msg']}{value}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys and says nothing; here the second is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"{key!r} is given twice, the second time on line {key_node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)

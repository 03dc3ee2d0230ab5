"""What a program makes its parts with: each test looks at the one argument that an option is for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import AsyncMock

import pytest


class Parts:
    """Stands for classes and functions of a program, and keeps the arguments that each was called with, by their names.

    What they return does nothing, unless ``replace`` is told what it is.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._given: dict[str, dict[str, Any]] = {}

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self._given[name]

    def replace(self, module: ModuleType, *names: str, made: Callable[[], Any] = AsyncMock) -> None:
        for name in names:
            self._monkeypatch.setattr(module, name, self.instead_of(getattr(module, name), made))

    def instead_of(self, part: Callable[..., Any], made: Callable[[], Any] = AsyncMock) -> Any:
        signature = inspect.signature(part)

        def make(*arguments: Any, **named: Any) -> Any:
            self._given[part.__name__] = signature.bind(*arguments, **named).arguments
            return made()

        return make

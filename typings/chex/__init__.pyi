"""What the type checker must know of chex: that `chex.dataclass` makes dataclasses."""

from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")

@overload
@dataclass_transform()
def dataclass(cls: type[_T], /) -> type[_T]: ...
@overload
@dataclass_transform()
def dataclass(*, frozen: bool = False, **options: Any) -> Callable[[type[_T]], type[_T]]: ...
def __getattr__(name: str) -> Any: ...

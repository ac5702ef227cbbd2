"""What a reader may be asked; apart from the table of sources, so that a reader in a module of its own can name it."""

from typing import Literal, Protocol, runtime_checkable

from rlhf_jax.data.opendialkg_sources import DomainName


@runtime_checkable
class ReadOptions(Protocol):
    """What a reader may be asked, apart from its folder; `stages.setup.DataConfig` has these fields."""

    @property
    def source(self) -> str: ...
    @property
    def domain(self) -> Literal["both"] | DomainName: ...
    @property
    def train_domain(self) -> Literal["both"] | DomainName: ...
    @property
    def on_bad_line(self) -> Literal["error", "skip"]: ...
    @property
    def max_dialogues(self) -> int | None: ...

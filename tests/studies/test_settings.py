"""What studies start from."""

import dataclasses
from pathlib import Path

import pytest

from studies.settings import study_setting


def test_a_temperature_that_would_do_nothing_is_refused() -> None:
    setting = study_setting("world", "debug", Path("data"))
    with pytest.raises(ValueError, match=r"align\.temperature 0\.7 is not that of the foundation, 1\.0"):
        dataclasses.replace(setting, align=dataclasses.replace(setting.align, temperature=0.7))

"""The checks of ``ktaskfs doctor`` that look at the service: which of its units, and what it advises."""

from __future__ import annotations

import pytest

from ktaskfs.cli import check_service
from ktaskfs.cli.arguments import DEFAULT_MOUNT
from ktaskfs.cli.mounted import Mounted


@pytest.mark.parametrize(
    ("active", "enabled", "mend"),
    [
        ("active", "enabled", None),
        ("inactive", "disabled", None),
        ("active", "disabled", "systemctl enable ktaskfs"),
        ("failed", "enabled", "systemctl reset-failed ktaskfs && systemctl start ktaskfs"),
    ],
)
def test_the_service(active: str, enabled: str, mend: str | None) -> None:
    state = {"LoadState": "loaded", "ActiveState": active, "UnitFileState": enabled}
    (found,) = check_service.check_service(state)
    assert (found.is_wrong, found.mend) == (mend is not None, mend)
    assert not next(check_service.check_service({})).is_wrong


@pytest.mark.parametrize(
    ("first", "second", "unit"),
    [
        (("active", "enabled"), ("inactive", "disabled"), "ktaskfs"),
        (("inactive", "disabled"), ("active", "enabled"), "ktaskfs-confined"),
        (("inactive", "disabled"), ("failed", "disabled"), "ktaskfs-confined"),
        (("inactive", "disabled"), ("inactive", "enabled"), "ktaskfs-confined"),
        (("failed", "enabled"), ("active", "disabled"), "ktaskfs-confined"),
        (("inactive", "disabled"), ("inactive", "disabled"), "ktaskfs"),
    ],
)
def test_of_two_services_the_one_in_use_is_started_anew(
    first: tuple[str, str], second: tuple[str, str], unit: str
) -> None:
    names = ("ktaskfs.service", "ktaskfs-confined.service")
    blocks = [
        f"Id={name}\nLoadState=loaded\nActiveState={active}\nUnitFileState={enabled}\n"
        for name, (active, enabled) in zip(names, (first, second), strict=True)
    ]
    state = check_service.in_use("\n".join(blocks))
    (found,) = check_service.check_hung(Mounted(DEFAULT_MOUNT), state)
    assert found.mend == f"systemctl restart {unit}"
    (found,) = check_service.check_hung(Mounted("/elsewhere"), state)
    assert found.mend is None
    (found,) = check_service.check_service(state)
    assert found.text.startswith(f"{unit}.service ")

"""The switch of a neuron whose service has ended to a commit that has passed its check. It may be broken off anywhere.

The trial is written first and the clone is moved last. So a start that finds the tree still at the old commit knows
that the switch was broken off, and one that finds it at the new commit knows that all before it was done.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from compute.base.errors import UpdateError
from compute.base.reasons import UpdateReason
from compute.update import back
from compute.update import trial as trials
from compute.update.check import Release, install_for
from compute.update.clone import Clone
from compute.update.trial import Trial


def switch(clone: Clone, release: Release, database: Path, up_seconds: float) -> None:
    """Move packages and clone to ``release``; the caller restarts, whatever comes of it. Blocks.

    Raises:
        UpdateError: the clone is not as it was when the release was checked, and nothing was done; or a step failed,
            and the restart goes back.
    """
    offer = release.offer
    with trials.tree_lock():
        head = clone.head()
        if head not in (release.old, offer.commit) or clone.ref() != offer.branch or clone.changed():
            raise UpdateError(UpdateReason.MOVED_BY_HAND, "the clone has changed since the check: looking again later")
        if head != offer.commit and (colliding := clone.colliding(head, offer.commit)):
            raise UpdateError(
                UpdateReason.UNTRACKED_FILES, f"{colliding[0]!r} has appeared where the update has a file"
            )
        # Another neuron of this clone may have moved it already.
        old_value = clone.value_of(offer.ref) if head != offer.commit else release.old
        trials.save(
            Trial(
                old=release.old,
                new=offer.commit,
                ref=offer.ref,
                old_value=old_value,
                packages=list(release.old_packages),
                database=os.fspath(database.absolute()),
                up_seconds=up_seconds,
            )
        )
        _keep(database)
        install_for(release)
        if head != offer.commit:
            clone.advance(offer)


def _keep(database: Path) -> None:
    """Where the new commit changes the tables, and then does not come up, the old one needs them as they were."""
    copy = trials.database_copy()
    with contextlib.suppress(FileNotFoundError):
        copy.unlink()
    if database.is_file():
        back.copy_database(database, copy)
        copy.chmod(0o600)

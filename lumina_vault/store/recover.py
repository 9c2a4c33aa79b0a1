"""Take over what an interrupted session left: packs that landed are found again, nothing is uploaded twice."""

from __future__ import annotations

import contextlib
import logging

from lumina_vault import ids
from lumina_vault.errors import Damage, ObjectMissing
from lumina_vault.store.pack import check_pack
from lumina_vault.store.repository import Repository
from lumina_vault.store.session import Session

_log = logging.getLogger(__name__)


def adopt_packs(repository: Repository, session: Session) -> int:
    """Step 3 of the deletion protocol, adopt: check each `writing` pack of a dead session whole, then make it live.

    Returns how many were. One that never landed, or is damaged, keeps its row until prune removes it.
    """
    adopted = 0
    for row in repository.index.adoptable():
        path = ids.pack_path(row.name)
        try:
            if repository.backend.size(path) != row.size:
                continue
            if not repository.index.adopt(session.id, row.id):
                continue
            table = check_pack(repository.backend, repository.keys, row.name, row.size)
        except (Damage, ObjectMissing) as error:
            with contextlib.suppress(Exception):
                _log.debug("pack %s of an interrupted run is not used: %s", path, error)
            continue
        repository.index.make_live(session.id, row.id, [r._replace(pack=row.id) for r in table.rows])
        adopted += 1
    return adopted

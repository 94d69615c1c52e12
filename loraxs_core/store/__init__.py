"""A store for a fleet of LoRA-XS adapters: millions of R's in one place, checked, shared by processes, backed up to object storage.

from loraxs_core.store import AdapterStore

store = AdapterStore.create("fleet")
store.put("user-17", "path/to/adapter")
"""

from __future__ import annotations

from loraxs_core.store.checking import Damage, Report, drop_damaged, verify
from loraxs_core.store.collecting import Collected, collect
from loraxs_core.store.folders import Imported, export_folder, import_folders
from loraxs_core.store.records import Version
from loraxs_core.store.shards import Backup, backup, restore
from loraxs_core.store.store import AdapterStore
from loraxs_core.store.stored import Space, StoredAdapter

__all__ = [
    "AdapterStore",
    "Backup",
    "Collected",
    "Damage",
    "Imported",
    "Report",
    "Space",
    "StoredAdapter",
    "Version",
    "backup",
    "collect",
    "drop_damaged",
    "export_folder",
    "import_folders",
    "restore",
    "verify",
]

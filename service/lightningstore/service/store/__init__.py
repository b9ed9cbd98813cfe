"""The store: all operations of the contract over one back end, one async method a call.

Methods take and return the contract's messages; server streams are async generators that yield None once
they stand, and then serialised responses. All raise StoreError.
"""

from __future__ import annotations

from lightningstore.service.store.retention import RetentionOperations


class Store(RetentionOperations):
    """An open store. Made by `lightningstore.service.server.open_engine`."""

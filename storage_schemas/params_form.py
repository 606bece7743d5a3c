"""Owns the names of the forms in which a store has the parameters of views. Imports no library, since options are made of them."""

from __future__ import annotations

#: A store has each of them, or derives them on reading (see `kept_views`).
VIEW_PARAMS = (STORED, DERIVED) = ("stored", "derived")

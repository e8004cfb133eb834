"""Bundles where they lie: places with versions, copies of object stores, and what is checked of them."""

"""Samples of whole users, stratified and nested."""

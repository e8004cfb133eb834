"""Requests and answers on the wire: JSON, Arrow and the Open Inference Protocol."""

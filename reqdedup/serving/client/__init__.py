"""A client of the server, in Python, and the trimmer that sends a model what it reads."""

from reqdedup.serving.client.client import Client, ServerError

__all__ = ["Client", "ServerError"]

"""What the client sends, and what it sends again."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest

from reqdedup.serving.client import Client, ServerError
from reqdedup.serving.client.client import _dumps


def test_the_client_sends_slices_of_arrays():
    values = np.arange(6).reshape(3, 2)
    assert _dumps({"item_id": values[:, 1]}) == b'{"item_id":[1,3,5]}'


@pytest.mark.parametrize(("action", "num_sent"), [("load", 2), ("rollback", 1)])
def test_a_call_that_breaks_off_is_repeated_unless_it_would_undo_itself(action, num_sent):
    """The server does what it is told, and dies before it says so."""
    sent = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take():
            for _ in range(num_sent):
                connection, _ = server.accept()
                with connection:
                    sent.append(connection.recv(65536))

        thread = threading.Thread(target=take)
        thread.start()
        client = Client(f"http://127.0.0.1:{server.getsockname()[1]}", retries=1)
        with pytest.raises(ServerError, match=r"0: an answer of .* required, found RemoteDisconnected"):
            client.change_models(action, "x" if action == "load" else None)
        thread.join(5)
    assert len(sent) == num_sent


@pytest.mark.parametrize("url", ["localhost:8080", "", "http://", "ftp://localhost"])
def test_what_is_no_url_of_a_server_is_refused_before_anything_is_asked(url):
    with pytest.raises(ValueError, match=r"a URL as http://127\.0\.0\.1:8080 required, found"):
        Client(url)
    with pytest.raises(ValueError, match="body json or arrow required, found 'xml'"):
        Client(body="xml")

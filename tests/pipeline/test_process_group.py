"""The network over which processes that train together talk."""

from __future__ import annotations

import os
import socket
import sys

import pytest
from teachonce.pipeline.executors.process_group import network_of, stay_on_network_of


@pytest.fixture(autouse=True)
def no_choice(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")
def test_the_network_of_an_address():
    name = network_of("127.0.0.1")
    assert name in [name for _, name in socket.if_nameindex()]
    assert network_of("203.0.113.9") is None
    assert network_of("::1") is None


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells")
def test_gloo_takes_it_unless_the_user_names_one(monkeypatch):
    stay_on_network_of("203.0.113.9")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    stay_on_network_of("127.0.0.1")
    assert os.environ.pop("GLOO_SOCKET_IFNAME") == network_of("127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    stay_on_network_of("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"

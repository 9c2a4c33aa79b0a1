"""The memory backend keeps every promise of the protocol."""

import pytest

from lumina_vault.backends.memory import MemoryBackend
from lumina_vault.testing.backends import BackendConformance


class TestMemoryBackend(BackendConformance):
    @pytest.fixture
    def backend(self):
        return MemoryBackend()

"""The real demo model for tests: pulled once into the user's own cache."""

import pytest

from hivemint.model.local_models import LocalModel, pull


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """SmolLM2-135M-Instruct, real weights, fp32; from the cache that `hivemint model pull` fills."""
    return pull()

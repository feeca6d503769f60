"""What the tests of methods that learn from masks share."""

import pytest

from tests.support.pixel_supervised import small_parts


@pytest.fixture
def parts():
    return small_parts()

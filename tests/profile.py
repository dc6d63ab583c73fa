"""How long the tests search: `make test-deep` sets HYPOTHESIS_PROFILE=deep, and every `DEEP` here is true then."""

from __future__ import annotations

import os

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"

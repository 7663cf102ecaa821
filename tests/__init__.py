"""Tests; as in the command, jsonschema makes no grammar of web addresses, which takes it two seconds."""

import sys

sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

"""Reading small files: each fault is named."""

import pytest

from mtl_re.errors import MtlReError
from mtl_re.files import read_json


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{", "not JSON"), (b"[]", "a JSON object, found list"), (b"\xff", "not UTF-8"), (None, "cannot")],
)
def test_read_json_names_the_fault(tmp_path, content, reason):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MtlReError, match=reason):
        read_json(path)
